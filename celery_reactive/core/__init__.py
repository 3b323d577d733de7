"""Values and decisions: what a task is, when it runs again, what is wrong with a declaration.

Everything here is pure: no database, no broker, no clock. Imported by every layer above; imports only the errors.
"""

"""What is probably wrong with an installation, and what to do about it.

`examine` asks; the modules beside it know one field each: the server, the collections, the tasks, the planners and
workers, Celery and its broker. Nothing is changed.
"""

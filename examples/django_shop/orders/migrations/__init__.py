"""The tables of the shop in Django's own database."""

"""`python -m celery_reactive.cli` is `celery-reactive`, where the script is not on PATH."""

from celery_reactive.cli import main

main()

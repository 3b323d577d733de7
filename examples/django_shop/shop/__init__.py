"""The project. It imports its Celery app, so that `@shared_task` finds it in whatever process imports Django."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]

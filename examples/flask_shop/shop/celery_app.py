"""The Celery app of a Flask application, as Flask's documentation has it."""

from typing import Any

from celery import Celery, Task
from flask import Flask


def celery_init_app(app: Flask) -> Celery:
    """Make the Celery app: its tasks run in the application's context, its settings are at `CELERY`."""

    class FlaskTask(Task):
        """A task that may use `current_app`."""

        def __call__(self, *args: object, **kwargs: object) -> Any:
            """Run the task's function in the application's context."""
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask, include=["shop.tasks"])
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app

"""What worker and planner start from: the Celery app of an application made for it."""

from shop import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]

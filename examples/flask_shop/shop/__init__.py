"""A shop that confirms its orders: `flask --app shop run`."""

import os

from bson import ObjectId
from bson.errors import InvalidId
from flask import Flask
from pymongo import MongoClient
from werkzeug.routing import BaseConverter, ValidationError

from shop import views
from shop.celery_app import celery_init_app


class ObjectIdConverter(BaseConverter):
    """An order's id in an address."""

    def to_python(self, value: str) -> ObjectId:
        """Return the id as it is stored."""
        try:
            return ObjectId(value)
        except InvalidId as error:
            raise ValidationError from error


def create_app() -> Flask:
    """Make the application, with its Celery app and its MongoDB client among its extensions."""
    app = Flask(__name__)
    mongodb_url = os.environ.get("MONGODB_URL", "mongodb://localhost:27017/shop?replicaSet=rs0")
    app.config.from_mapping(
        SHOP_NAME="The corner shop",
        CELERY={
            "broker_url": os.environ.get("BROKER_URL", "redis://localhost:6379/0"),
            "reactive_mongodb_url": mongodb_url,
        },
    )
    app.config.from_prefixed_env()
    # Connects at its first use: a server or worker that forks makes the application before.
    app.extensions["mongo"] = MongoClient(mongodb_url, connect=False)
    celery_init_app(app)
    app.url_map.converters["id"] = ObjectIdConverter
    app.register_blueprint(views.blueprint)
    return app

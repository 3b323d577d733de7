"""The Celery app: where MongoDB and the broker are."""

import os

from celery import Celery

app = Celery("shop", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"), include=["shop.tasks"])
app.conf.reactive_mongodb_url = os.environ.get("MONGODB_URL", "mongodb://localhost:27017/shop?replicaSet=rs0")

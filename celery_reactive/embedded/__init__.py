"""Real MongoDB, Valkey and RabbitMQ servers on this machine, for the demo and the tests; never for production.

Called by `celery-reactive demo` and by test suites, also those of users. A server listens on 127.0.0.1 only, keeps its
data in a temporary folder, and dies with the process that started it, however that one ends.

`process` is one server process: started, killed, frozen, watched over. `mongo`, `valkey` and `rabbit` each know one
kind of server and where its program comes from; `choice` takes a server that somebody else runs instead, where the
environment names one.

Nothing here may be imported by the planner, the worker or what is below them.
"""

from __future__ import annotations

from celery_reactive.embedded.choice import ExternalServer, broker, mongodb
from celery_reactive.embedded.mongo import MongoServer
from celery_reactive.embedded.process import EmbeddedServerError
from celery_reactive.embedded.rabbit import RabbitServer
from celery_reactive.embedded.valkey import ValkeyServer

__all__ = [
    "EmbeddedServerError",
    "ExternalServer",
    "MongoServer",
    "RabbitServer",
    "ValkeyServer",
    "broker",
    "mongodb",
]

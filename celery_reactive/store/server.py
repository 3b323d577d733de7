"""What the server must be able to do, asked once before the planner starts (B-3, B-4, B-65)."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any
from uuid import UUID

from bson import Binary, ObjectId, Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from celery_reactive.core.record import CODEC
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ConfigurationError, NotAReplicaSetError, ServerTooOldError, StoreUnavailableError
from celery_reactive.store.errors import translated

_OLDEST = (6, 0)
_UNAUTHORIZED, _NO_SUCH_COMMAND = 13, 59
_REMEDY = "start mongod with --replSet rs0 and run rs.initiate() once (a replica set of one member is enough)"


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """The server as it describes itself."""

    version: str
    replica_set: str


@translated
def check(database: Database[Any], *, shown_url: str) -> Server:
    """Check that the server is a replica set of a supported version.

    Args:
        database: Any database of it.
        shown_url: The address for messages, without secrets.

    Raises:
        NotAReplicaSetError: It has no change streams.
        ServerTooOldError: It is older than MongoDB 6.0.
        StoreUnavailableError: It does not answer.
    """
    hello = database.client.admin.command("hello")
    version = database.client.server_info()["version"]
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise ServerTooOldError(shown_url, [f"expected MongoDB 6.0 or newer, got {version}; upgrade the server"])
    if hello.get("msg") == "isdbgrid":
        raise NotAReplicaSetError(shown_url, ["expected a replica set, got a sharded cluster, which is not supported"])
    if "setName" not in hello:
        raise NotAReplicaSetError(
            shown_url,
            [f"expected a replica set, got a standalone server, which has no change streams; {_REMEDY}"],
        )
    return Server(version, hello["setName"])


@translated
def replica_set_id(database: Database[Any]) -> ObjectId | None:
    """Return the replica set's identity, None where reading the configuration is not granted, or unknown."""
    try:
        config = database.client.admin.command("replSetGetConfig")
    except OperationFailure as error:
        if error.code in (_UNAUTHORIZED, _NO_SUCH_COMMAND):
            return None
        raise
    identity: ObjectId | None = config["config"].get("settings", {}).get("replicaSetId")
    return identity


@translated
def now(database: Database[Any]) -> datetime:
    """Return the primary's clock, which `$$NOW` is read from."""
    told: datetime = database.command("hello", codec_options=CODEC)["localTime"]
    return told


@translated
def cluster_time(database: Database[Any], session: ClientSession) -> Timestamp:
    """Return a cluster time known now; what *session* reads from here on is not older."""
    database.command("ping", session=session)
    return known_time(session)


def known_time(session: ClientSession) -> Timestamp:
    """Return the newest cluster time that *session* has been told; what it reads next is not older."""
    known = session.operation_time
    if known is None:
        raise StoreUnavailableError("the server told no cluster time; is it a replica set?")
    return known


@translated
def check_collection(database: Database[Any], name: str) -> None:
    """Check that collection *name* can be watched; one that does not exist yet can (B-4).

    Raises:
        ConfigurationError: It is a view or a time-series collection.
    """
    found = next(iter(database.list_collections(filter={"name": name})), None)
    if found is not None and found["type"] != "collection":
        raise ConfigurationError(
            f"{database.name}.{name}",
            [f"expected a collection that can be watched, got a {found['type']}"],
        )


@translated
def has_collation(database: Database[Any], name: str) -> bool:
    """Return whether collection *name* compares strings under a collation of its own."""
    found = next(iter(database.list_collections(filter={"name": name})), None)
    return found is not None and "collation" in found.get("options", {})


@translated
def collection_id(database: Database[Any], name: str) -> UUID | None:
    """Return what tells collection *name* from any other that has had its name; None: there is none."""
    found = next(iter(database.list_collections(filter={"name": name})), None)
    if found is None:
        return None
    told: UUID | Binary = found["info"]["uuid"]
    # The driver decodes it as the client's address says, whatever the database's options are.
    return told if isinstance(told, UUID) else told.as_uuid()


@translated
def check_definition(source: Collection[Any], task: ReactiveTask) -> None:
    """Let the server compile filter and projection of *task* (B-3).

    Raises:
        ConfigurationError: It cannot; the server's message is in it.
    """
    pipeline = [
        {"$match": {"_id": {"$in": []}}},
        {"$match": task.filter.query},
        *task.projection.stages(keep={"d": "$_id"}),
    ]
    try:
        source.database.command("explain", {"aggregate": source.name, "pipeline": pipeline, "cursor": {}})
    except OperationFailure as error:
        if error.code == _UNAUTHORIZED:
            return
        message = (error.details or {}).get("errmsg", str(error))
        raise ConfigurationError(
            task.name, [f"the server refuses its filter or watch_projection: {message}"]
        ) from error

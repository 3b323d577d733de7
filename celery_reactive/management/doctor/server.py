"""The MongoDB server: its kind, version, rights, oplog, clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from celery_reactive.core.duration import format_duration
from celery_reactive.errors import NotAReplicaSetError, ServerTooOldError, StoreUnavailableError
from celery_reactive.management.doctor.case import Case
from celery_reactive.management.doctor.finding import Finding, error, warning
from celery_reactive.store import examination, server
from celery_reactive.store.examination import Needed

MONGODB_AWAY = error("mongodb_away", "start it, or correct reactive_mongodb_url (or CELERY_REACTIVE_MONGODB_URL)")
NO_REPLICA_SET = error(
    "no_replica_set", "start mongod with --replSet rs0 and run rs.initiate() once; one member is enough"
)
SERVER_TOO_OLD = error("server_too_old", "upgrade it to MongoDB 6.0 or newer")
MISSING_RIGHTS = error("missing_rights", "grant the role readWrite on the database, or these actions one by one")
WEAK_WRITES = warning(
    "weak_writes",
    'let writes have w: "majority": a document that was acknowledged with less can vanish in a failover, after its run',
)
SMALL_OPLOG = warning(
    "small_oplog",
    "make it larger (replSetResizeOplog), so that a planner that was away for longer does not have to reconcile all",
)
CLOCK_SKEW = warning(
    "clock_skew", "run NTP on both machines: leases do not depend on it, and logs, beat and countdowns do"
)

_LEAST_WINDOW = timedelta(hours=12)
_MOST_SKEW = timedelta(seconds=2)
_DATABASE = frozenset({"find", "changeStream", "listCollections"})
_RECORDS = frozenset({"find", "insert", "update", "remove", "createIndex", "listIndexes"})
_ALL_COLLECTIONS = ""
_GLOBALS = frozenset({"find", "insert", "update", "remove"})


def answers(case: Case) -> Iterator[Finding]:
    """Whether it can be used at all; where it cannot, nothing else can be asked."""
    url = case.runtime.settings.shown_url
    try:
        server.check(case.runtime.connection.database(), shown_url=url)
    except StoreUnavailableError as away:
        yield MONGODB_AWAY.on(url, f"it does not answer: {str(away)[:300]}")
    except NotAReplicaSetError as unfit:
        yield NO_REPLICA_SET.on(url, unfit.problems[0])
    except ServerTooOldError as unfit:
        yield SERVER_TOO_OLD.on(url, unfit.problems[0])


def grants(case: Case) -> Iterator[Finding]:
    """Whether the user may do what a planner does."""
    connection = case.runtime.connection
    needed = [Needed(connection.default_database, connection.globals().name, _GLOBALS)]
    for task in case.tasks:
        # One change stream watches a database, so that all of it has to be granted.
        needed.append(Needed(connection.source(task).database.name, _ALL_COLLECTIONS, _DATABASE))
        target = connection.records(task)
        needed.append(Needed(target.database.name, target.name, _RECORDS))
    missing = examination.missing_rights(connection.database(), dict.fromkeys(needed))
    for one in missing or []:
        actions = ", ".join(sorted(one.actions))
        yield MISSING_RIGHTS.on(f"{one.database}.{one.collection or '*'}", f"the user may not: {actions}")


def writes(case: Case) -> Iterator[Finding]:
    """Whether writes of the user's own code survive a failover."""
    w = examination.default_write_concern(case.runtime.connection.database())
    if w in (0, 1):
        yield WEAK_WRITES.on("write concern", f"writes are acknowledged with w: {w} by default")


def oplog(case: Case) -> Iterator[Finding]:
    """Whether a planner may be away for a night."""
    found = examination.oplog(case.runtime.connection.database())
    if found is not None and found.is_full and found.window < _LEAST_WINDOW:
        window = format_duration(found.window)
        yield SMALL_OPLOG.on("oplog", f"it reaches back {window}; after a longer absence the stream's position is lost")


def clock(case: Case) -> Iterator[Finding]:
    """Whether this machine and the server agree on the time."""
    before = time.time()
    told = examination.clock(case.runtime.connection.database()).timestamp()
    after = time.time()
    skew = timedelta(seconds=max(told - after, before - told, 0.0))
    if skew > _MOST_SKEW:
        yield CLOCK_SKEW.on("clock", f"this machine and MongoDB's primary differ by {skew.total_seconds():.1f} s")

"""The worker on real servers: every way in which a run may end, on each pool.

No planner runs: a test plans its documents and publishes the message itself, so that it decides what a worker sees.
One worker a pool serves the whole module; the tasks are in `worker_tasks.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bson import Decimal128, ObjectId
from celery import _state

from celery_reactive import Reactive, embedded
from celery_reactive.core.duration import LONGEST
from celery_reactive.core.message import message_for
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.planner.dispatch import Publisher
from celery_reactive.store import definitions, indexes, records, server
from tests.acceptance.monitor import listening
from tests.acceptance.project import Process, wait_until

SOURCE = Path(__file__).with_name("worker_tasks.py")
WORKER = (sys.executable, "-m", "celery", "-A", "proj", "worker", "--without-mingle")
Document = dict[str, Any]
MongoServer = embedded.MongoServer | embedded.ExternalServer
Broker = embedded.ValkeyServer | embedded.ExternalServer


class Shop:
    """A project with the hands of a planner, and one worker after the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        (folder / "proj.py").write_text(SOURCE.read_text())
        self.app = _load(folder / "proj.py", environment).app
        self.app.finalize()
        self.runtime = Reactive.of(self.app).runtime
        self.database = self.runtime.connection.client.get_default_database()
        self._publisher = Publisher(self.app, self.runtime)

    def start(self, pool: str) -> None:
        """Start a worker on empty collections, with the definitions that a leader would have stored."""
        for name in self.database.list_collection_names():
            self.database[name].delete_many({})
        for task in self.runtime.registry:
            indexes.prepare(self.runtime.connection.records(task))
            definitions.define(self.runtime.connection.globals(), task, namespace="w.docs", collated=False, term=1)
        self.pool = pool
        self.worker = Process(
            f"worker-{uuid.uuid4().hex}",
            [*WORKER, "-P", pool, "-c", "2", "-E", "-l", "INFO"],
            self._folder,
            self._environment,
        )
        self.wait(lambda: "ready." in self.worker.text())
        # A broadcast is lost that comes before the worker hears its mailbox, soon after it has said to be ready.
        self.wait(self.app.control.inspect(timeout=0.3, limit=1).ping)

    def close(self) -> None:
        """Forget the project."""
        self._publisher.close()
        self.app.close()
        self.runtime.connection.client.drop_database(self.database.name)
        self.runtime.connection.close()

    # --- the planner's part --------------------------------------------------------------------

    def plan(self, task: str, *doc_ids: Any, generation: int = 1) -> None:
        """Write documents that concern *task*, and their records."""
        definition = self.runtime.registry.get(task)
        source, target = self.runtime.connection.source(definition), self.runtime.connection.records(definition)
        for doc_id in doc_ids:
            source.replace_one({"_id": doc_id}, {"task": task, "v": 1, "more": "x"}, upsert=True)
        self.observe(task, *doc_ids, generation=generation)
        assert target.count_documents({"task": task, "sourceDocId": {"$in": list(doc_ids)}}) == len(doc_ids)

    def observe(self, task: str, *doc_ids: Any, generation: int = 1) -> None:
        """Plan documents as they are now."""
        definition = self.runtime.registry.get(task)
        connection = self.runtime.connection
        with connection.causal_session() as session:
            at = server.cluster_time(connection.database(), session)
            observation = records.Observation(definition, at=at, generation=generation, session=session)
            records.apply_observations(
                connection.source(definition), connection.records(definition), observation, doc_ids
            )

    def publish(self, task: str, *doc_ids: Any) -> str:
        """Publish one message that names records; return the Celery id of the first."""
        definition = self.runtime.registry.get(task)
        due = [Due(RecordKey(task, doc_id), 0, 0, alone=False) for doc_id in doc_ids]
        self._publisher.publish(definition, due)
        return due[0].key.celery_id(self.runtime.connection.namespace(definition), 0)

    def run(self, task: str, *doc_ids: Any) -> str:
        """Plan documents and publish one message for each; return the Celery id of the last."""
        self.plan(task, *doc_ids)
        return [self.publish(task, doc_id) for doc_id in doc_ids][-1]

    # --- looking -------------------------------------------------------------------------------

    def record(self, task: str, doc_id: Any) -> Document:
        """Return a record."""
        found = self.database.docs_tasks.find_one({"_id": {"t": task, "d": doc_id}})
        assert found is not None
        return found

    def settled(self, task: str, doc_id: Any, *, after: Document | None = None, timeout: float = 20) -> Document:
        """Wait until a run of a record has been settled, another than the one that *after* shows; return the record."""
        before = None if after is None else after["_r"]["done"]

        def has_settled() -> bool:
            books = self.record(task, doc_id)["_r"]
            return books["claim"] is None and books.get("done", before) != before

        self.wait(has_settled, timeout)
        return self.record(task, doc_id)

    def notes(self, what: str, **facts: Any) -> list[Document]:
        """Return what the tasks have noted."""
        return list(self.database.notes.find({"what": what, **facts}))

    def wait(self, condition: Callable[[], object], timeout: float = 20) -> float:
        """Wait until *condition* holds."""
        return wait_until(condition, logs=lambda: self.worker.text()[-6000:], timeout=timeout)


def _load(path: Path, environment: dict[str, str]) -> ModuleType:
    """Load the project into this process, as the worker does into its own."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        spec = importlib.util.spec_from_file_location("proj", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["proj"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, mongo_server: MongoServer, valkey_server: Broker
) -> Iterator[Shop]:
    """The project, with a database and a queue of its own."""
    name = f"w_{uuid.uuid4().hex}"
    environment = {"MONGODB_URL": mongo_server.url_of(name), "BROKER_URL": valkey_server.url, "QUEUE": name}
    # A shared task belongs to every app of the process: keep it from those of other tests.
    finalizers = set(_state._on_app_finalizers)
    shop = Shop(tmp_path_factory.mktemp("proj"), environment)
    yield shop
    shop.close()
    _state._on_app_finalizers.intersection_update(finalizers)


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "gevent"])
def shop(request: pytest.FixtureRequest, project: Shop) -> Iterator[Shop]:
    """The project with a worker, one for each pool."""
    try:
        project.start(request.param)
        yield project
    finally:
        project.worker.kill()


POLICY_WAIT = timedelta(seconds=60)


def waits(record: Document) -> timedelta:
    """Return how long a record waits, counted from its last end."""
    wait: timedelta = record["nextRunAt"] - (record["lastFinalizedAt"] or record["startedAt"])
    return wait


def prefork_only(shop: Shop) -> None:
    """Skip on pools whose handlers are no processes of their own."""
    if shop.pool != "prefork":
        pytest.skip("only pool processes can be ended")


# --- how a run ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("doc_id", [ObjectId(), uuid.uuid4(), Decimal128("1.50"), {"a": 1, "b": None}, "", 0, None])
def test_success_completes_the_record(shop: Shop, doc_id: Any) -> None:
    """B-24, B-31: whatever kind of id the document has, its run sees it and is kept as a success."""
    celery_id = shop.run("succeeds", doc_id)
    record = shop.settled("succeeds", doc_id)
    assert (record["status"], record["attempts"], record["nextRunAt"]) == ("completed", 1, None)
    assert record["completedAt"] == record["lastFinalizedAt"] == record["lastSuccess"]["at"]
    assert [entry["status"] for entry in record["executionHistory"]] == ["completed"]
    (run,) = shop.notes("ran", doc=doc_id)
    assert run["seen"] == {"_id": doc_id, "v": 1}
    assert run["watched"] == {"v": 1}
    assert (run["attempt"], run["id"], run["retries"]) == (1, celery_id, 0)


def test_failure_waits_by_the_policy_and_then_fails_for_good(shop: Shop) -> None:
    """B-25: pending with the policy's wait while attempts are left, then failed."""
    shop.run("fails", "f")
    first = shop.settled("fails", "f")
    assert (first["status"], first["attempts"], first["lastError"]) == ("pending", 1, "$broken")
    assert waits(first) == POLICY_WAIT
    assert first["_r"]["error"]["type"] == "ValueError"
    assert "proj.py" in first["_r"]["error"]["traceback"]
    records.retry_by_hand(shop.database.docs_tasks, [first["_id"]])
    shop.publish("fails", "f")
    last = shop.settled("fails", "f", after=first)
    assert (last["status"], last["attempts"], last["nextRunAt"]) == ("failed", 2, None)
    assert last["firstErrorAt"] == first["firstErrorAt"]


@pytest.mark.parametrize("doc_id", ["unprintable", "unpicklable", "huge", "surrogate"])
def test_whatever_is_raised_is_a_failed_attempt(shop: Shop, doc_id: str) -> None:
    """B-25: exceptions without text, that do not pickle, megabytes long, that no encoder takes."""
    shop.run("fails_oddly", doc_id)
    record = shop.settled("fails_oddly", doc_id)
    assert (record["status"], record["attempts"]) == ("pending", 1)
    assert 0 < len(record["lastError"].encode()) <= 8 * 1024


def test_too_little_memory_is_a_failed_attempt(shop: Shop) -> None:
    """B-25: and it stays one where Celery ends the whole worker for it, as it does but on threads and gevent."""
    shop.run("fails_oddly", "memory")
    record = shop.settled("fails_oddly", "memory")
    if shop.pool in {"prefork", "solo"}:
        shop.worker.wait()
        assert shop.record("fails_oddly", "memory")["executionHistory"] == record["executionHistory"]
        shop.start(shop.pool)
    assert (record["status"], record["attempts"], record["lastError"]) == ("pending", 1, "none left")


def test_a_deferral_is_no_attempt(shop: Shop) -> None:
    """B-34: pending at the time, attempts as before, and a held one stays there although the data changes."""
    shop.run("defers", "deferred", "held")
    for doc_id in ("deferred", "held"):
        record = shop.settled("defers", doc_id)
        assert (record["status"], record["attempts"], record["_r"]["deferrals"]) == ("pending", 0, 1)
        assert timedelta(minutes=59) < record["nextRunAt"] - record["startedAt"] <= timedelta(minutes=61)
        shop.database.docs.update_one({"_id": doc_id}, {"$set": {"v": 2}})
        shop.observe("defers", doc_id)
    far = shop.record("defers", "deferred")["startedAt"] + timedelta(minutes=50)
    assert shop.record("defers", "deferred")["nextRunAt"] < far < shop.record("defers", "held")["nextRunAt"]


def test_a_throttle_keeps_later_claims_away(shop: Shop) -> None:
    """B-35: in force although the handler raised; what is refused stays pending and is sent again when it ends."""
    shop.run("throttles", "first")
    assert shop.settled("throttles", "first")["lastError"] == "after it"
    shop.plan("throttles", "second")
    shop.database.docs_tasks.update_one({"_id.d": "second"}, {"$set": {"_r.sent": True}})
    shop.publish("throttles", "second")
    shop.wait(lambda: not shop.record("throttles", "second")["_r"]["sent"])
    record = shop.record("throttles", "second")
    assert (record["status"], record["attempts"]) == ("pending", 0)


@pytest.mark.parametrize("doc_id", ["moved", "swallowed", "raised", "ignored", "marked"])
def test_newer_values_get_their_run(shop: Shop, doc_id: str) -> None:
    """B-33: whatever the handler makes of it, the record waits with the values as read, no attempt spent."""
    if doc_id == "marked":
        shop.plan("reads", doc_id)
        shop.database.docs.update_one({"_id": doc_id}, {"$set": {"v": 2}})
        shop.publish("reads", doc_id)
    else:
        shop.run("reads", doc_id)
    record = shop.settled("reads", doc_id)
    assert (record["status"], record["attempts"], record["lastObservedValues"]) == ("pending", 0, {"v": 2})
    assert timedelta(seconds=0.5) < record["nextRunAt"] - record["updatedAt"] <= timedelta(seconds=1)


@pytest.mark.parametrize("doc_id", ["left", "gone"])
def test_a_document_that_is_off_ends_the_run_as_skipped(shop: Shop, doc_id: str) -> None:
    """B-32: completed without an error, and marked, so that its return is a change."""
    shop.run("reads", doc_id)
    record = shop.settled("reads", doc_id)
    assert (record["status"], record["lastError"], record["_r"].get(doc_id)) == ("completed", None, True)
    assert record["executionHistory"][-1]["status"] == "skipped"


def test_an_outdated_record_outside_the_stored_filter_is_skipped_unseen(shop: Shop) -> None:
    """B-32: observed under an older definition; the handler is not called."""
    definition = shop.runtime.registry.get("fails_at_last")
    shop.plan("fails_at_last", "outdated", generation=0)
    definitions.define(shop.runtime.connection.globals(), definition, namespace="w.docs", collated=False, term=1)
    shop.database.docs.update_one({"_id": "outdated"}, {"$set": {"task": "another"}})
    shop.publish("fails_at_last", "outdated")
    record = shop.settled("fails_at_last", "outdated")
    assert (record["status"], record["_r"].get("left")) == ("completed", True)


def test_completing_alone_is_final(shop: Shop) -> None:
    """B-36: what the handler raises or defers afterwards changes nothing."""
    shop.run("marks", "alone")
    assert shop.settled("marks", "alone")["status"] == "completed"
    celery_id = shop.publish("marks", "alone")
    shop.wait(lambda: shop.notes("postrun", id=celery_id))
    assert shop.record("marks", "alone")["lastError"] is None


def test_completing_in_a_transaction_goes_with_it(shop: Shop) -> None:
    """B-36: committed, both are there, whatever is raised after; aborted, neither, and the run goes on."""
    shop.run("marks", "committed", "aborted")
    assert shop.settled("marks", "committed")["status"] == "completed"
    aborted = shop.settled("marks", "aborted")
    assert (aborted["status"], aborted["_r"]["deferrals"]) == ("pending", 1)
    # Its fail point would hit a statement of any other run.
    shop.run("marks", "repeated")
    assert shop.settled("marks", "repeated")["status"] == "completed"
    shop.wait(lambda: shop.notes("repeated", times=2))
    assert sorted(out["doc"] for out in shop.database.out.find()) == ["committed", "repeated"]
    assert "lease_lost" not in shop.worker.text()
    assert "lease lost" not in shop.worker.text()


# --- Celery's ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doc_id", "status", "attempts", "error"),
    [
        ("countdown", "pending", 1, None),
        ("with exc", "pending", 1, "'asked'"),
        ("in except", "pending", 1, "inner"),
        ("unpicklable", "pending", 1, "locked"),
        ("enormous", "pending", 1, None),
        ("spent", "failed", 1, "'spent'"),
        ("ignore", "completed", 1, None),
        ("reject", "failed", 1, "no"),
        ("requeue", "pending", 1, "later"),
        ("replace", "pending", 1, None),
    ],
)
def test_celerys_ways_go_through_the_record(
    shop: Shop, doc_id: str, status: str, attempts: int, error: str | None
) -> None:
    """B-40: retry, Ignore, Reject and replace; no second message is ever sent."""
    shop.run("retries", doc_id)
    record = shop.settled("retries", doc_id)
    assert (record["status"], record["attempts"]) == (status, attempts)
    assert error is None or record["lastError"] == error
    hour = timedelta(hours=1)
    expected = {"countdown": hour, "with exc": hour, "requeue": timedelta(0), "enormous": LONGEST}
    if status == "pending":
        assert waits(record) == expected.get(doc_id, POLICY_WAIT)
    if doc_id == "unpicklable":
        assert record["_r"]["error"]["type"] == "ValueError"
    if doc_id == "ignore":
        assert record["executionHistory"][-1]["status"] == "skipped"


def test_autoretry_is_a_failed_attempt_with_its_countdown(shop: Shop) -> None:
    """B-40: `autoretry_for` goes through the record as well."""
    shop.run("retries_by_itself", "auto")
    record = shop.settled("retries_by_itself", "auto")
    assert (record["status"], record["lastError"], waits(record)) == ("pending", "auto", timedelta(hours=1))


def test_autoretry_sees_what_a_coroutine_raises(shop: Shop) -> None:
    """B-1, B-40: Celery's own wrapper would see a coroutine returned."""
    shop.run("awaits_and_retries", "auto")
    record = shop.settled("awaits_and_retries", "auto")
    assert (record["status"], record["lastError"], waits(record)) == ("pending", "'auto'", timedelta(hours=1))


def test_another_tasks_retry_is_not_this_runs(shop: Shop) -> None:
    """B-40: a reactive task that a handler calls itself is the user's own call, whose `retry` raises its error."""
    shop.run("asks_for_help", "helped")
    assert shop.settled("asks_for_help", "helped")["status"] == "completed"
    assert shop.notes("not helped", doc="helped")


def test_a_cancelled_coroutine_is_a_failed_attempt(shop: Shop) -> None:
    """B-1, B-25: and no more than that; the process goes on, whether attempts are left or not."""
    shop.run("is_cancelled", "c")
    first = shop.settled("is_cancelled", "c")
    assert (first["status"], first["lastError"], waits(first)) == ("pending", "by itself", POLICY_WAIT)
    records.retry_by_hand(shop.database.docs_tasks, [first["_id"]])
    shop.publish("is_cancelled", "c")
    assert shop.settled("is_cancelled", "c", after=first)["status"] == "failed"
    assert "Task handler raised error: CancelledError" not in shop.worker.text()


def test_coroutines_run_on_one_loop(shop: Shop) -> None:
    """B-1: a coroutine function is run to completion."""
    shop.run("awaits", "a1", "a2", "a3")
    assert all(shop.settled("awaits", doc_id)["status"] == "completed" for doc_id in ("a1", "a2", "a3"))
    loops = {(run["pid"], run["loop"]) for run in shop.notes("ran") if "loop" in run}
    assert len(loops) == len({pid for pid, _ in loops})


def test_a_base_of_the_users_own_is_kept(shop: Shop) -> None:
    """B-1, B-40: its `__call__` and its hooks are called, and a return value is dropped."""
    celery_id = shop.run("based", "b")
    assert shop.settled("based", "b")["status"] == "completed"
    shop.wait(lambda: shop.notes("on_success", id=celery_id))
    (run,) = shop.notes("ran", doc="b")
    assert run["id"] == celery_id
    assert len(shop.notes("own call")) == 1


@pytest.mark.parametrize("task", ["shared", "plain"])
def test_shared_tasks_and_plain_functions_are_reactive_too(shop: Shop, task: str) -> None:
    """B-1."""
    shop.run(task, task)
    assert shop.settled(task, task)["status"] == "completed"


def test_a_users_own_call_is_no_run(shop: Shop) -> None:
    """B-40: `.delay()` runs the function with the arguments given."""
    shop.app.tasks["unmanaged"].delay(1, two="2")
    shop.wait(lambda: shop.notes("unmanaged", args=["1"], kwargs={"two": "2"}))


def test_the_caller_of_the_setting_wraps_each_run(shop: Shop) -> None:
    """B-37: and cannot make a failure a success by swallowing it."""
    shop.run("fails", "swallowed by the caller")
    assert shop.settled("fails", "swallowed by the caller")["lastError"] == "$broken"
    assert shop.notes("caller", doc="swallowed by the caller")


def test_a_context_works_from_other_threads_until_the_run_ends(shop: Shop) -> None:
    """B-31: afterwards it says so."""
    shop.run("keeps_context", "k")
    shop.wait(lambda: shop.notes("after"))
    assert shop.notes("in thread", seen=1)
    assert shop.settled("keeps_context", "k")["status"] == "completed"


# --- messages --------------------------------------------------------------------------------------


def test_each_record_of_a_message_is_a_run_of_its_own(shop: Shop) -> None:
    """B-22, B-40: one of five fails, the others do not, and Celery's signals tell of each once."""
    shop.plan("in_company", *range(1, 6))
    shop.publish("in_company", *range(1, 6))
    states = {doc_id: shop.settled("in_company", doc_id)["status"] for doc_id in range(1, 6)}
    assert states == {1: "completed", 2: "completed", 3: "pending", 4: "completed", 5: "completed"}
    definition = shop.runtime.registry.get("in_company")
    namespace = shop.runtime.connection.namespace(definition)
    ids = {doc_id: RecordKey("in_company", doc_id).celery_id(namespace, 0) for doc_id in states}
    for doc_id, celery_id in ids.items():
        shop.wait(functools.partial(shop.notes, "postrun", id=celery_id))
        assert len(shop.notes("prerun", id=celery_id)) == 1
        (end,) = shop.notes("postrun", id=celery_id)
        assert end["state"] == ("RETRY" if doc_id == 3 else "SUCCESS")


def test_nobody_waits_behind_a_slow_neighbour(shop: Shop) -> None:
    """Design, chunks: what ended before it is durable, what has not begun is given back while the neighbour runs."""
    company = ("quick in company", "slow in company", "behind the slow")
    shop.plan("waits", *company)
    shop.database.go.insert_one({"_id": company[0]})
    shop.publish("waits", *company)
    shop.wait(lambda: shop.notes("waiting", doc=company[1]))
    assert shop.settled("waits", company[0])["status"] == "completed"
    behind = shop.settled("waits", company[2])
    assert (behind["status"], behind["attempts"]) == ("pending", 0)
    assert shop.record("waits", company[1])["status"] == "processing"
    shop.database.go.insert_one({"_id": company[1]})
    assert shop.settled("waits", company[1])["status"] == "completed"
    assert not shop.notes("waiting", doc=company[2])


def test_a_doubled_message_runs_once(shop: Shop) -> None:
    """B-22."""
    shop.plan("succeeds", "double")
    for _ in range(3):
        shop.publish("succeeds", "double")
    shop.settled("succeeds", "double")
    shop.run("succeeds", "after the double")
    shop.settled("succeeds", "after the double")
    assert len(shop.notes("ran", doc="double")) == 1


def test_a_message_does_not_expire(shop: Shop) -> None:
    """B-22: it is a wake-up; one that comes late must not fail a record that nobody has run."""
    shop.plan("succeeds", "late")
    definition = shop.runtime.registry.get("succeeds")
    due = Due(RecordKey("succeeds", "late"), 0, 0, alone=False)
    namespace = shop.runtime.connection.namespace(definition)
    late = {**message_for(namespace=namespace, due=[due], max_attempts=1), "expires": -60}
    shop.app.tasks["succeeds"].apply_async(**late)
    assert shop.settled("succeeds", "late")["status"] == "completed"


@pytest.mark.parametrize(
    "change",
    [
        {"args": ("no list",)},
        {"args": ([{"$oid": 5}],)},
        {"args": (["not json"],)},
        {"args": (["1", "2"],)},
        {"headers": {"reactive": {"v": 99, "cycles": [0]}}},
        {"headers": {"reactive": {}}},
    ],
)
def test_a_message_that_cannot_be_read_claims_nothing(shop: Shop, change: dict[str, Any]) -> None:
    """B-22: it is logged and gone; the worker goes on."""
    shop.plan("succeeds", "unread")
    due = Due(RecordKey("succeeds", "unread"), 0, 0, alone=False)
    message = message_for(namespace="x", due=[due], max_attempts=1)
    shop.app.tasks["succeeds"].apply_async(**{**message, **change})
    marker = f"after {uuid.uuid4()}"
    shop.run("succeeds", marker)
    shop.settled("succeeds", marker)
    assert shop.record("succeeds", "unread")["attempts"] == 0


# --- who dies, who stops ---------------------------------------------------------------------------


@pytest.mark.parametrize("doc_id", ["killed/alone", "exits/alone"])
def test_a_pool_process_that_ends_is_a_failed_attempt_at_once(shop: Shop, doc_id: str) -> None:
    """B-28: noticed by the worker's parent process, long before the lease ends."""
    prefork_only(shop)
    shop.run("dies", doc_id)
    record = shop.settled("dies", doc_id)
    assert (record["status"], record["attempts"]) == ("pending", 1)
    assert record["executionHistory"][-1]["status"] == "failed"
    assert record["lastError"]


def test_a_process_lost_in_company_costs_nobody_an_attempt(shop: Shop) -> None:
    """B-28: which of the records it had claimed killed it is not known, so that each runs again alone."""
    prefork_only(shop)
    company = ("killed/in company", "beside")
    shop.plan("dies", *company)
    shop.publish("dies", *company)
    for doc_id in company:
        record = shop.settled("dies", doc_id)
        assert (record["status"], record["attempts"], record["_r"].get("alone")) == ("pending", 0, True)


@pytest.mark.parametrize("task", ["overruns", "overruns_softly"])
def test_a_time_limit_is_a_failed_attempt(shop: Shop, task: str) -> None:
    """B-30: and the next one does not start before the old process is dead."""
    prefork_only(shop)
    shop.run(task, task)
    record = shop.settled(task, task)
    assert (record["status"], record["attempts"]) == ("pending", 1)
    assert "imeLimitExceeded" in record["_r"]["error"]["type"]


def test_a_revoked_task_fails_its_record(shop: Shop) -> None:
    """B-40: else it would be dispatched again for ever."""
    shop.plan("succeeds", "revoked")
    definition = shop.runtime.registry.get("succeeds")
    celery_id = RecordKey("succeeds", "revoked").celery_id(shop.runtime.connection.namespace(definition), 0)
    shop.app.control.revoke(celery_id)
    shop.wait(lambda: f"revoked: {celery_id}" in shop.worker.text())
    shop.publish("succeeds", "revoked")
    shop.wait(lambda: shop.record("succeeds", "revoked")["status"] == "failed")
    assert not shop.notes("ran", doc="revoked")


def test_a_revoked_task_fails_its_record_also_in_company(shop: Shop) -> None:
    """B-40: under load several records travel in one message; the others of it run."""
    company = ("revoked in company", "beside the revoked")
    shop.plan("succeeds", *company)
    definition = shop.runtime.registry.get("succeeds")
    celery_id = RecordKey("succeeds", company[0]).celery_id(shop.runtime.connection.namespace(definition), 0)
    shop.app.control.revoke(celery_id)
    shop.wait(lambda: f"revoked: {celery_id}" in shop.worker.text())
    shop.publish("succeeds", *company)
    assert shop.settled("succeeds", company[1])["status"] == "completed"
    assert shop.record("succeeds", company[0])["status"] == "failed"
    assert not shop.notes("ran", doc=company[0])


def test_a_terminated_task_fails_its_record(shop: Shop) -> None:
    """B-40."""
    prefork_only(shop)
    celery_id = shop.run("waits", "terminated")
    shop.wait(lambda: shop.notes("waiting", doc="terminated"))
    shop.app.control.revoke(celery_id, terminate=True)
    shop.wait(lambda: shop.record("waits", "terminated")["status"] == "failed")


def test_a_terminated_task_fails_its_record_also_in_company(shop: Shop) -> None:
    """B-40: the process ends with it; its neighbours run again, no attempt spent."""
    prefork_only(shop)
    company = ("terminated in company", "beside the terminated")
    shop.plan("waits", *company)
    celery_id = shop.publish("waits", *company)
    shop.wait(lambda: shop.notes("waiting", doc=company[0]))
    shop.app.control.revoke(celery_id, terminate=True)
    shop.wait(lambda: shop.record("waits", company[0])["status"] == "failed")
    beside = shop.record("waits", company[1])
    assert (beside["status"], beside["attempts"]) == ("pending", 0)


def test_remote_control_finds_each_record_of_a_message(shop: Shop) -> None:
    """B-40: by its own id, as active as its message, and not beyond it."""
    prefork_only(shop)
    company = ("found in company", "found beside")
    shop.plan("waits", *company)
    celery_id = shop.publish("waits", *company)
    shop.wait(lambda: shop.notes("waiting", doc=company[0]))
    inspect = shop.app.control.inspect(timeout=5, limit=1)
    ((state, info),) = [tasks[celery_id] for tasks in (inspect.query_task(celery_id) or {}).values()]
    assert (state, info["id"]) == ("active", celery_id)
    shop.database.go.insert_many([{"_id": doc_id} for doc_id in company])
    shop.settled("waits", company[1])
    shop.wait(lambda: not any((inspect.query_task(celery_id) or {}).values()))


def test_a_success_survives_the_loss_of_the_database(shop: Shop) -> None:
    """B-29: the end of the run is written when MongoDB answers again, and it is a success."""
    shop.run("waits", "unlucky")
    shop.wait(lambda: shop.notes("waiting", doc="unlucky"))
    admin = shop.runtime.connection.client.admin
    failing = {"failCommands": ["findAndModify"], "errorCode": 6, "errorLabels": ["RetryableWriteError"]}
    admin.command({"configureFailPoint": "failCommand", "mode": {"times": 6}, "data": failing})
    shop.database.go.insert_one({"_id": "unlucky"})
    assert shop.settled("waits", "unlucky")["status"] == "completed"
    assert "lease lost" not in shop.worker.text()


def test_a_success_written_without_an_answer_stays_one(shop: Shop) -> None:
    """B-29: the statement was applied, the answer was lost; saying so again finds its own mark."""
    shop.run("waits", "unheard")
    shop.wait(lambda: shop.notes("waiting", doc="unheard"))
    admin = shop.runtime.connection.client.admin
    failing = {"failCommands": ["findAndModify"], "writeConcernError": {"code": 64, "errmsg": "waiting timed out"}}
    admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failing})
    shop.database.go.insert_one({"_id": "unheard"})
    assert shop.settled("waits", "unheard")["status"] == "completed"
    shop.run("succeeds", "after the unheard")
    shop.settled("succeeds", "after the unheard")
    assert "lease lost" not in shop.worker.text()


def test_a_claim_made_without_an_answer_is_run(shop: Shop) -> None:
    """B-23: the worker looks whether the token is its own; no lease has to end, and no attempt is spent."""
    shop.plan("succeeds", "unheard claim")
    admin = shop.runtime.connection.client.admin
    failing = {"failCommands": ["findAndModify"], "writeConcernError": {"code": 64, "errmsg": "waiting timed out"}}
    admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failing})
    shop.publish("succeeds", "unheard claim")
    record = shop.settled("succeeds", "unheard claim")
    assert (record["status"], record["attempts"]) == ("completed", 1)


# --- what monitors see -----------------------------------------------------------------------------


def test_monitors_see_how_each_run_ended(shop: Shop) -> None:
    """B-56: succeeded, retried and skipped, under the record's id."""
    with listening(shop.app) as events:
        expected = {
            shop.run("succeeds", "monitored"): "task-succeeded",
            shop.run("fails", "monitored too"): "task-retried",
            shop.run("fails_at_last", "monitored at last"): "task-failed",
            shop.run("retries", "ignore/monitored"): "task-skipped",
        }
        shop.wait(lambda: expected.items() <= {(event.get("uuid"), event["type"]) for event in events})


def test_monitors_see_each_record_of_a_message(shop: Shop) -> None:
    """B-56: of a message that names several, each has a row of its own, and the message none."""
    shop.plan("in_company", *range(31, 36))
    with listening(shop.app) as events:
        shop.publish("in_company", *range(31, 36))
        namespace = shop.runtime.connection.namespace(shop.runtime.registry.get("in_company"))
        ids = {RecordKey("in_company", doc_id).celery_id(namespace, 0): doc_id for doc_id in range(31, 36)}

        def told(doc_id: int) -> list[str]:
            return [event["type"] for event in events if ids.get(event.get("uuid", "")) == doc_id]

        ends = {doc_id: "task-retried" if doc_id % 10 == 3 else "task-succeeded" for doc_id in ids.values()}
        shop.wait(lambda: all(ends[doc_id] in told(doc_id) for doc_id in ends))
        assert {doc_id: told(doc_id) for doc_id in ends} == {
            doc_id: ["task-received", "task-started", end] for doc_id, end in ends.items()
        }
        of_tasks = [
            event for event in events if event["type"].startswith("task-") and event.get("name") == "in_company"
        ]
        assert {event["uuid"]: event["args"] for event in of_tasks} == {id_: f"({doc})" for id_, doc in ids.items()}


def test_monitors_hear_of_no_run_where_all_of_a_message_are_revoked(shop: Shop) -> None:
    """B-40, B-56: an event names a record, or is not sent."""
    company = ("all revoked", "all revoked too")
    shop.plan("succeeds", *company)
    namespace = shop.runtime.connection.namespace(shop.runtime.registry.get("succeeds"))
    ids = [RecordKey("succeeds", doc_id).celery_id(namespace, 0) for doc_id in company]
    with listening(shop.app) as events:
        shop.app.control.revoke(ids)
        shop.wait(lambda: all(celery_id in shop.worker.text() for celery_id in ids))
        shop.publish("succeeds", *company)
        shop.wait(lambda: all(shop.record("succeeds", doc_id)["status"] == "failed" for doc_id in company))
        marker = shop.run("succeeds", "after all revoked")
        shop.wait(lambda: any(event.get("uuid") == marker and event["type"] == "task-succeeded" for event in events))
        told = [(event["type"], event["uuid"]) for event in events if event["type"].startswith("task-")]
    assert [uuid_ for type_, uuid_ in told if type_ == "task-started"] == [marker]
    assert {uuid_ for type_, uuid_ in told if type_ == "task-revoked"} == set(ids)


@pytest.mark.parametrize(
    ("doc_id", "end"), [("killed/monitored", "task-retried"), ("killed/monitored at last", "task-failed")]
)
def test_monitors_see_whether_a_lost_process_is_tried_again(shop: Shop, doc_id: str, end: str) -> None:
    """B-56: a row that says FAILURE would stay so, though the record is tried again and succeeds."""
    prefork_only(shop)
    with listening(shop.app) as events:
        task = "dies_at_last" if end == "task-failed" else "dies"
        celery_id = shop.run(task, doc_id)
        shop.settled(task, doc_id)
        marker = shop.run("succeeds", f"after {doc_id}")
        shop.wait(lambda: any(event.get("uuid") == marker and event["type"] == "task-succeeded" for event in events))
        told = [event["type"] for event in events if event.get("uuid") == celery_id]
    assert told == ["task-received", "task-started", end]
    said = "run failed, no attempts left" if end == "task-failed" else "run failed, will be tried again"
    assert any(said in line and doc_id in line for line in shop.worker.text().splitlines())


def test_the_workers_parent_starts_no_thread(shop: Shop) -> None:
    """Design, Celery: a thread in the process that forks leaves its children hanging."""
    prefork_only(shop)
    tasks = Path(f"/proc/{shop.worker.pid}/task")
    if not tasks.exists():
        pytest.skip("needs /proc")
    names = {(task / "comm").read_text().strip() for task in tasks.iterdir()}
    assert not {name for name in names if "reactive" in name or "pymongo" in name}, names

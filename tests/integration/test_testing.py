"""`celery_reactive.testing` and its fixtures, used as a user's suite uses them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from pymongo.database import Database

from celery_reactive import ConfigurationError, Reactive, TaskContext, UnknownTaskError, embedded, reactive_task
from celery_reactive.core.states import RecordState
from celery_reactive.planner.plan import Planning
from celery_reactive.store.change_stream import Change
from celery_reactive.testing import (
    assert_no_errors,
    configured,
    fast,
    make_due,
    run_inline,
    wait_until,
    wait_until_idle,
)

ReactiveApp = Callable[..., Reactive]
Handler = Callable[[TaskContext], object]


@pytest.fixture(scope="session")
def reactive_mongodb_url(mongo_server: embedded.MongoServer | embedded.ExternalServer) -> str:
    """The server of our own tests instead of a second one."""
    return mongo_server.url


class Shop:
    """An app whose tasks are made in the test; its settings lead nowhere, so that a test must give others."""

    def __init__(self) -> None:
        self.app = Celery("shop", broker="redis://127.0.0.1:1", set_as_current=False)
        self.app.conf.reactive_mongodb_url = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100"

    def task(self, name: str, handler: Handler, **options: Any) -> None:
        """Declare a reactive task."""

        def run(ctx: TaskContext) -> None:
            handler(ctx)

        celery_task = self.app.task(name=name, shared=False)(run)
        reactive_task(**{"collection": "orders", "task": name, **options})(celery_task)

    def record(self, task: str, doc_id: Any) -> Any:
        """Return a record."""
        (record,) = Reactive.of(self.app).get_tasks(task=task, doc_id=doc_id).items
        return record


@pytest.fixture
def shop() -> Shop:
    """An app of the test's own."""
    return Shop()


def fail(_: TaskContext) -> None:
    """Fail."""
    raise ValueError("out of stock")


def succeed(_: TaskContext) -> None:
    """Succeed."""


class Runs(list[Any]):
    """A handler that keeps the ids it was called with."""

    def __call__(self, ctx: TaskContext) -> None:
        """Note the document."""
        self.append(ctx.doc_id)


def orders(shop: Shop) -> Any:
    """Return the watched collection, over the app's own connection."""
    return Reactive.of(shop.app).runtime.connection.database().orders


# --- planner and worker in this process --------------------------------------------------------------


def test_a_write_runs_the_handler(shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]) -> None:
    """The whole way: change stream, record, message, claim, handler, outcome."""
    runs = Runs()
    shop.task("sync", runs, filter={"status": "paid"})
    reactive_inline(shop.app)
    reactive_database.orders.insert_many([{"_id": 1, "status": "paid"}, {"_id": 2, "status": "new"}])
    wait_until_idle(shop.app)
    assert runs == [1]
    assert shop.record("sync", 1).status is RecordState.COMPLETED


def test_what_a_handler_writes_is_waited_for_too(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rest is when nothing follows from what has run; a planner that is behind has left no trace of what is to come."""
    steps = ["orders", "invoices", "mails", "archive", "done"]
    for source, target in itertools.pairwise(steps):
        shop.task(
            source,
            lambda ctx, to=target: reactive_database[to].insert_one({"_id": ctx.doc_id}),  # type: ignore[misc]
            collection=source,
        )
    plan_changes, behind = Planning.plan_changes, threading.Event()

    def plan_late(planning: Planning, changes: Sequence[Change], **options: Any) -> object:
        behind.wait(0.3)
        return plan_changes(planning, changes, **options)

    monkeypatch.setattr(Planning, "plan_changes", plan_late)
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 1})
    wait_until_idle(shop.app, stable_for=0)
    assert reactive_database.done.count_documents({}) == 1


def test_every_queue_is_served(shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]) -> None:
    """A task's own queue needs no option of the test's worker."""
    runs = Runs()
    shop.app.conf.task_routes = {"sync": {"queue": "erp"}}
    shop.task("sync", runs)
    shop.task("mail", runs)
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 1})
    wait_until_idle(shop.app)
    assert runs == [1, 1]


def test_tasks_of_every_planner_group_run(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-65: each group has its planner."""
    runs = Runs()
    shop.task("sync", runs, group="erp")
    shop.task("mail", runs)
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 1})
    wait_until_idle(shop.app)
    assert runs == [1, 1]


def test_what_was_there_before_is_looked_at_first(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-2: what is written inside the block is new, also for a task without `backfill`."""
    runs = Runs()
    shop.task("sync", runs, backfill=False)
    reactive_database.orders.insert_one({"_id": "old"})
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": "new"})
    wait_until_idle(shop.app)
    assert runs == ["new"]


def test_a_plain_task_is_a_message_too(shop: Shop, reactive_inline: ReactiveApp) -> None:
    """Whatever the suite sets for other tests, inside nothing is eager."""
    shop.app.conf.task_always_eager = True
    shop.task("sync", succeed)
    threads = []

    def note() -> None:
        threads.append(threading.current_thread())

    plain = shop.app.task(name="plain", shared=False)(note)
    reactive_inline(shop.app)
    plain.delay()
    wait_until(lambda: threads)
    assert threads[0] is not threading.current_thread()


def test_nothing_is_left_behind(shop: Shop, reactive_database_url: str) -> None:
    """No thread, no setting, no leader; a second block begins at once."""
    shop.task("sync", succeed, debounce="7s")
    before = set(threading.enumerate())
    for _ in range(2):
        with configured(shop.app, reactive_mongodb_url=reactive_database_url), fast(), run_inline(shop.app) as handle:
            assert handle.registry.get("sync").debounce.total_seconds() == 0
            orders(shop).insert_one({})
            wait_until_idle(shop.app)
    more = set(threading.enumerate()) - before
    left = {thread.name for thread in more if thread.name.startswith(("inline", "reactive"))}
    # The worker's heartbeat has one thread for the process, which sleeps.
    assert left <= {"reactive-heartbeat"}
    assert shop.app.conf.broker_url == "redis://127.0.0.1:1"
    assert handle.registry.get("sync").debounce.total_seconds() == 7
    assert shop.app.tasks["sync"].reactive.debounce.total_seconds() == 7


def test_two_at_once_are_refused(shop: Shop, reactive_inline: ReactiveApp) -> None:
    """Celery's worker keeps state for its process."""
    shop.task("sync", succeed)
    reactive_inline(shop.app)
    with pytest.raises(ConfigurationError, match="one at a time"), run_inline(shop.app):
        pass


@pytest.mark.mongod("explains what it could not run")
def test_a_task_that_cannot_be_planned_fails_the_start(shop: Shop, reactive_app: ReactiveApp) -> None:
    """B-3: in the test, not in a thread's log."""
    shop.task("sync", succeed, filter={"$expr": {"$noSuchOperator": 1}})
    reactive_app(shop.app)
    with pytest.raises(ConfigurationError, match="noSuchOperator"), run_inline(shop.app):
        pass


def test_the_apps_own_broker_may_be_used(
    shop: Shop, reactive_app: ReactiveApp, reactive_database: Database[Any], broker_url: str
) -> None:
    """For what a broker in memory does not do, priorities for one."""
    runs = Runs()
    shop.task("sync", runs)
    reactive_app(shop.app, broker_url=broker_url)
    with fast(), run_inline(shop.app, broker=None):
        reactive_database.orders.insert_one({"_id": 1})
        wait_until_idle(shop.app)
    assert runs == [1]


def test_the_fixture_takes_another_broker(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any], broker_url: str
) -> None:
    """A setting that is given wins over the fixture's."""
    brokers = []
    shop.task("sync", lambda _: brokers.append(shop.app.connection_for_read().transport.driver_type))
    reactive_inline(shop.app, broker_url=broker_url)
    reactive_database.orders.insert_one({"_id": 1})
    wait_until_idle(shop.app)
    assert brokers == [Connection(broker_url).transport.driver_type]


# --- time --------------------------------------------------------------------------------------------


def test_a_debounce_is_waited_for_where_it_is_in_force(
    shop: Shop, reactive_app: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-16: a change that waits for quiet is unfinished business."""
    runs = Runs()
    shop.task("sync", runs, debounce="700ms")
    reactive_app(shop.app)
    with run_inline(shop.app):
        reactive_database.orders.insert_one({"_id": 1})
        reactive_database.orders.update_one({"_id": 1}, {"$set": {"v": 2}})
        wait_until_idle(shop.app, stable_for=0)
        assert runs == [1]


def test_a_batch_waits_a_moment_for_company(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-60: where it is fast; all that was there is handled long before the batch's own wait is over."""
    handled: list[Any] = []
    shop.task("sync", lambda contexts: handled.extend(ctx.doc_id for ctx in contexts), batch=(5, "1h"))
    reactive_inline(shop.app)
    reactive_database.orders.insert_many([{"_id": 1}, {"_id": 2}])
    wait_until_idle(shop.app)
    assert sorted(handled) == [1, 2]


def test_a_record_that_backs_off_is_at_rest_and_can_be_made_due(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-25: the next attempt is the next attempt, an hour early."""
    attempts = []

    def flaky(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("the ERP is away")

    shop.task("sync", flaky, retry_policy={"type": "fixed", "interval": "1h"})
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 1})
    for attempt in (1, 2, 3):
        wait_until_idle(shop.app)
        assert attempts == list(range(1, attempt + 1))
        assert make_due(shop.app, "sync", 1) is (attempt < 3)
    assert shop.record("sync", 1).status is RecordState.COMPLETED


def test_a_deferred_record_can_be_made_due(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-34: it keeps its deferrals, and its attempts as before the run."""
    seen = []

    def defer_once(ctx: TaskContext) -> None:
        seen.append((ctx.attempt, ctx.deferrals))
        if not ctx.deferrals:
            ctx.defer_current("1d", hold=True)

    shop.task("sync", defer_once)
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 1})
    wait_until_idle(shop.app)
    assert make_due(shop.app, "sync", 1)
    wait_until_idle(shop.app)
    assert seen == [(1, 0), (1, 1)]


def test_what_does_not_wait_cannot_be_made_due(shop: Shop, reactive_app: ReactiveApp) -> None:
    """It says so, for a test that waits for a run would wait in vain."""
    shop.task("sync", succeed)
    reactive_app(shop.app)
    assert make_due(shop.app, "sync", "nobody") is False
    with pytest.raises(UnknownTaskError):
        make_due(shop.app, "synk", 1)


# --- failures of a test ------------------------------------------------------------------------------


def test_no_rest_is_explained(shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]) -> None:
    """The record, and why it does not run."""
    shop.task("sync", succeed)
    reactive_inline(shop.app).pause("sync")
    reactive_database.orders.insert_one({"_id": 17})
    with pytest.raises(AssertionError) as raised:
        wait_until_idle(shop.app, timeout=1)
    assert re.search(r"1 still to do:\n  sync\[17\] is pending, attempts 0", str(raised.value))
    assert "paused" in str(raised.value)


def test_no_rest_without_a_planner_says_that_there_is_none(shop: Shop, reactive_app: ReactiveApp) -> None:
    """The commonest mistake: the test has started nothing."""
    shop.task("sync", succeed)
    reactive_app(shop.app)
    with pytest.raises(AssertionError, match="no planner of the group 'default' leads"):
        wait_until_idle(shop.app, timeout="200ms")


def test_only_the_named_tasks_are_waited_for(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """Another may be at work."""
    shop.task("sync", succeed)
    shop.task("mail", succeed)
    reactive_inline(shop.app).pause("mail")
    reactive_database.orders.insert_one({})
    wait_until_idle(shop.app, only=["sync"])
    with pytest.raises(AssertionError, match="mail"):
        wait_until_idle(shop.app, timeout="300ms", only="mail")


def test_errors_are_shown_with_record_and_traceback(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """What a failed test needs, without a look into the database."""
    shop.task("sync", fail, retry_policy={"type": "fixed", "interval": "1h", "max_attempts": 1})
    shop.task("mail", succeed)
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 17})
    wait_until_idle(shop.app)
    with pytest.raises(AssertionError) as raised:
        assert_no_errors(shop.app)
    text = str(raised.value)
    assert text.startswith("there are errors (1):\n  sync[17] is failed, attempts 1\n    ValueError: out of stock\n")
    assert 'raise ValueError("out of stock")' in text


def test_expected_errors_are_passed_over(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """By text, by pattern, by task, by time."""
    shop.task("sync", fail)
    shop.task("mail", succeed)
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 17})
    wait_until_idle(shop.app)
    assert_no_errors(shop.app, exclude=["of stock"])
    assert_no_errors(shop.app, exclude=["ValueError: out"])
    assert_no_errors(shop.app, exclude=[re.compile("out of .*ck$")])
    assert_no_errors(shop.app, only=["mail"])
    assert_no_errors(shop.app, since=0)
    for criteria in (
        {"exclude": ["of socks"]},
        {"only": "sync"},
        {"since": "1h"},
        {"since": datetime(2000, 1, 1, tzinfo=UTC)},
    ):
        with pytest.raises(AssertionError, match="out of stock"):
            assert_no_errors(shop.app, **criteria)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="aware"):
        assert_no_errors(shop.app, since=datetime(2000, 1, 1))  # noqa: DTZ001 -- what is refused


def test_a_document_that_cannot_be_planned_is_an_error(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-20: it has no record, and no handler fails."""
    shop.task("sync", succeed, watch_projection={"n": {"$toInt": "$n"}})
    reactive_inline(shop.app)
    reactive_database.orders.insert_one({"_id": 17, "n": "seventeen"})
    wait_until_idle(shop.app)
    with pytest.raises(AssertionError, match=r"sync\[17\] could not be planned"):
        assert_no_errors(shop.app)
    assert_no_errors(shop.app, exclude=["seventeen"])


# --- an app's settings, for a while ------------------------------------------------------------------


def test_settings_are_as_before_after_the_block(shop: Shop, reactive_database_url: str) -> None:
    """Also those that were set inside, and whatever was raised."""
    name = f"q{uuid.uuid4().hex}"
    with (
        contextlib.suppress(LookupError),
        configured(shop.app, reactive_mongodb_url=reactive_database_url, task_default_queue=name) as handle,
    ):
        assert list(shop.app.amqp.queues) == [name]
        assert handle.runtime.settings.mongodb_url == reactive_database_url
        shop.app.conf.timezone = "Europe/Prague"
        raise LookupError
    assert shop.app.conf.timezone is None
    assert list(shop.app.amqp.queues) == ["celery"]
    assert handle.runtime.settings.mongodb_url.startswith("mongodb://127.0.0.1:1/")


def test_a_broker_in_the_environment_is_not_written_to(
    shop: Shop, reactive_inline: ReactiveApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery prefers `$CELERY_BROKER_URL` to a setting, and a test must not send messages to production."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1")
    shop.task("sync", succeed)
    calls = []

    def note() -> None:
        calls.append(1)

    plain = shop.app.task(name="plain", shared=False)(note)
    reactive_inline(shop.app)
    plain.delay()
    wait_until(lambda: calls)


# --- with other plugins ------------------------------------------------------------------------------

USERS_TEST = """
import pytest
from celery import Celery
from celery_reactive import reactive_task
from celery_reactive.testing import wait_until_idle, assert_no_errors

app = Celery("users", set_as_current=False)

@reactive_task(collection="orders", task="sync", debounce="30s")
@app.task
def sync(ctx):
    ctx.client.get_database(app.conf["name"]).seen.insert_one({"_id": ctx.doc_id})

def test_it(reactive_inline, reactive_database):
    app.conf["name"] = reactive_database.name
    reactive_inline(app)
    reactive_database.orders.insert_one({"_id": 1})
    wait_until_idle(app)
    assert reactive_database.seen.count_documents({}) == 1
    assert_no_errors(app)
"""


def run_pytest(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a user's folder with all plugins that are installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(folder / "pytest.ini"), *arguments],
        cwd=folder,
        env={**os.environ, "MONGODB_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_users_suite_runs_with_django_and_celery_plugins(tmp_path: Path, reactive_mongodb_url: str) -> None:
    """Neither disturbs the other, and the database blocker of pytest-django blocks nothing of ours."""
    pytest.importorskip("pytest_django")
    pytest.importorskip("pytest_celery")
    (tmp_path / "settings.py").write_text(
        "SECRET_KEY = 'x'\nDATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n")
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    ended = run_pytest(tmp_path, reactive_mongodb_url, "-v")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "django: version" in ended.stdout
    assert "celery-" in ended.stdout


def test_an_unused_plugin_imports_nothing(tmp_path: Path, reactive_mongodb_url: str) -> None:
    """Pytest starts as quickly as without it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_users.py").write_text(
        "import sys\n\ndef test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('pytest_celery_reactive')\n"
        "    assert not {'celery', 'pymongo', 'celery_reactive'} & set(sys.modules)\n"
    )
    others = ("celery", "randomly", "xdist", "django", "docker_tools", "schemathesis", "hypothesispytest")
    ended = run_pytest(tmp_path, reactive_mongodb_url, *(f"-pno:{other}" for other in others))
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_handler_that_triggers_itself_is_stopped_and_resumed(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-64: end to end, through the real stream; the other document goes on."""
    runs, mended = Runs(), threading.Event()

    def count(ctx: TaskContext) -> None:
        runs(ctx)
        if ctx.doc_id == 1 and not mended.is_set():
            reactive_database.orders.update_one({"_id": 1}, {"$inc": {"runs": 1}})

    shop.task("count", count, loop_guard=5)
    reactive = reactive_inline(shop.app)
    reactive_database.orders.insert_many([{"_id": 1}, {"_id": 2}])
    wait_until_idle(shop.app)
    assert shop.record("count", 1).guarded
    assert runs.count(1) == 6
    assert runs.count(2) == 1
    reactive_database.orders.update_many({}, {"$set": {"by": "somebody else"}})
    wait_until(lambda: runs.count(2) == 2)
    wait_until_idle(shop.app)
    assert runs.count(1) == 6
    with pytest.raises(AssertionError, match="its handler triggers itself"):
        assert_no_errors(shop.app)
    mended.set()
    assert reactive.resume("count", 1)
    wait_until(lambda: shop.record("count", 1).status is RecordState.COMPLETED)
    assert runs.count(1) == 7


def test_a_deletion_runs_and_a_dropped_collection_does_not(
    shop: Shop, reactive_inline: ReactiveApp, reactive_database: Database[Any]
) -> None:
    """B-61: end to end, through the real stream."""
    told: list[Any] = []
    shop.task("sync", lambda ctx: told.append((ctx.doc_id, ctx.deleted, ctx.watched_values)), on_delete=True)
    reactive_inline(shop.app)
    reactive_database.orders.insert_many([{"_id": 1, "v": 1}, {"_id": 2, "v": 2}])
    wait_until_idle(shop.app)
    reactive_database.orders.delete_one({"_id": 1})
    wait_until_idle(shop.app)
    assert sorted(told) == [
        (1, False, {"_id": 1, "v": 1}),
        (1, True, {"_id": 1, "v": 1}),
        (2, False, {"_id": 2, "v": 2}),
    ]
    reactive_database.orders.drop()
    wait_until(lambda: shop.record("sync", 2).gone)
    wait_until_idle(shop.app)
    assert len(told) == 3

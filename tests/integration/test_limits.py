"""Limits on starts: exact for the whole cluster, whoever takes, confirms, vanishes or changes them (B-58)."""

from __future__ import annotations

import heapq
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from celery import Celery
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pymongo import ReturnDocument
from pymongo.collection import Collection

from celery_reactive import Reactive, reactive_task, signals
from celery_reactive.core.limits import Limits, Rate
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Completed, Outcome
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ConfigurationError, StoreUnavailableError, UnknownTaskError
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.rescue import Rescuer
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, limiters, records
from celery_reactive.store.connection import Connection
from celery_reactive.store.pipelines import limiters as pipelines
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute
from celery_reactive.worker.run import Run
from tests.integration import limited_worker
from tests.integration.bench import LEASE, TOOK, Bench, each
from tests.integration.conftest import MakeBench

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = timedelta(seconds=1)


@pytest.fixture
def globals_(connection: Connection) -> Collection[dict[str, Any]]:
    """The globals collection."""
    return connection.globals()


class Delivery(NamedTuple):
    """What one message does to a limiter, in milliseconds and shares."""

    after: int
    """The one before."""
    wanted: int
    rate: int
    """Starts a second, as set at that time."""
    given_back: int
    """Of what was granted, so much is not claimed."""
    begins: float
    """When its runs start, as a share of the time in which they may."""
    told: int | None
    """How long after that it is noted; None: never."""


deliveries = st.builds(
    Delivery,
    after=st.integers(0, 400),
    wanted=st.integers(1, 6),
    rate=st.sampled_from([5, 5, 5, 2, 9]),
    given_back=st.integers(0, 2),
    begins=st.floats(0, 1),
    told=st.none() | st.integers(0, 900),
)


class Clockwork:
    """A limiter under a clock of the test's."""

    def __init__(self, globals_: Collection[dict[str, Any]]) -> None:
        self._globals = globals_
        globals_.delete_many({})

    def update(self, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        """Apply a pipeline."""
        found: Any = self._globals.find_one_and_update(
            {"_id": 1}, pipeline, upsert=True, return_document=ReturnDocument.AFTER
        )
        return dict(found)

    def start(self, limits: Limits, milliseconds: int) -> int:
        """Take a start at a time and note it at once; return how many were granted."""
        now = BEGINNING + timedelta(milliseconds=milliseconds)
        granted: int = self.update(pipelines.take(str(now), [1], 1, limits, now=now))["last"]["n"]
        self.update(pipelines.settle(str(now), limits, started=granted, frees=True, now=now))
        return granted

    def play(self, script: list[Delivery]) -> list[tuple[datetime, int]]:
        """Return the starts that come of it, in the order of their grants, each with the rate it was granted under."""
        starts: list[tuple[datetime, int]] = []
        ends: list[tuple[datetime, str, int, Limits]] = []
        now = BEGINNING
        for number, one in enumerate(script):
            now += timedelta(milliseconds=one.after)
            while ends and ends[0][0] <= now:
                at, token, count, under = heapq.heappop(ends)
                self.update(pipelines.settle(token, under, started=count, frees=True, now=at))
            limits = Limits(Rate(one.rate, PERIOD))
            token = f"delivery {number}"
            granted = self.update(pipelines.take(token, [number], one.wanted, limits, now=now))["last"]["n"]
            claimed = max(0, granted - one.given_back)
            self.update(pipelines.keep(token, claimed))
            begun = now + timedelta(milliseconds=int(one.begins * PERIOD.total_seconds() * 250))
            starts += [(begun, one.rate)] * claimed
            if one.told is not None:
                heapq.heappush(ends, (begun + timedelta(milliseconds=one.told), token, claimed, limits))
        return starts


def fullest(starts: list[tuple[datetime, int]]) -> int:
    """Return by how many starts a window exceeds the rate that its last granted start was granted under; at most 0."""
    windows = [[rate for at, rate in starts if first <= at < first + PERIOD] for first in {at for at, _ in starts}]
    return max((len(window) - window[-1] for window in windows), default=0)


@given(script=st.lists(deliveries, min_size=5, max_size=30))
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_holds_more_than_the_rate(globals_: Collection[dict[str, Any]], script: list[Delivery]) -> None:
    """B-58: whenever runs start within their time, are told of or not, and however the rate changes."""
    assert fullest(Clockwork(globals_).play(script)) <= 0


def test_a_limiter_stays_small(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: what is kept does not grow with the rate, and the rate is used up."""
    clock, limits = Clockwork(globals_), Limits(Rate(5000, PERIOD))
    granted, sizes = 0, []
    for number in range(600):
        now = BEGINNING + timedelta(milliseconds=5 * number)
        granted += clock.update(pipelines.take(str(number), [1], 40, limits, now=now))["last"]["n"]
        limiter = clock.update(pipelines.settle(str(number), limits, started=None, frees=True, now=now))
        sizes.append(len(limiter["starts"]))
    assert max(sizes) <= 100
    assert granted >= 3 * 5000 * 0.9


def test_a_backlog_uses_the_rate_up(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: starts that are known free their place a period later, not earlier and hardly later."""
    clock, limits = Clockwork(globals_), Limits(Rate(10, PERIOD))
    granted = 0
    for number in range(1000):
        now = BEGINNING + timedelta(milliseconds=10 * number)
        token = str(number)
        granted += clock.update(pipelines.take(token, [1], 1, limits, now=now))["last"]["n"]
        clock.update(pipelines.settle(token, limits, started=None, frees=True, now=now))
    assert 95 <= granted <= 100


def test_starts_of_one_moment_count_as_its_last(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: those that are noted within a small part of the period are kept as one."""
    clock, limits = Clockwork(globals_), Limits(Rate(2, PERIOD))
    assert [clock.start(limits, at) for at in (0, 20)] == [1, 1]
    assert [clock.start(limits, at) for at in (1001, 1020, 1021)] == [0, 0, 1]


def test_a_start_that_is_known_counts_from_then(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: and not from when it might have happened at the latest, whoever looks meanwhile."""
    clock, limits = Clockwork(globals_), Limits(Rate(1, PERIOD))
    assert [clock.start(limits, at) for at in (0, 200, 1000, 1001)] == [1, 0, 0, 1]


@pytest.mark.parametrize("are_told", [True, False])
def test_a_clock_set_back_holds_up_for_a_period_at_most(
    globals_: Collection[dict[str, Any]], *, are_told: bool
) -> None:
    """B-58: after a failover to a server whose clock is behind, what seems to lie ahead counts as just happened."""
    clock, limits = Clockwork(globals_), Limits(Rate(3, PERIOD))
    clock.update(pipelines.take("before", [1], 3, limits, now=BEGINNING))
    if are_told:
        clock.update(pipelines.settle("before", limits, started=None, frees=True, now=BEGINNING))
    back = BEGINNING - timedelta(minutes=5)
    at = [back + timedelta(milliseconds=100 * step) for step in range(20)]
    granted = [
        clock.update(pipelines.take(str(step), [1], 1, limits, now=now))["last"]["n"] for step, now in enumerate(at)
    ]
    assert list(itertools.accumulate(granted))[9] == 0
    assert sum(granted) == 3


def test_what_is_given_back_twice_is_not_taken(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: whoever has read of more in the meantime changes nothing."""
    clock, limits = Clockwork(globals_), Limits(Rate(9, PERIOD), 9)
    clock.update(pipelines.take("one", [1, 2, 3], 3, limits, now=BEGINNING))
    clock.update(pipelines.keep("one", 1))
    limiter = clock.update(pipelines.keep("one", 2))
    assert [slot["n"] for slot in limiter["slots"]] == [1]
    assert [one["n"] for one in limiter["open"]] == [1]


# --- workers -----------------------------------------------------------------------------------


def test_eight_threads_of_two_processes_obey_both_limits(mongodb_url: str, make_bench: MakeBench) -> None:
    """B-58: by the clock at which handlers begin and end, alone and in chunks, and the rate is used up."""
    bench = make_bench()
    bench.plan(*({"_id": doc_id} for doc_id in limited_worker.DOCUMENTS))
    command = [sys.executable, "-m", "tests.integration.limited_worker", mongodb_url, "4"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    spans = [span for process in processes for span in json.loads(process.communicate(timeout=60)[0])]
    starts = [began for began, _ in spans]
    assert len(starts) > 40
    assert max(sum(first <= other < first + 1 for other in starts) for first in starts) <= 20
    assert max(sum(began <= start < ended for began, ended in spans) for start in starts) <= 3
    limiter = bench.connection.globals().find_one({"_id": {"k": "limiter", "t": "shop.sync"}}) or {}
    assert (limiter["open"], limiter["slots"]) == ([], [])


class Worker:
    """Runs messages of a limited task, in this thread."""

    def __init__(self, bench: Bench, settings: Settings) -> None:
        self.bench = bench
        self.runtime = Runtime(settings, Registry(), bench.connection, ())
        self.started: list[Any] = []
        self.while_running: Callable[[], object] = lambda: None

    def run(self, *doc_ids: Any, token: str = "t", one_only: bool = False) -> int:  # noqa: S107 -- a claim's name
        """Run a message; return how many of its records ran."""
        named = [Named(self.bench.key(doc_id), 0) for doc_id in doc_ids]
        return execute(
            self.runtime, self.bench.task, named, each(self._body), token=token, worker="bench", one_only=one_only
        )

    def _body(self, run: Run, _context: TaskContext) -> Outcome:
        self.started.append(run.claim.key.doc_id)
        self.while_running()
        return Completed(TOOK)

    def limiter(self) -> dict[str, Any]:
        """Return the limiter of the task."""
        return self.runtime.connection.globals().find_one({"_id": {"k": "limiter", "t": self.bench.task.name}}) or {}


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(make_bench: MakeBench, settings: Settings) -> MakeWorker:
    """Make a worker for a task with limits, of which five records are due."""

    def make(**limits: Any) -> Worker:
        bench = make_bench(**limits)
        bench.plan(*({"_id": doc_id} for doc_id in range(5)))
        return Worker(bench, settings)

    return make


def test_a_record_without_a_start_waits_for_one(make_worker: MakeWorker) -> None:
    """B-58: it stays pending, no attempt spent, and the planner looks at it when the limiter expects a start."""
    worker = make_worker(rate_limit="2/m")
    sent = [worker.bench.key(doc_id) for doc_id in (0, 1, 2)]
    records.mark_sent(worker.bench.records, sent, first_deadline=LEASE * 9, longest_deadline=LEASE * 9)
    assert worker.run(0, 1, 2) == 2
    left = worker.bench.record(2)
    assert (left["status"], left["attempts"], left["_r"]["sent"]) == ("pending", 0, False)
    assert timedelta(seconds=50) < left["_r"]["wakeAt"] - worker.bench.now() <= timedelta(seconds=61)
    assert worker.run(3) == 0
    assert worker.started == [0, 1]


def test_starts_that_were_not_used_are_given_back(make_worker: MakeWorker) -> None:
    """B-58: of records that nobody can claim, and of those that a message has too many."""
    worker = make_worker(rate_limit="2/m", max_concurrency=2)
    worker.run(0)
    assert worker.run(0, token="again") == 0  # noqa: S106
    assert worker.run(0, 1, one_only=True, token="first") == 1  # noqa: S106
    assert sum(one["n"] for one in worker.limiter()["starts"]) == 2
    assert worker.limiter()["open"] == []
    assert worker.limiter()["slots"] == []


def test_a_slot_is_held_while_the_handler_runs(make_worker: MakeWorker) -> None:
    """B-58: another record does not start meanwhile, and starts afterwards."""
    worker = make_worker(max_concurrency=1)
    other = Worker(worker.bench, worker.runtime.settings)
    ran: list[int] = []
    worker.while_running = lambda: ran.append(other.run(1, token="other"))  # noqa: S106
    assert (worker.run(0), ran) == (1, [0])
    assert other.run(1, token="later") == 1  # noqa: S106


def test_a_start_that_comes_too_late_is_given_back(make_worker: MakeWorker) -> None:
    """B-58: the second record of the message would begin after the time for which it was granted a start."""
    worker = make_worker(rate_limit="2/s")
    worker.while_running = lambda: threading.Event().wait(0.3)
    worker.run(0, 1)
    assert worker.started == [0]
    left = worker.bench.record(1)
    assert (left["status"], left["attempts"]) == ("pending", 0)
    assert sum(one["n"] for one in worker.limiter()["starts"]) == 1


def test_a_long_run_counts_from_its_beginning(make_worker: MakeWorker) -> None:
    """B-58: the limiter is told of its start while it runs, and at its end does not count it again."""
    worker = make_worker(rate_limit="2/s", max_concurrency=1)
    seen: list[int] = []

    def look() -> None:
        threading.Event().wait(0.5)
        seen.append(len(worker.limiter()["open"]))

    worker.while_running = look
    worker.run(0)
    assert seen == [0]
    assert [one["n"] for one in worker.limiter()["starts"]] == [1]


def test_a_claim_after_its_time_is_refused(bench: Bench) -> None:
    """B-58: the slot of a worker that was frozen before its claim may be somebody else's by then."""
    bench.plan({"_id": 1, "on": True}, {"_id": 2, "on": True})
    past = bench.now() - timedelta(milliseconds=1)
    with bench.connection.causal_session() as session:
        for keys in ([bench.key(1)], [bench.key(1), bench.key(2)]):
            claimed = records.claim(
                bench.records,
                keys,
                token="late",  # noqa: S106
                worker="w",
                lease=LEASE,
                session=session,
                until=past,
            )
            assert claimed == []
    assert bench.state(1) is RecordState.PENDING


def test_an_unknown_grant_starts_nothing(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-58: the answer is lost, as in a failover; what was granted counts until it may happen no more."""
    worker = make_worker(rate_limit="2/m", max_concurrency=2)
    take = limiters.take

    def lose(*args: Any, **options: Any) -> None:
        take(*args, **options)
        raise StoreUnavailableError("connection closed")

    with monkeypatch.context() as patched:
        patched.setattr(limiters, "take", lose)
        with pytest.raises(StoreUnavailableError):
            worker.run(0)
    assert worker.started == []
    assert worker.bench.state(0) is RecordState.PENDING
    assert [one["n"] for one in worker.limiter()["open"]] == [1]
    assert worker.run(1, 2, token="later") == 1  # noqa: S106


def test_an_unknown_claim_keeps_its_slot(make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-58: the record may have been claimed; the planner frees the slot with the claim."""
    worker = make_worker(max_concurrency=1)

    def lose(*_args: Any, **_options: Any) -> None:
        raise StoreUnavailableError("connection closed")

    with monkeypatch.context() as patched:
        patched.setattr(records, "claim", lose)
        patched.setattr(records, "find_claims", lose)
        with pytest.raises(StoreUnavailableError):
            worker.run(0)
    assert worker.run(1, token="later") == 0  # noqa: S106


# --- the planner -------------------------------------------------------------------------------


def rescuer_of(worker: Worker) -> Rescuer:
    """Return the rescuer of a new leader."""
    return Rescuer(worker.runtime, [PlannedTask(worker.bench.task, 1, collated=False)])


def test_a_vanished_worker_leaves_no_slot(make_worker: MakeWorker) -> None:
    """B-58: it is freed with the claim, and not while the heart beats."""
    worker = make_worker(max_concurrency=1)
    limits = Limits(concurrency=1)
    globals_ = worker.runtime.connection.globals()
    [claim] = worker.bench.claim(0)
    assert limiters.take(globals_, claim.token, [claim.key], limits, wanted=1).starts == 1
    rescuer = rescuer_of(worker)
    for _ in range(6):
        rescuer.look()
    assert limiters.room(globals_, {worker.bench.task.name: limits})[worker.bench.task.name].records == 0
    assert rescuer.look() == 1
    assert limiters.room(globals_, {worker.bench.task.name: limits})[worker.bench.task.name].records == 1


def test_a_slot_that_nobody_claimed_with_is_freed(make_worker: MakeWorker) -> None:
    """B-58: once no claim can follow any more, and one that runs stays."""
    worker = make_worker(max_concurrency=3)
    globals_, limits = worker.runtime.connection.globals(), Limits(concurrency=3)
    [claim] = worker.bench.claim(0)
    for token, doc_ids in ((claim.token, [0]), ("vanished", [1, 2])):
        keys = [worker.bench.key(doc_id) for doc_id in doc_ids]
        limiters.take(globals_, token, keys, limits, wanted=len(keys))
    rescuer = rescuer_of(worker)
    rescuer.look()
    assert [slot["n"] for slot in worker.limiter()["slots"]] == [1, 2]
    globals_.update_one(
        {"_id": {"k": "limiter", "t": worker.bench.task.name}},
        [{"$set": {"slots.at": {"$subtract": ["$$NOW", 21_000]}}}],
    )
    rescuer.look()
    assert [slot["token"] for slot in worker.limiter()["slots"]] == [claim.token]


def test_whoever_frees_a_slot_tells_who_waits(make_worker: MakeWorker) -> None:
    """B-58: once, and only where the planner has said that it waits."""
    worker = make_worker(max_concurrency=1)
    globals_, limits, name = worker.runtime.connection.globals(), Limits(concurrency=1), worker.bench.task.name

    def woken() -> int:
        return (globals_.find_one({"_id": {"k": "wake", "t": name}}) or {"calls": 0})["calls"]

    worker.run(0)
    assert woken() == 0
    worker.while_running = lambda: limiters.await_room(globals_, name, limits)
    worker.run(1, token="awaited")  # noqa: S106
    assert woken() == 1
    worker.while_running = lambda: None
    worker.run(2, token="later")  # noqa: S106
    assert woken() == 1


# --- set by hand --------------------------------------------------------------------------------


@pytest.fixture
def reactive(mongodb_url: str) -> Iterator[Reactive]:
    """The handle of an app with the task `sync`, of which 10 may start a second, three at a time."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url

    def handler(ctx: Any) -> None:
        """Never called here."""

    limits = {"rate_limit": "10/s", "max_concurrency": 3}
    reactive_task(collection="orders", task="sync", **limits)(app.task(handler, name="shop.sync", shared=False))
    app.finalize()
    yield Reactive.of(app)
    Reactive.of(app).runtime.connection.close()


def in_force(reactive: Reactive) -> tuple[Any, ...]:
    """Return rate, concurrency and priority as the status shows them, and which of them are set by hand."""
    [task] = reactive.status().tasks
    return task.rate_limit, task.max_concurrency, task.priority, task.set_by_hand


def test_limits_set_by_hand_are_in_force_until_set_again(reactive: Reactive) -> None:
    """B-58: a value, `unlimited`, and None for what is declared; what is not named stays."""
    assert in_force(reactive) == ("10/s", 3, 4, ())
    reactive.limit("sync", rate="90/m", priority=9)
    assert in_force(reactive) == ("90/m", 3, 9, ("priority", "rate_limit"))
    reactive.limit("sync", rate="unlimited", concurrency=7)
    assert in_force(reactive) == (None, 7, 9, ("priority", "rate_limit", "max_concurrency"))
    reactive.limit("sync", rate=None, concurrency="unlimited", priority=None)
    assert in_force(reactive) == ("10/s", None, 4, ("max_concurrency",))
    reactive.limit("sync", concurrency=None)
    assert in_force(reactive) == ("10/s", 3, 4, ())


def test_wrong_limits_change_nothing(reactive: Reactive) -> None:
    """B-58: all that is wrong is told; an unknown task is an error that lists the known."""
    with pytest.raises(UnknownTaskError, match="'sync'"):
        reactive.limit("synk", rate="10/s")
    with pytest.raises(ConfigurationError) as caught:
        reactive.limit("sync", rate="10/d", concurrency=0, priority=10)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["rate", "concurrency", "priority"]
    with pytest.raises(ConfigurationError, match="expected one of 'rate', 'concurrency', 'priority' at least"):
        reactive.limit("sync")
    assert in_force(reactive) == ("10/s", 3, 4, ())


def test_limits_set_by_hand_are_told_and_leave_the_other_controls(reactive: Reactive) -> None:
    """B-54: an event says what is in force by hand now."""
    told: list[Any] = []

    def listen(event: Any, **_: Any) -> None:
        told.append(event.facts())

    signals.task_limited.connect(listen, sender=reactive.app)
    reactive.pause("sync")
    reactive.limit("sync", rate=0.5)
    assert told == [{"task": "sync", "rate": "1 in 2s", "concurrency": None, "priority": None}]
    assert definitions.read(reactive.runtime.connection.globals(), "sync").paused

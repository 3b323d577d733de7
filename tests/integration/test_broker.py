"""When messages are taken for lost: the planner's stage over real records, with a broker that says what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from kombu.connection import Connection as BrokerConnection
from kombu.entity import Queue

from celery_reactive.errors import StoreUnavailableError
from celery_reactive.events import BrokerContentsLost, Event
from celery_reactive.planner import broker
from celery_reactive.planner.broker import ContentsWatch
from celery_reactive.planner.contents import Contents, ContentsUnknownError, Held, Reading
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.store import records
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench, MakeDesk

FIRST = timedelta(seconds=60)
LONGEST = timedelta(minutes=15)
READINGS = 3


class Told(Contents):
    """A broker that holds what a test says."""

    def __init__(self, *tasks: str) -> None:
        super().__init__(lambda: BrokerConnection("memory://"), {task: Queue(f"q-{task}") for task in tasks}, "canary")
        self.emptied = False
        self.queues = {name: Held(0, complete=True) for name in self.queue_of.values()}
        self.away = False
        self.asked = 0

    def hold(self, task: str, messages: int, *, complete: bool = True) -> None:
        """Let the queue of a task hold messages."""
        self.queues[self.queue_of[task]] = Held(messages, complete)

    def _read(self, connection: BrokerConnection) -> Reading:
        """Say it; a broker is found emptied once."""
        self.asked += 1
        if self.away:
            raise ContentsUnknownError("it is away")
        emptied, self.emptied = self.emptied, False
        return Reading(emptied, self.queues)


class Watched:
    """A stage, what its broker holds, and what came of it."""

    def __init__(self, watch: ContentsWatch, contents: Told, events: list[Event], kicks: list[None]) -> None:
        self.watch = watch
        self.contents = contents
        self.events = events
        self.kicks = kicks

    def look(self, times: int = 1) -> list[int]:
        """Look several times; return how many records were made due each time."""
        return [self.watch.look() for _ in range(times)]


Watch = Callable[..., Watched]


@pytest.fixture
def watch_over(make_desk: MakeDesk) -> Watch:
    """Make a stage over the records of workbenches, which has had its first look; all queues are empty."""

    def make(*benches: Bench, most_a_message: int = 1) -> Watched:
        desk, kicks = make_desk(*benches), list[None]()
        contents = Told(*(bench.task.name for bench in benches))
        watch = ContentsWatch(
            desk.runtime,
            [PlannedTask(bench.task, 1, collated=False) for bench in benches],
            contents,
            most_a_message=lambda _: most_a_message,
            on_lost=lambda: kicks.append(None),
            ended=threading.Event(),
        )
        watch.look()
        return Watched(watch, contents, desk.events, kicks)

    return make


def send(bench: Bench, *doc_ids: int) -> None:
    """Write, plan and send documents."""
    bench.plan(*({"_id": doc_id} for doc_id in doc_ids))
    send_again(bench, *doc_ids)


def send_again(bench: Bench, *doc_ids: int) -> None:
    """Mark records as sent."""
    keys = [bench.key(doc_id) for doc_id in doc_ids]
    sent = records.mark_sent(bench.records, keys, first_deadline=FIRST, longest_deadline=LONGEST)
    assert sent == len(doc_ids)
    moment = bench.now()
    while bench.now() == moment:
        pass


def in_flight(bench: Bench) -> int:
    """Return how many records are on their way."""
    return records.count_in_flight(bench.records, bench.task.name)


def test_an_emptied_broker_is_believed_at_once(make_bench: MakeBench, watch_over: Watch) -> None:
    """B-66: all that was on its way is due, for all tasks, with one event and a kick for the dispatcher."""
    first, second = make_bench("first"), make_bench("second")
    watched = watch_over(first, second)
    send(first, 1, 2)
    send(second, 3)
    watched.contents.emptied = True
    assert watched.look() == [3]
    assert (in_flight(first), in_flight(second)) == (0, 0)
    assert watched.events == [BrokerContentsLost(watched.contents.shown_url, 3)]
    assert watched.kicks == [None]


def test_many_lost_messages_are_dealt_with_in_batches(
    make_bench: MakeBench, watch_over: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-66: no list of all of them."""
    monkeypatch.setattr(broker, "_BATCH_SIZE", 2)
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, *range(5))
    watched.contents.emptied = True
    assert watched.look() == [5]


def test_a_broker_that_is_emptied_again_and_again_is_believed_ever_later(
    make_bench: MakeBench, watch_over: Watch
) -> None:
    """B-66: it is not flooded."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1)
    watched.contents.emptied = True
    assert watched.look() == [1]
    send_again(bench, 1)
    watched.contents.emptied = True
    assert watched.look() == [0]
    assert in_flight(bench) == 1


def test_a_broker_is_asked_only_while_something_is_on_its_way(make_bench: MakeBench, watch_over: Watch) -> None:
    """B-66: but for once, so that what is sent first finds a canary."""
    bench = make_bench()
    watched = watch_over(bench)
    watched.look(3)
    assert watched.contents.asked == 1
    send(bench, 1)
    watched.look(3)
    assert watched.contents.asked == 4


def test_a_queue_that_holds_too_little_is_believed_after_several_readings(
    make_bench: MakeBench, watch_over: Watch
) -> None:
    """B-66: deleted or purged; the other queue is full, and its records stay on their way."""
    lost, kept = make_bench("lost"), make_bench("kept")
    watched = watch_over(lost, kept)
    send(lost, 1, 2)
    send(kept, 3)
    watched.contents.hold("lost", 1)
    watched.contents.hold("kept", 1)
    assert watched.look(READINGS) == [0, 0, 2]
    assert (in_flight(lost), in_flight(kept)) == (0, 1)


def test_tasks_that_share_a_queue_need_their_messages_together(make_bench: MakeBench, watch_over: Watch) -> None:
    """B-66: one queue, two tasks, two records each, up to two in a message: three messages are enough, one is not."""
    first, second = make_bench("first"), make_bench("second")
    watched = watch_over(first, second, most_a_message=2)
    watched.contents.queue_of.update(first="q", second="q")
    send(first, 1, 2)
    send(second, 3, 4)
    watched.contents.queues = {"q": Held(2, complete=True)}
    assert watched.look(READINGS) == [0] * READINGS
    watched.contents.queues = {"q": Held(1, complete=True)}
    assert watched.look(READINGS) == [0, 0, 4]


def test_messages_that_workers_take_while_they_are_counted_are_not_lost(
    make_bench: MakeBench, watch_over: Watch
) -> None:
    """B-66: under load each reading finds too few, but not for the same records."""
    bench = make_bench()
    watched = watch_over(bench)
    for doc_id in range(2 * READINGS):
        send(bench, doc_id)
        assert watched.look() == [0]
        assert len(bench.claim(doc_id)) == 1


def test_a_queue_that_has_recovered_is_trusted_anew(make_bench: MakeBench, watch_over: Watch) -> None:
    """B-66: only readings in a row count."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1)
    for _ in range(2):
        assert watched.look(READINGS - 1) == [0] * (READINGS - 1)
        watched.contents.hold(bench.task.name, 1)
        assert watched.look() == [0]
        watched.contents.hold(bench.task.name, 0)
    assert watched.look(READINGS) == [0, 0, 1]


def test_what_is_sent_during_the_readings_is_not_given_up(make_bench: MakeBench, watch_over: Watch) -> None:
    """B-66: it may have come after the loss."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1)
    assert watched.look(READINGS - 1) == [0] * (READINGS - 1)
    send(bench, 2)
    assert watched.look() == [1]
    assert (bench.record(1)["_r"]["sent"], bench.record(2)["_r"]["sent"]) == (False, True)


def test_a_record_that_seems_lost_again_and_again_is_given_up_ever_later(
    make_bench: MakeBench, watch_over: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-66: a worker that rejects every message of a task is not flooded; the deadline goes on doubling."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1)
    assert watched.look(READINGS) == [0, 0, 1]
    send_again(bench, 1)
    assert watched.look(2 * READINGS) == [0] * 2 * READINGS
    monkeypatch.setattr(broker, "_PATIENCE", timedelta(milliseconds=1))
    assert sum(watched.look(READINGS)) == 1


def test_messages_that_busy_workers_may_hold_are_not_lost(make_bench: MakeBench, watch_over: Watch) -> None:
    """B-66: where nobody tells what workers have taken, an empty queue counts only while nothing runs."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1, 2)
    (claim,) = bench.claim(1)
    watched.contents.hold(bench.task.name, 0, complete=False)
    assert watched.look(2 * READINGS) == [0] * 2 * READINGS
    bench.complete(claim)
    assert watched.look(READINGS) == [0, 0, 1]


def test_a_queue_that_workers_take_from_says_nothing_unless_it_is_empty(
    make_bench: MakeBench, watch_over: Watch
) -> None:
    """B-66: the others may be with the workers."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1, 2)
    watched.contents.hold(bench.task.name, 1, complete=False)
    assert watched.look(2 * READINGS) == [0] * 2 * READINGS


def test_a_broker_that_is_away_has_lost_nothing_yet(
    make_bench: MakeBench, watch_over: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """B-66: readings that failed do not count; one complaint."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1)
    watched.contents.away = True
    assert watched.look(2 * READINGS) == [0] * 2 * READINGS
    assert in_flight(bench) == 1
    assert caplog.text.count("asked for its contents, does not answer") == 1


def test_a_loss_is_remembered_while_the_database_is_away(
    make_bench: MakeBench, watch_over: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-66: the canary is back already; what it told is dealt with at the next look."""
    bench = make_bench()
    watched = watch_over(bench)
    send(bench, 1)
    watched.contents.emptied = True
    with monkeypatch.context() as patched:
        patched.setattr(records, "expire_sent", fail)
        with pytest.raises(StoreUnavailableError):
            watched.look()
    assert watched.look() == [1]


def fail(*_: object, **__: object) -> int:
    """Be a database that is away."""
    raise StoreUnavailableError("it is away")

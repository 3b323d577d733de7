"""Celery's schedule in the leading planner: last runs outlive it, and each overdue entry is sent once."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler
from celery.schedules import crontab
from click.testing import CliRunner, Result

from celery_reactive import Reactive, cli
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.planner.beat import Beat, scheduler_of, scheduler_seen
from celery_reactive.store import beats

MakeApp = Callable[..., Celery]


@pytest.fixture
def make_app(mongodb_url: str) -> Iterator[MakeApp]:
    """Make an app with a schedule; `app.sent` lists what was sent."""
    made: list[Celery] = []

    def make(**schedule: dict[str, Any]) -> Celery:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.reactive_mongodb_url = mongodb_url
        app.conf.result_expires = None
        app.conf.beat_schedule = {name.replace("_", "-"): entry for name, entry in schedule.items()}
        app.sent = []  # type: ignore[attr-defined]  # for the test

        def send_task(name: str, *_: Any, **__: Any) -> types.SimpleNamespace:
            app.sent.append(name)  # type: ignore[attr-defined]  # for the test
            return types.SimpleNamespace(id="1")

        app.send_task = send_task  # type: ignore[method-assign]  # nothing leaves the process
        made.append(app)
        return app

    yield make
    for app in made:
        Reactive.of(app).runtime.connection.close()


def every(seconds: float, task: str = "shop.report") -> dict[str, Any]:
    """Return an entry of the schedule."""
    return {"task": task, "schedule": timedelta(seconds=seconds)}


def scheduler(app: Celery) -> Any:
    """Return the scheduler as a new leader makes it."""
    return scheduler_of(app, Reactive.of(app).runtime)


def tick(made: Any, times: int = 10) -> None:
    """Let a scheduler send what is due."""
    for _ in range(times):
        made.tick()


def let_pass(app: Celery, span: timedelta) -> None:
    """Let every entry have run so much earlier."""
    globals_ = Reactive.of(app).runtime.connection.globals()
    earlier = {"$subtract": ["$lastRunAt", span // timedelta(milliseconds=1)]}
    globals_.update_many({"_id.k": "beat"}, [{"$set": {"lastRunAt": earlier}}])


def test_what_became_due_while_nobody_led_is_sent_once(make_app: MakeApp) -> None:
    """B-67: three intervals have passed, and one run makes up for them."""
    app = make_app(hourly=every(3600), daily=every(86400, "shop.close"))
    tick(scheduler(app))
    assert app.sent == []
    let_pass(app, timedelta(hours=3))
    tick(scheduler(app))
    assert app.sent == ["shop.report"]
    tick(scheduler(app))
    assert app.sent == ["shop.report"]


def test_whoever_looks_writes_nothing(make_app: MakeApp) -> None:
    """B-67: a person who may only read sees the schedule; entries of another version of the app are left alone."""
    app = make_app(hourly=every(3600))
    globals_ = Reactive.of(app).runtime.connection.globals()
    beats.note_first(globals_, "of-another", datetime(2026, 1, 1, tzinfo=UTC))
    seen = scheduler_seen(app, Reactive.of(app).runtime)
    assert list(seen.schedule) == ["hourly"]
    assert list(beats.read_all(globals_)) == ["of-another"]
    scheduler(app)
    let_pass(app, timedelta(hours=2))
    assert scheduler_seen(app, Reactive.of(app).runtime).schedule["hourly"].is_due()[0]


def test_the_first_interval_survives_a_change_of_leaders(make_app: MakeApp) -> None:
    """B-67: it begins when the entry is first seen, and does not begin anew with each leader."""
    app = make_app(daily=every(86400))
    scheduler(app)
    let_pass(app, timedelta(hours=23))
    tick(scheduler(app))
    let_pass(app, timedelta(hours=2))
    tick(scheduler(app))
    assert app.sent == ["shop.report"]


def test_a_crontab_is_made_up_for(make_app: MakeApp) -> None:
    """B-67: as an interval is, in the app's time zone."""
    app = make_app(nightly={"task": "shop.report", "schedule": crontab(minute="0", hour="3")})
    app.conf.timezone = "Europe/Prague"
    scheduler(app)
    let_pass(app, timedelta(days=2))
    tick(scheduler(app))
    tick(scheduler(app))
    assert app.sent == ["shop.report"]


def test_of_several_leaders_one_sends(make_app: MakeApp) -> None:
    """B-67: an old leader that wakes up, or two planner groups with --beat: each run is taken once."""
    app = make_app(often=every(0.2), other=every(0.2, "shop.close"))
    scheduler(app)
    let_pass(app, timedelta(minutes=1))
    made = [scheduler(app) for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(one: Any) -> None:
        barrier.wait()
        tick(one, 2)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, made))
    stored = beats.read_all(Reactive.of(app).runtime.connection.globals())
    assert sorted(app.sent) == sorted(["shop.report"] * stored["often"].runs + ["shop.close"] * stored["other"].runs)
    assert stored["often"].runs >= 1


def test_a_stale_leader_sends_nothing(make_app: MakeApp) -> None:
    """B-67: what another has sent meanwhile is not due any more."""
    app = make_app(hourly=every(3600))
    scheduler(app)
    let_pass(app, timedelta(hours=2))
    stale, fresh = scheduler(app), scheduler(app)
    tick(fresh)
    tick(stale)
    assert app.sent == ["shop.report"]


def test_a_run_that_cannot_be_taken_is_not_sent(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-67: MongoDB is away; it is sent when it is back."""
    app = make_app(hourly=every(3600))
    scheduler(app)
    let_pass(app, timedelta(hours=2))
    beat = Beat(app, Reactive.of(app).runtime, threading.Event())

    def away(*_: Any, **__: Any) -> bool:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(beats, "take", away)
        with pytest.raises(StoreUnavailableError):
            beat.step()
    assert app.sent == []
    ended = threading.Event()
    ended.set()
    Beat(app, Reactive.of(app).runtime, ended).step()
    assert app.sent == ["shop.report"]


def test_an_entry_that_is_gone_is_forgotten(make_app: MakeApp) -> None:
    """B-67: declared again, it begins anew."""
    app = make_app(hourly=every(3600))
    scheduler(app)
    let_pass(app, timedelta(hours=2))
    globals_ = Reactive.of(app).runtime.connection.globals()
    globals_.insert_one({"_id": {"k": "task", "t": "sync"}})
    scheduler(make_app(another=every(3600)))
    again = make_app(hourly=every(3600))
    tick(scheduler(again))
    assert again.sent == []
    assert globals_.count_documents({"_id.k": "task"}) == 1


class Own(Scheduler):  # type: ignore[misc]  # Celery carries no types
    """A scheduler of the user's."""

    def setup_schedule(self) -> None:
        """One entry that no setting names."""
        self.update_from_dict({"mine": every(3600, "shop.mine")})


def test_the_configured_scheduler_is_used(make_app: MakeApp) -> None:
    """B-67: a user's own class, such as one that reads a database."""
    app = make_app()
    app.conf.beat_scheduler = Own
    scheduler(app)
    let_pass(app, timedelta(hours=2))
    made = scheduler(app)
    assert isinstance(made, Own)
    tick(made)
    assert app.sent == ["shop.mine"]


def test_a_first_run_may_be_taken_without_having_been_seen(make_app: MakeApp) -> None:
    """B-67: of an entry that was added while the scheduler ran; nobody else takes the same."""
    globals_ = Reactive.of(make_app()).runtime.connection.globals()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert beats.take(globals_, "new", seen=None, at=at)
    assert not beats.take(globals_, "new", seen=at - timedelta(hours=1), at=at)
    assert beats.read_all(globals_) == {"new": beats.LastRun(at, 1)}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Type a command for an app."""

    def run(app: Celery, *words: str) -> Result:
        module = types.ModuleType("beat_proj")
        module.app = app  # type: ignore[attr-defined]  # as the user's module has it
        monkeypatch.setitem(sys.modules, "beat_proj", module)
        return CliRunner().invoke(cli._standalone(), ["-A", "beat_proj", "beat", *words])

    return run


def test_entries_are_listed_and_sent_by_hand(make_app: MakeApp, typed: Callable[..., Result]) -> None:
    """B-67: a one-off trigger leaves the schedule as it is."""
    app = make_app(hourly=every(3600))
    shown = typed(app, "list")
    assert "hourly" in shown.stdout, shown.output
    assert "freq: 1.00 hour" in shown.stdout
    before = beats.read_all(Reactive.of(app).runtime.connection.globals())
    assert "hourly sent, id" in typed(app, "trigger", "hourly").stdout
    assert app.sent == ["shop.report"]
    assert beats.read_all(Reactive.of(app).runtime.connection.globals()) == before
    wrong = typed(app, "trigger", "hourli")
    assert wrong.exit_code == 2
    assert "did you mean 'hourly'" in wrong.stderr
    assert '"due_in": 3' in typed(app, "list", "--json").stdout


def test_an_entry_that_cannot_be_sent_is_told_in_one_message(
    make_app: MakeApp, typed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-67: the broker is away, or the task does not take the entry's arguments."""
    app = make_app(hourly=every(3600))

    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("report() missing 1 required positional argument: 'day'")

    monkeypatch.setattr(app, "send_task", refuse)
    ended = typed(app, "trigger", "hourly")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert "hourly could not be sent" in ended.stderr
    assert "missing 1 required" in ended.stderr
    assert isinstance(ended.exception, SystemExit)


def test_nothing_but_entries_is_forgotten(make_app: MakeApp) -> None:
    """B-67: what else the globals hold stays."""
    globals_ = Reactive.of(make_app()).runtime.connection.globals()
    globals_.insert_many([{"_id": {"k": "task", "t": "x"}}, {"_id": {"k": "worker", "n": "celery@one"}}])
    assert beats.forget_others(globals_, {"hourly"}) == 0
    assert globals_.count_documents({}) == 2

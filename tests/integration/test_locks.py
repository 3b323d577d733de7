"""Locks for the user's own code: one holder at a time, renewed, fenced, free again when a holder vanishes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_reactive import LockAlreadyAcquiredError, Reactive
from celery_reactive.errors import ConfigurationError, StoreUnavailableError
from celery_reactive.store import locks
from tests.acceptance.project import wait_until


@pytest.fixture
def reactive(mongodb_url: str) -> Iterator[Reactive]:
    """The handle of an app without tasks."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url
    app.conf.reactive_instance_id = "here"
    yield Reactive.of(app)
    Reactive.of(app).runtime.connection.close()


def stored(reactive: Reactive) -> list[dict[str, Any]]:
    """Return what is stored of locks."""
    return list(reactive.runtime.connection.globals().find({"_id.k": "lock"}))


def let_expire(reactive: Reactive) -> None:
    """Let the time of all locks be over."""
    past = [{"$set": {"until": {"$subtract": ["$$NOW", 1]}}}]
    reactive.runtime.connection.globals().update_many({"_id.k": "lock"}, past)


def test_a_lock_is_held_inside_and_free_after(reactive: Reactive) -> None:
    """The second is refused with who holds it, and nothing is left behind."""
    with reactive.lock("nightly"):
        with (
            pytest.raises(LockAlreadyAcquiredError, match="'nightly' is held by here"),
            reactive.lock("nightly", wait=0),
        ):
            pytest.fail("entered")
        with reactive.lock("another", wait=0) as other:
            assert not other.lost
    assert stored(reactive) == []
    with reactive.lock("nightly", wait=0):
        pass


def test_an_error_inside_frees_the_lock(reactive: Reactive) -> None:
    """It is passed on."""
    with pytest.raises(ZeroDivisionError), reactive.lock("nightly"):
        _ = 1 / 0
    assert stored(reactive) == []


def test_who_waits_gets_it(reactive: Reactive) -> None:
    """As soon as it is free."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with reactive.lock("nightly"):
            entered.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert entered.wait(10)
        threading.Timer(0.2, leave.set).start()
        with reactive.lock("nightly", wait="10s"):
            assert leave.is_set()
        holding.result()


def test_only_one_holds_it_at_a_time(reactive: Reactive) -> None:
    """Of many threads that want it, and the fences grow in the order of the holders, also across its removal."""
    inside = threading.Lock()
    fences: list[int] = []

    def work(_: int) -> None:
        for _ in range(5):
            with reactive.lock("counter", wait="60s") as held:
                assert inside.acquire(blocking=False), "two at a time"
                fences.append(held.fence)
                inside.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(fences) == 30
    assert fences == sorted(set(fences))


def test_a_lock_of_a_vanished_holder_is_free_when_its_time_is_over(reactive: Reactive) -> None:
    """And the new holder's fence is greater."""
    globals_ = reactive.runtime.connection.globals()
    first = locks.acquire(globals_, "nightly", "gone/1", timedelta(hours=1))
    assert first is not None
    assert locks.acquire(globals_, "nightly", "here/1", timedelta(hours=1)) is None
    let_expire(reactive)
    with reactive.lock("nightly", wait=0) as held:
        assert held.fence > first
        assert not locks.renew(globals_, "nightly", "gone/1", timedelta(hours=1))
        assert not locks.release(globals_, "nightly", "gone/1")
        assert not held.lost


def test_an_acquisition_whose_answer_was_lost_is_found(reactive: Reactive) -> None:
    """The driver sends it again, and it is still one acquisition."""
    globals_ = reactive.runtime.connection.globals()
    first = locks.acquire(globals_, "nightly", "here/1", timedelta(hours=1))
    assert locks.acquire(globals_, "nightly", "here/1", timedelta(hours=1)) == first


def test_it_is_renewed_while_it_is_held(reactive: Reactive) -> None:
    """For longer than it would last by itself."""
    with reactive.lock("nightly", expire="1s") as held:
        (before,) = stored(reactive)
        wait_until(lambda: stored(reactive)[0]["until"] > before["until"] + timedelta(seconds=1), logs=str)
        assert not held.lost


def test_a_lock_that_was_taken_away_is_lost(reactive: Reactive) -> None:
    """The holder can see it, and does not free the other's."""
    globals_ = reactive.runtime.connection.globals()
    with reactive.lock("nightly", expire="1s") as held:
        let_expire(reactive)
        assert locks.acquire(globals_, "nightly", "other/1", timedelta(hours=1)) is not None
        wait_until(lambda: held.lost, logs=str)
    assert [lock["owner"] for lock in stored(reactive)] == ["other/1"]


def test_a_lock_that_cannot_be_renewed_is_lost_by_the_holders_own_clock(
    reactive: Reactive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the database does meanwhile."""

    def away(*_: Any) -> bool:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(locks, "renew", away)
    with reactive.lock("nightly", expire="1s") as held:
        assert not held.lost
        assert wait_until(lambda: held.lost, logs=str) < 5


@pytest.mark.parametrize(
    ("key", "options", "wrong"),
    [
        ("", {}, "name"),
        ("x" * 501, {}, "name"),
        (7, {}, "name"),
        ("a", {"expire": "10ms"}, "expire"),
        ("a", {"wait": "soon"}, "wait"),
    ],
)
def test_what_has_no_meaning_is_refused(reactive: Reactive, key: Any, options: dict[str, Any], wrong: str) -> None:
    """Before anything is taken."""
    with pytest.raises(ConfigurationError, match=wrong):
        reactive.lock(key, **options)


@pytest.mark.parametrize("key", ["$owner", "a.b", "ünï", "\x00"], ids=repr)
def test_a_name_is_data(reactive: Reactive, key: str) -> None:
    """Whatever it contains."""
    with reactive.lock(key), pytest.raises(LockAlreadyAcquiredError), reactive.lock(key, wait=0):
        pytest.fail("entered")


def test_locks_of_the_long_gone_are_forgotten(reactive: Reactive) -> None:
    """A day after their time was over."""
    globals_ = reactive.runtime.connection.globals()
    for key in ("old", "new"):
        locks.acquire(globals_, key, "gone/1", timedelta(seconds=1))
    old = [{"$set": {"until": {"$subtract": ["$$NOW", 25 * 3600 * 1000]}}}]
    globals_.update_one({"_id.l": "old"}, old)
    globals_.insert_one({"_id": {"k": "task", "t": "sync"}})
    assert locks.forget_expired(globals_) == 1
    assert [lock["_id"]["l"] for lock in stored(reactive)] == ["new"]
    assert globals_.count_documents({"_id.k": "task"}) == 1

"""What was found out a moment ago is kept, and not longer than it is good."""

from __future__ import annotations

import threading

from celery_reactive.dashboard.recent import Recent
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.testing import wait_until


def test_many_who_look_at_once_cost_as_much_as_one() -> None:
    """B-57: one of them finds it out, the others wait for that."""
    kept, calls, gate = Recent(), [], threading.Event()

    def make() -> int:
        calls.append(1)
        gate.wait(5)
        return len(calls)

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(kept.get("a", make))) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert found == [1] * 5


def test_a_database_away_is_waited_for_once_by_all_who_look() -> None:
    """B-57: those who came meanwhile hear of the failure at once; who comes later tries again."""
    kept, calls, gate = Recent(), [], threading.Event()

    def make() -> int:
        calls.append(1)
        gate.wait(5)
        raise StoreUnavailableError("away")

    refused: list[str] = []

    def look() -> None:
        try:
            kept.get("a", make)
        except StoreUnavailableError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: calls, stable_for=0.2)
    gate.set()
    for thread in threads:
        thread.join()
    assert (len(refused), len(calls)) == (5, 1)
    assert kept.get("a", lambda: 7) == 7


def test_what_was_begun_before_a_change_is_not_kept_after_it() -> None:
    """B-57: what one has just done is seen at once."""
    kept = Recent()

    def make() -> str:
        kept.forget()
        return "old"

    assert kept.get("a", make) == "old"
    assert kept.get("a", lambda: "new") == "new"


def test_what_takes_long_is_not_waited_for() -> None:
    """B-57: a page is shown without it, and has it the next time."""
    kept, gate, done = Recent(), threading.Event(), threading.Event()

    def make() -> int:
        gate.wait(5)
        done.set()
        return 7

    assert kept.soon("a", make) is None
    gate.set()
    done.wait(5)
    assert kept.get("a", lambda: 8) == 7
    assert kept.soon("a", lambda: 8) == 7

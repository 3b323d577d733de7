"""`wait_until`, and the places that `fast` changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from celery_reactive import ConfigurationError
from celery_reactive.planner import watch
from celery_reactive.testing import fast, wait_until

ROOT = Path(__file__).parents[2]


class Answers:
    """A condition that gives one answer after the other, the last again and again."""

    def __init__(self, *answers: object) -> None:
        self.asked = 0
        self._answers = answers

    def __call__(self) -> object:
        """Give the next answer."""
        self.asked += 1
        answer = self._answers[min(self.asked, len(self._answers)) - 1]
        assert answer != "assert", "not there yet"
        return answer


def test_what_the_condition_returns_is_returned() -> None:
    """So that a test goes on with what it has waited for."""
    answers = Answers(None, 0, [], "found")
    assert wait_until(answers, interval="1ms") == "found"
    assert answers.asked == 4


def test_a_condition_that_holds_is_asked_once() -> None:
    """No wait where there is nothing to wait for, whatever the interval."""
    answers = Answers("yes")
    assert wait_until(answers, timeout=0, interval="1h")
    assert answers.asked == 1


def test_a_condition_is_asked_once_more_at_the_end() -> None:
    """An interval longer than the time left does not eat the last chance."""
    answers = Answers(None, "yes")
    assert wait_until(answers, timeout="20ms", interval="1h")


def test_the_failure_tells_what_was_returned_last_and_why() -> None:
    """Whoever reads a log of last night has nothing else."""
    with pytest.raises(AssertionError) as raised:
        wait_until(Answers([]), timeout="5ms", interval="1ms", explain=lambda: "the worker sleeps")
    assert str(raised.value) == "not within 0.005 s: the condition does not hold, it returned []\nthe worker sleeps"


def test_a_condition_may_assert() -> None:
    """A failed assertion means "not yet", and its words are in the failure."""
    assert wait_until(Answers("assert", "done"), interval="1ms") == "done"
    with pytest.raises(AssertionError, match="not there yet"):
        wait_until(Answers("assert"), timeout="5ms", interval="1ms")


def test_another_error_of_the_condition_is_raised_at_once() -> None:
    """A mistake in the condition does not get better by waiting."""

    def mistaken() -> object:
        raise LookupError("no such field")

    with pytest.raises(LookupError, match="no such field"):
        wait_until(mistaken)


def test_a_break_starts_the_steady_time_anew() -> None:
    """`stable_for` means without a break."""
    answers = Answers("yes", "yes", None, "yes")
    wait_until(answers, interval="2ms", stable_for="20ms")
    assert answers.asked > 5


def test_what_never_holds_steadily_fails_and_says_so() -> None:
    """Flickering is no rest."""
    flicker = Answers(*["yes", None] * 1000)
    with pytest.raises(AssertionError, match="not within"):
        wait_until(flicker, timeout="30ms", interval="1ms", stable_for="20ms")


def test_a_duration_without_meaning_is_refused() -> None:
    """As everywhere in the package."""
    with pytest.raises(ConfigurationError, match="timeout"):
        wait_until(lambda: True, timeout="soon")


def test_fast_gives_the_planners_waits_back() -> None:
    """A test that was quick must not make the next one quick."""
    before = watch._STORE_INTERVAL_SECONDS
    with fast(), fast():
        assert before > watch._STORE_INTERVAL_SECONDS
    assert before == watch._STORE_INTERVAL_SECONDS


def test_the_plugin_imports_nothing_of_ours() -> None:
    """Pytest loads it in every project of an environment where the package is installed."""
    source = (ROOT / "pytest_celery_reactive.py").read_text()
    lines = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert all(line.split()[1].split(".")[0] in sys.stdlib_module_names | {"pytest"} for line in lines)

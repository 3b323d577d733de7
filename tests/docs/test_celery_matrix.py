"""docs/evidence/celery.md says what the stored results of the matrix say."""

from __future__ import annotations

import pytest

from tests.matrix import report
from tests.matrix.outcomes import REACTIVE, Broker, Outcome, Pool, comparisons, findings, impossible


def test_the_page_is_up_to_date() -> None:
    """`make matrix` plays it and writes the tables, `python -m tests.matrix.report` only writes them."""
    assert report.PAGE.read_text() == report.with_tables(report.PAGE.read_text())


def test_every_cell_has_been_played() -> None:
    """A cell that is not there is impossible, and the page says why."""
    _, cells = report.stored(report.SHOWN)
    wanted = {
        (pool, broker, outcome, variant)
        for pool in Pool
        for broker in Broker
        for outcome in Outcome
        for variant in REACTIVE
        if impossible(pool, outcome) is None
    }
    assert wanted <= cells.keys()


@pytest.mark.parametrize("version", report.stored_versions())
def test_nothing_is_worse_than_plain_celery_without_a_sentence_that_says_why(version: str) -> None:
    """Whoever uses Celery loses nothing."""
    _, cells = report.stored(version)
    assert comparisons(cells) == []


@pytest.mark.parametrize("version", report.stored_versions())
def test_handlers_are_never_called_twice_at_the_same_time(version: str) -> None:
    """B-23: on no pool, by no end of a worker."""
    _, cells = report.stored(version)
    assert [cell for cell, seen in cells.items() if cell[3] in REACTIVE and seen.overlaps] == []


def test_every_cell_is_as_expected() -> None:
    """B-22 to B-30, B-40, B-56, B-68: what `tests/matrix/outcomes.py` states; the page lists what is not."""
    _, cells = report.stored(report.SHOWN)
    assert findings(cells) == []

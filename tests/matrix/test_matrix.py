"""A sample of the matrix: two pools on two brokers; all of it is `make matrix`."""

from __future__ import annotations

import pytest

from celery_reactive.embedded import EmbeddedServerError, RabbitServer
from tests.matrix.outcomes import QUICK, Broker, Outcome, Pool, comparisons, findings
from tests.matrix.run import play

OUTCOMES = (
    *QUICK,
    Outcome.SOFT_LIMIT,
    Outcome.REVOKED,
    Outcome.TERMINATED,
    Outcome.CHILD_KILLED,
    Outcome.WARM,
    Outcome.CRASH,
)


@pytest.mark.timeout(300)
def test_every_end_of_a_run_is_as_expected_and_none_worse_than_plain_celery() -> None:
    """B-22 to B-30, B-40, B-56, B-68: records, calls, times, and what Flower shows."""
    cells = play(combinations(), OUTCOMES)
    assert cells
    assert findings(cells) + comparisons(cells) == []


def combinations() -> list[tuple[Pool, Broker]]:
    """Return two pools on two brokers, of which there may be one here."""
    try:
        RabbitServer()
    except EmbeddedServerError:
        return [(Pool.FORK, Broker.VALKEY)]
    return [(Pool.FORK, Broker.VALKEY), (Pool.THREADS, Broker.CLASSIC)]

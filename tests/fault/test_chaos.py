"""The promises hold while servers, processes and connections fail: a short run on each broker.

`make chaos` runs longer. CHAOS_SEED replays a run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_reactive.embedded import EmbeddedServerError
from tests.fault.chaos import BROKERS, run, seed_of_today

SECONDS = 30.0


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker", sorted(BROKERS))
def test_the_promises_hold_under_faults(broker: str, tmp_path: Path) -> None:
    """B-10, B-18, B-22, B-23, B-27, B-28, B-46, B-66: nothing lost, no two live runs at once, nothing stale."""
    try:
        BROKERS[broker]()
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    report, stories = run(seed_of_today(), SECONDS, broker, tmp_path)
    assert report.is_good, f"{report.summary()}\n{stories}"
    assert len(report.runs) > 50

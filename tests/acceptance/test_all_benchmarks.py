"""The benchmarks that `test_benchmarks.py` leaves out: a minute."""

from __future__ import annotations

import pytest

from tests.acceptance.test_benchmarks import ROWS, SOME, assert_prints_its_figures


@pytest.mark.parametrize("name", sorted(ROWS.keys() - set(SOME)))
def test_a_benchmark_prints_its_figures(name: str) -> None:
    """A sample of what it measures, and no figure is missing or negative where it cannot be."""
    assert_prints_its_figures(name)

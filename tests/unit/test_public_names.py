"""What users may import: no more and no less than is said."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import celery_reactive
from celery_reactive import errors

STABLE = {
    "METRICS_CONTENT_TYPE",
    "Batch",
    "CleanupPolicy",
    "Evolution",
    "Explanation",
    "Operation",
    "Page",
    "PlanReport",
    "Reactive",
    "RetryPolicy",
    "TaskContext",
    "TaskRecord",
    "reactive_task",
    "signals",
}


def test_the_public_names_are_those_of_the_documentation() -> None:
    """Public surface: the named things and every error; the rest of the package is private."""
    raised = {name for name, thing in inspect.getmembers(errors, inspect.isclass) if issubclass(thing, Exception)}
    assert set(celery_reactive.__all__) >= STABLE
    assert set(celery_reactive.__all__) - STABLE <= raised
    assert all(hasattr(celery_reactive, name) for name in celery_reactive.__all__)
    assert len(set(celery_reactive.__all__)) == len(celery_reactive.__all__)


def test_every_public_error_is_one_of_ours() -> None:
    """Public surface: `except ReactiveError` catches them all."""
    public = [getattr(celery_reactive, name) for name in celery_reactive.__all__ if name.endswith("Error")]
    assert public
    assert all(issubclass(error, celery_reactive.ReactiveError) for error in public)


@pytest.mark.parametrize("module", ["celery.worker.consumer", "celery.worker.request", "celery.worker.strategy"])
def test_importing_the_package_imports_no_consumer_of_celery(module: str) -> None:
    """Instrumentations patch Celery's modules when a worker starts: what was imported before goes without them."""
    program = f"import sys, celery_reactive; print({module!r} in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"

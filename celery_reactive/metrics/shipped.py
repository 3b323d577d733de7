"""What is shipped for Grafana and Prometheus: a board and alert rules. The one source of both."""

from __future__ import annotations

from importlib import resources
from typing import Any

from celery_reactive.metrics import board as made


def board() -> dict[str, Any]:
    """Return the Grafana board, to be written as JSON."""
    return made.board()


def rules() -> str:
    """Return the alert rules for Prometheus, YAML."""
    return resources.files("celery_reactive.metrics").joinpath("rules.yml").read_text()

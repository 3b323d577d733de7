"""A real Prometheus scrapes the demo; it understands everything, and every shipped expression has an answer."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from celery_reactive.cli.demo import story
from celery_reactive.cli.demo.board import PlainBoard
from celery_reactive.cli.demo.processes import Child
from celery_reactive.metrics import shipped
from tests.acceptance.project import wait_until

PROMTOOL = shutil.which("promtool")

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or PROMTOOL is None,
    reason="prometheus (Debian: prometheus) is not installed",
)

CHOSEN = {"$namespace": ".*", "$task": ".*", "$queue": ".*", "$__rate_interval": "1m"}
EMPTY = {"Reconciliation"}
"""Panels that show nothing while nothing of the kind goes on."""
LONGEST_SECONDS = 100.0


class Prometheus:
    """The demo's own, asked by its API."""

    def __init__(self, stage: story.Stage) -> None:
        self._stage = stage

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer; None while it does not answer."""
        url = f"{self._stage.prometheus_url}api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 -- the demo's own
                return json.load(answer)["data"]
        except OSError:
            return None

    def query(self, expression: str) -> list[Any]:
        """Return what an expression comes to now."""
        data = self.get("query", query=expression)
        return [] if data is None else list(data["result"])

    def has(self, expression: str) -> bool:
        """Whether it comes to anything."""
        return bool(self.query(expression))

    def wait_for(self, expression: str) -> None:
        """Wait until it comes to something."""
        wait_until(lambda: self.has(expression), logs=self.logs, timeout=60)

    def logs(self) -> str:
        """Return the ends of everybody's logs."""
        return "\n".join(f"--- {child.name}\n{child.tail()}" for child in self._stage.children.values())


@pytest.fixture
def stage() -> Iterator[story.Stage]:
    """The demo, with its shop open and a Prometheus beside it."""
    board = PlainBoard(Console(file=io.StringIO()))
    with story.set_stage(board) as stage:
        story.open_prometheus(stage, board)
        stage.add(Child.shop("shop", stage.mongodb_url, LONGEST_SECONDS, folder=stage.folder))
        yield stage


@pytest.fixture
def prometheus(stage: story.Stage) -> Prometheus:
    """Its Prometheus, once it has scraped both planners and there is something to draw."""
    server = Prometheus(stage)
    failed = 'reactive_tasks_duration_seconds_count{status="failed"}'
    server.wait_for(f"count({failed}) == 2")
    server.wait_for(f"min(increase({failed}[1m])) > 0")
    return server


def test_prometheus_understands_everything(stage: story.Stage, prometheus: Prometheus) -> None:
    """B-55, B-57: the exposition, every expression of the board, every rule."""
    targets = prometheus.get("targets")["activeTargets"]
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 2
    assert prometheus.query("sum(reactive_tasks_planner_leader)")[0]["value"][1] == "1"
    assert_board_is_drawn(prometheus)
    assert_rules_are_evaluated(prometheus)
    for url in stage.metrics_urls.values():
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 -- the demo's own
            assert_is_well_formed(answer.read())


def assert_board_is_drawn(prometheus: Prometheus) -> None:
    """Check that each expression can be evaluated, and that only panels of rare events are empty."""
    empty = {
        (panel["title"], target["expr"])
        for panel in shipped.board()["panels"]
        for target in panel.get("targets", [])
        for combine in ("max", "sum")
        if panel["title"] not in EMPTY and not prometheus.has(chosen(target["expr"], combine))
    }
    assert empty == set()


def chosen(expression: str, combine: str) -> str:
    """Return an expression as Grafana sends it."""
    for name, text in {**CHOSEN, "$combine": combine}.items():
        expression = expression.replace(name, text)
    assert "$" not in expression
    return expression


def assert_rules_are_evaluated(prometheus: Prometheus) -> None:
    """Check that no rule fails, and that no alarm is raised by a system that is well."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), logs=prometheus.logs)
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []


def assert_is_well_formed(text: bytes) -> None:
    """Check an exposition with promtool; it finds `_total`, units, help and types."""
    assert PROMTOOL is not None
    said = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, b"")

"""A real Prometheus scrapes a small system; it understands everything, and every shipped expression has an answer."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_reactive.metrics import shipped
from tests.acceptance.project import Process, Project

TASKS = Path(__file__).with_name("metrics_tasks.py")
PROGRAM = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")

pytestmark = pytest.mark.skipif(
    PROGRAM is None or PROMTOOL is None, reason="prometheus (Debian: prometheus) is not installed"
)

CHOSEN = {"$namespace": ".*", "$task": ".*", "$queue": ".*", "$__rate_interval": "1m"}
EMPTY = {"Reconciliation"}
"""Panels that show nothing while nothing of the kind goes on."""
CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: planners
    static_configs: [{{targets: ["127.0.0.1:{first}", "127.0.0.1:{second}"]}}]
"""


class Prometheus:
    """A server of the test's own."""

    def __init__(self, folder: Path, targets: tuple[int, int]) -> None:
        self._port = free_port()
        folder.mkdir()
        (folder / "rules.yml").write_text(shipped.rules())
        (folder / "prometheus.yml").write_text(CONFIGURATION.format(first=targets[0], second=targets[1]))
        assert PROGRAM is not None
        options = [
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        self.process = Process("prometheus", [PROGRAM, *options], folder, {})

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; None while it does not answer."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}", timeout=10) as answer:
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


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def ports() -> tuple[int, int]:
    """Ports of two planners."""
    return free_port(), free_port()


@pytest.fixture
def shop(project: Project, ports: tuple[int, int]) -> Project:
    """A small system: two planners and a worker."""
    (project.folder / "proj.py").write_text(TASKS.read_text())
    for name, port in zip(("one", "two"), ports, strict=True):
        project.planner(name, "--metrics-port", str(port))
    project.worker("--concurrency", "1")
    return project


@pytest.fixture
def prometheus(tmp_path: Path, shop: Project, ports: tuple[int, int]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes both planners, once there is something to draw."""
    server = Prometheus(tmp_path / "prometheus", ports)
    try:
        failed = 'reactive_tasks_duration_seconds_count{status="failed"}'
        for expression in (f"count({failed}) == 2", f"min(increase({failed}[1m])) > 0"):
            shop.database.jobs.insert_many([{"do": "work"}, {"do": "fail"}])
            shop.wait_until(lambda expression=expression: server.has(expression), timeout=60)  # type: ignore[misc]
        yield server
    finally:
        server.process.stop()


def test_prometheus_understands_everything(shop: Project, prometheus: Prometheus, ports: tuple[int, int]) -> None:
    """B-55, B-57: the exposition, every expression of the board, every rule."""
    targets = prometheus.get("targets")["activeTargets"]
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 2
    assert prometheus.query("sum(reactive_tasks_planner_leader)")[0]["value"][1] == "1"
    assert_board_is_drawn(prometheus)
    assert_rules_are_evaluated(shop, prometheus)
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics", timeout=10) as answer:
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


def assert_rules_are_evaluated(shop: Project, prometheus: Prometheus) -> None:
    """Check that no rule fails, and that no alarm is raised by a system that is well."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    shop.wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []


def assert_is_well_formed(text: bytes) -> None:
    """Check an exposition with promtool; it finds `_total`, units, help and types."""
    assert PROMTOOL is not None
    said = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, b"")

"""What is shipped for Prometheus and Grafana speaks of metrics that there are, and is the same wherever it lies."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celery_reactive.metrics import shipped
from celery_reactive.metrics.catalogue import METRICS, PREFIX, Kind
from tests.docs.pages import ROOT, anchors_of

DEPLOY = ROOT / "deploy"
RUNBOOK = ROOT / "docs" / "guide" / "runbook.md"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is not installed")


def expressions() -> list[str]:
    """Return every expression of the board."""
    return [target["expr"] for panel in shipped.board()["panels"] for target in panel.get("targets", [])]


def alerts() -> list[str]:
    """Return the names of the alerts."""
    return re.findall(r"^ +- alert: (\w+)$", shipped.rules(), flags=re.MULTILINE)


def known_series() -> set[str]:
    """Return the names of all series that there can be."""
    parts = {Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
    return {f"{metric.full_name}{part}" for metric in METRICS for part in parts.get(metric.kind, ("",))}


def test_the_files_to_deploy_are_what_the_command_prints() -> None:
    """B-57: `celery-reactive metrics --rules > deploy/prometheus/rules.yml`, and `--grafana` likewise."""
    assert (DEPLOY / "prometheus" / "rules.yml").read_text() == shipped.rules()
    assert json.loads((DEPLOY / "grafana" / "celery-reactive.json").read_text()) == shipped.board()


@pytest.mark.parametrize("where", ["board", "rules"])
def test_only_metrics_that_there_are_are_spoken_of(where: str) -> None:
    """B-57: a misspelt name would show nothing for ever."""
    text = "\n".join(expressions()) if where == "board" else shipped.rules()
    spoken_of = set(re.findall(rf"\b{PREFIX}\w+", text))
    assert spoken_of - known_series() == set()


def test_the_board_shows_every_metric() -> None:
    """B-57: what is measured can be seen."""
    shown = "\n".join(expressions())
    assert [metric.full_name for metric in METRICS if metric.full_name not in shown] == []


def test_the_board_has_its_rows_and_variables() -> None:
    """B-57: health, flow, latency, failures, planner, controls; source, namespace, task and queue to choose."""
    board = shipped.board()
    assert [panel["title"].lower() for panel in board["panels"] if panel["type"] == "row"] == [
        "health",
        "flow",
        "latency",
        "failures",
        "planner",
        "controls",
    ]
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names == ["datasource", "namespace", "task", "queue", "combine"]
    used = set(re.findall(r"\$(\w+)", "\n".join(expressions())))
    assert used - {"__rate_interval"} <= set(names)


def test_panels_lie_side_by_side() -> None:
    """B-57: no panel lies upon another, and none sticks out."""
    taken: set[tuple[int, int]] = set()
    for panel in shipped.board()["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_every_alert_has_a_section_in_the_runbook_and_a_test() -> None:
    """B-57: whoever is woken finds what to do."""
    anchors = re.findall(r"runbook_url: docs/guide/runbook\.md#(\S+)$", shipped.rules(), flags=re.MULTILINE)
    assert len(anchors) == len(alerts()) == len(set(alerts())) > 10
    assert set(anchors) <= anchors_of(RUNBOOK)
    text = RUNBOOK.read_text()
    assert [alert for alert in alerts() if f"`{alert}`" not in text] == []
    tested = (DEPLOY / "prometheus" / "rules_test.yml").read_text()
    assert [alert for alert in alerts() if tested.count(alert) < 2] == []


@needs_promtool
@pytest.mark.parametrize("what", [("check", "rules", "--lint-fatal", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_has_nothing_to_say(what: tuple[str, ...]) -> None:
    """B-57: the rules can be loaded, and fire when they should and not before."""
    said = promtool(*what, folder=DEPLOY / "prometheus")
    assert said.returncode == 0, said.stdout + said.stderr


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run promtool in a folder."""
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)

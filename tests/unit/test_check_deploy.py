"""The check of the deployment files finds faults of every kind, and none in what is shipped."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
BASE = "deploy/kubernetes/base"
OVERLAY = "deploy/kubernetes/overlays/production"
CHART = "deploy/helm/celery-reactive"
UNIT = "deploy/systemd/celery-reactive-planner@.service"
FAULTS = [
    ("copies", "deploy/prometheus/rules.yml", "for: 5m", "for: 6m"),
    ("yamllint", "deploy/prometheus/prometheus.yml", "rule_files:", "global: {}\nrule_files:"),
    ("compose", "docker-compose.yml", "image: mongo", "picture: mongo"),
    ("compose", "docker-compose.yml", "mongo: {condition", "postgres: {condition"),
    ("hadolint", "deploy/Dockerfile", "USER 10001", "USER root"),
    ("prometheus", "deploy/prometheus/prometheus.yml", "type: A", "type: Q"),
    ("kubernetes", f"{BASE}/planner.yaml", "replicas: 2", "replicas: two"),
    ("kubernetes", f"{BASE}/planner.yaml", "clusterIP: None", "clusterIp: None"),
    ("kubernetes", f"{BASE}/dashboard.yaml", "component: dashboard\n  ports", "component: board\n  ports"),
    ("kubernetes", f"{OVERLAY}/kustomization.yaml", "worker.yaml", "workers.yaml"),
    ("helm", f"{CHART}/templates/planner.yaml", "livenessProbe", "aliveProbe"),
    ("helm", f"{CHART}/templates/workers.yaml", "{{- with $is.queues }}", "{{- with }}"),
    ("helm", f"{CHART}/values.yaml", "replicas: 2", "replicas: 0"),
    ("systemd", UNIT, "ProtectHome=yes", "ProtectHouse=yes"),
    ("systemd", UNIT, "/venv/bin/celery-reactive", "/venv/bin/celery-reaktiv"),
    ("systemd", UNIT, "CapabilityBoundingSet=\n", ""),
]
"""Check, file, what stands there, and the fault in its place."""


@pytest.fixture
def tool(tmp_path: Path) -> ModuleType:
    """The check, of a copy of what it checks."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    (tmp_path / "tools").mkdir()
    program = Path(shutil.copy(ROOT / "tools" / "check_deploy.py", tmp_path / "tools"))
    spec = importlib.util.spec_from_file_location("check_deploy", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found_by(tool: ModuleType, name: str) -> list[str]:
    """Return what a check finds, where its tool is here."""
    try:
        return list(tool.CHECKS[name]())
    except tool.MissingToolError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(
    "name", ["copies", "yamllint", "compose", "hadolint", "prometheus", "kubernetes", "helm", "systemd"]
)
def test_what_is_shipped_is_well(tool: ModuleType, name: str) -> None:
    """Each tool takes the files as they are."""
    assert found_by(tool, name) == []


@pytest.mark.parametrize(("name", "file", "right", "wrong"), FAULTS)
def test_a_fault_is_found(tool: ModuleType, tmp_path: Path, name: str, file: str, right: str, wrong: str) -> None:
    """By the check whose business it is."""
    path = tmp_path / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert found_by(tool, name)


def test_a_tool_that_pip_has_must_be_here(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of systemd, which it has not, it is told only."""
    monkeypatch.setattr(tool.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(tool, "PIP_HAS_ALL", True)
    assert not tool.passes("hadolint", tool.CHECKS["hadolint"])
    assert tool.passes("systemd", tool.CHECKS["systemd"])
    assert "systemd-analyze is missing" in capsys.readouterr().out

"""Prometheus may scrape a dashboard, with the credentials that the dashboard asks for."""

from __future__ import annotations

from starlette.testclient import TestClient

from celery_reactive import METRICS_CONTENT_TYPE
from tests.dashboard.conftest import MakeClient


def test_a_dashboard_answers_for_the_whole_system(visitor: TestClient) -> None:
    """B-55: as a planner does."""
    answer = visitor.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, METRICS_CONTENT_TYPE)
    assert 'reactive_tasks_queue_depth{status="failed",task_name="sync"} 2.0' in answer.text
    assert 'reactive_tasks_planning_failures{task_name="sync"} 1.0' in answer.text


def test_metrics_are_shown_to_nobody_else(make_client: MakeClient) -> None:
    """B-57: a bearer token, as Prometheus sends it."""
    token = "a-token-long-enough-for-anybody"  # noqa: S105 -- the test's own
    client = make_client(tokens=[token])
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"authorization": f"Bearer {token}"}).status_code == 200

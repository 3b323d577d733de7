"""Metrics of a project as a user runs it: scraped from a planner, from a worker, and over the death of processes."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_reactive import embedded
from celery_reactive.metrics.catalogue import METRICS, PREFIX, Kind
from tests.acceptance.project import Process, Project

TASKS = Path(__file__).with_name("metrics_tasks.py")

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def shop(project: Project) -> Project:
    """The project with the tasks of this test."""
    (project.folder / "proj.py").write_text(TASKS.read_text())
    return project


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def ask(port: int, path: str) -> tuple[int, str]:
    """Return the status and text that a process answers with; 0 where nobody does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def read(text: str) -> Values:
    """Return the values of an exposition, by name without the prefix and labels."""
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float | None:
    """Return one of them, None where it is missing."""
    return values.get((name, frozenset(labels.items())))


def scrape(port: int) -> Values:
    """Return what a process answers; nothing where it does not."""
    status, text = ask(port, "/metrics")
    return read(text) if status == 200 else {}


def put(project: Project, **number: int) -> None:
    """Insert so many documents for each thing that a run shall do."""
    project.database.jobs.insert_many([{"do": do} for do, times in number.items() for _ in range(times)])


def runs(values: Values, status: str) -> float:
    """Return how many runs there were."""
    return value(values, "duration_seconds_count", task_name="job", status=status) or 0.0


def test_a_planner_answers_for_the_whole_system(shop: Project, port: int) -> None:
    """B-55: every name, what workers have counted too, and the same from the command line."""
    shop.planner("one", "--metrics-port", str(port))
    shop.worker("--concurrency", "1")
    shop.wait_until(lambda: value(scrape(port), "change_stream_lag_seconds") is not None)
    put(shop, work=4, fail=1)
    shop.wait_until(lambda: runs(scrape(port), "success") == 4 and runs(scrape(port), "failed") == 2)
    values = scrape(port)
    assert value(values, "retries_total", task_name="job") == 1
    assert value(values, "wait_seconds_count", task_name="job") == 5
    assert value(values, "dispatched_total", queue="celery") == 6
    assert value(values, "queue_depth", task_name="job", status="failed") == 1
    assert value(values, "queue_depth", task_name="idle", status="pending") == 0
    assert value(values, "planned_total", task_name="job", result="written") == 5
    assert value(values, "planner_leader", group="default") == 1
    assert value(values, "planner_term", group="default") == value(values, "leader_elections_total") == 1
    assert value(values, "in_flight", queue="others") == 0
    assert value(values, "paused", task_name="job") == 0
    assert (value(values, "last_reconciliation_timestamp_seconds") or 0) > 0
    assert (value(values, "oplog_window_seconds") or 0) > 0
    shop.wait_until(lambda: value(scrape(port), "change_stream_lag_seconds") == 0)
    said = shop.run("metrics")
    assert runs(read(said.stdout), "success") == 4, said.stderr
    everything = {family.name for family in text_string_to_metric_families(said.stdout)}
    missing = {metric.name for metric in METRICS if metric.full_name.removesuffix("_total") not in everything}
    assert missing == {"planner_leader", "reconciliation_progress_ratio"}


def test_counters_do_not_go_back_when_processes_die(shop: Project, port: int) -> None:
    """B-55: over a killed pool process, a killed worker and a killed planner, and nothing is counted twice."""
    first = shop.planner("one", "--metrics-port", str(port))
    worker = shop.worker("--concurrency", "2", "--max-tasks-per-child", "3")
    readings: list[Values] = []

    def has_run(times: int) -> bool:
        readings.append(scrape(port))
        return runs(readings[-1], "success") >= times

    put(shop, work=10)
    shop.wait_until(lambda: has_run(10))
    put(shop, kill=1)
    shop.wait_until(lambda: has_run(11))
    os.killpg(worker.pid, signal.SIGKILL)
    shop.worker("--concurrency", "1")
    put(shop, work=10)
    shop.wait_until(lambda: has_run(21))
    first.send(signal.SIGKILL)
    first.wait()
    shop.planner("two", "--metrics-port", str(port))
    put(shop, work=1)
    shop.wait_until(lambda: has_run(22))
    known = [values for values in readings if values]
    counted = {metric.name for metric in METRICS if metric.kind is Kind.COUNTER}
    for earlier, later in itertools.pairwise(known):
        assert_not_less(
            later,
            {series: number for series, number in earlier.items() if series[0] in counted or "_bucket" in series[0]},
        )
    assert runs(known[-1], "success") == 22


def assert_not_less(values: Values, earlier: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
    """Check that nothing has gone back."""
    assert [series for series, number in earlier.items() if values.get(series, 0.0) < number] == []


def test_without_a_database_a_planner_is_alive_and_not_ready(
    shop: Project, port: int, mongo_server: embedded.MongoServer
) -> None:
    """B-55: a supervisor must not kill it, and Prometheus must not be told numbers that nobody knows."""
    if not isinstance(mongo_server, embedded.MongoServer):
        pytest.skip("only our own server may be stopped")
    shop.planner("one", "--metrics-port", str(port))
    shop.wait_until(lambda: ask(port, "/readyz")[0] == 200)
    shop.wait_until(lambda: value(scrape(port), "leader_elections_total") == 1)
    mongo_server.suspend()
    try:
        assert [ask(port, path)[0] for path in ("/readyz", "/metrics", "/healthz")] == [503, 503, 200]
    finally:
        mongo_server.resume()
    shop.wait_until(lambda: ask(port, "/readyz")[0] == 200)
    shop.wait_until(lambda: (value(scrape(port), "leader_elections_total") or 0) >= 1)


def test_a_leader_and_a_stand_by_are_ready(shop: Project, port: int) -> None:
    """B-55: and only one leads; what is asked for wrongly is answered so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = int(taken.getsockname()[1])
    shop.planner("one", "--metrics-port", str(port))
    shop.wait_until(lambda: value(scrape(port), "planner_leader", group="default") == 1)
    shop.planner("two", "--metrics-port", str(other))
    shop.wait_until(lambda: ask(other, "/readyz")[0] == 200)
    assert value(scrape(other), "planner_leader", group="default") == 0
    assert ask(port, "/healthz") == (200, "ok\n")
    assert ask(port, "/")[0] == 404
    refused = shop.run("planner", "--metrics-port", str(port))
    assert refused.returncode == 1
    assert f"free port, got 127.0.0.1:{port}" in refused.stderr


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_serves_its_own(shop: Project, port: int, pool: str) -> None:
    """B-55: in `local` mode, what all of its pool processes have counted, killed ones too; nothing is pushed."""
    shop.environment["PORT"] = str(port)
    shop.planner("one")
    worker = shop.worker("--concurrency", "2", "--pool", pool)
    put(shop, work=20, fail=1, **({"kill": 1} if pool == "prefork" else {}))
    done = 21 if pool == "prefork" else 20
    shop.wait_until(lambda: runs(scrape(port), "success") == done)
    shop.wait_until(lambda: runs(scrape(port), "failed") >= 2)
    values = scrape(port)
    assert value(values, "queue_depth", task_name="job", status="pending") is None
    assert ask(port, "/healthz") == (200, "ok\n")
    assert shop.database["_celery_reactive"].count_documents({"_id.k": "counted"}) == 0
    worker.stop()
    shop.wait_until(lambda: ask(port, "/metrics") == (0, ""))


@pytest.mark.parametrize(("mode", "start_method"), [("cluster", "fork"), ("local", "spawn")])
def test_what_a_workers_parent_ends_is_counted(shop: Project, port: int, mode: str, start_method: str) -> None:
    """B-30, B-55: it has no thread of ours, and its pool processes may be forked or started anew."""
    shop.environment["START_METHOD"] = start_method
    if mode == "local":
        shop.environment["PORT"] = str(port)
        shop.planner("one")
    else:
        shop.planner("one", "--metrics-port", str(port))
    shop.worker("--concurrency", "1")
    shop.database.limited.insert_one({})
    put(shop, work=1)
    ended = {"task_name": "limited", "status": "failed"}
    shop.wait_until(lambda: value(scrape(port), "duration_seconds_count", **ended) == 2)
    assert value(scrape(port), "retries_total", task_name="limited") == 1
    assert runs(scrape(port), "success") == 1


def test_local_gauges_are_the_leaders(shop: Project, port: int) -> None:
    """B-55: in `local` mode the planner that leads measures the system, and counts for itself alone."""
    shop.environment["LOCAL"] = "1"
    shop.planner("one", "--metrics-port", str(port))
    shop.worker("--concurrency", "1")
    put(shop, work=2)
    shop.wait_until(lambda: value(scrape(port), "queue_depth", task_name="job", status="pending") == 0)
    shop.wait_until(lambda: value(scrape(port), "dispatched_total", queue="celery") == 2)
    assert runs(scrape(port), "success") == 0


def test_switched_off_nothing_is_counted_or_answered(shop: Project, port: int) -> None:
    """B-55: `reactive_metrics_enabled`; health is told nevertheless."""
    tasks = (shop.folder / "proj.py").read_text()
    (shop.folder / "proj.py").write_text(tasks + "\napp.conf.reactive_metrics_enabled = False\n")
    shop.planner("one", "--metrics-port", str(port))
    shop.worker("--concurrency", "1")
    put(shop, work=1)
    shop.wait_until(lambda: shop.database["jobs_tasks"].find_one({"status": "completed"}))
    shop.wait_until(lambda: ask(port, "/readyz")[0] == 200)
    assert ask(port, "/metrics")[0] == 404
    refused = shop.run("metrics")
    assert (refused.returncode, "reactive_metrics_enabled" in refused.stderr) == (1, True)
    assert shop.database["_celery_reactive"].count_documents({"_id.k": "counted"}) == 0


def test_what_is_shipped_needs_no_app(shop: Project) -> None:
    """B-57: board and rules are printed wherever the package is installed."""
    for option, said in (("--grafana", '"panels"'), ("--rules", "ReactiveTasksNoLeader")):
        printed = shop.run_program(sys.executable, "-m", "celery_reactive.cli", "metrics", option, CELERY_APP="")
        assert printed.returncode == 0, printed.stderr
        assert said in printed.stdout


def test_a_taken_port_ends_a_worker_with_the_reason(shop: Project, port: int) -> None:
    """B-55: instead of one that nobody can scrape."""
    shop.environment["PORT"] = str(port)
    with socket.create_server(("127.0.0.1", port)):
        worker: Process = shop.worker("--concurrency", "1")
        assert worker.wait() != 0
    assert "free port" in worker.text()

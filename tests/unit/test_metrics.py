"""Counting and exposing without a server: which event counts where, what is added up, and how it is written."""

from __future__ import annotations

import dataclasses
import math
from importlib.metadata import version
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from celery_reactive import METRICS_CONTENT_TYPE, ConfigurationError, Reactive, StoreUnavailableError
from celery_reactive.core.declaration import declare
from celery_reactive.core.registry import Registry
from celery_reactive.core.totals import Distribution, Totals
from celery_reactive.events import (
    EVENTS,
    BatchFailed,
    DispatchFailed,
    DocumentsPlanned,
    Event,
    HistoryLost,
    LeadershipEnded,
    LeadershipWon,
    LeaseExpired,
    LeaseLost,
    PlannerStarted,
    PlannerStopped,
    PlanningFailed,
    PlanningPostponed,
    RecordsDispatched,
    RunDeferred,
    RunFailed,
    RunFinished,
    RunRetried,
    RunSkipped,
    RunStarted,
    StreamFailed,
)
from celery_reactive.metrics import catalogue
from celery_reactive.metrics.catalogue import METRICS, Kind, Metric
from celery_reactive.metrics.counts import Counts
from celery_reactive.metrics.expose import Exposition, SystemCollector
from celery_reactive.metrics.gauges import Sample
from celery_reactive.metrics.listen import Listener
from celery_reactive.metrics.standing import Standing

JOB = ("job", "job[1]", 1)

COUNTED: list[tuple[Event, dict[tuple[str, ...], float]]] = [
    (RunStarted(*JOB, waited_seconds=2.0), {("wait_seconds", "job"): 1}),
    (RunStarted(*JOB, waited_seconds=None), {}),
    (RunFinished(*JOB, "completed", 0.1), {("duration_seconds", "job", "success"): 1}),
    (RunFailed(*JOB, "no", 0.1), {("duration_seconds", "job", "failed"): 1}),
    (
        RunRetried(*JOB, "no", 0.1, None),
        {("duration_seconds", "job", "failed"): 1, ("retries_total", "job"): 1},
    ),
    (RunDeferred(*JOB, None, overtaken=False), {}),
    (RunSkipped(*JOB, "gone"), {}),
    (LeaseLost(*JOB), {("lock_lost_total", "job"): 1}),
    (LeaseExpired("job", "job[1]", "pending"), {("lock_lost_total", "job"): 1, ("retries_total", "job"): 1}),
    (LeaseExpired("job", "job[1]", "failed"), {("lock_lost_total", "job"): 1}),
    (
        DocumentsPlanned("job", 10, deleted=3, set_aside=1),
        {("planned_total", "job", "written"): 6, ("planned_total", "job", "deleted"): 3},
    ),
    (PlanningFailed("job", "job[1]", "no"), {("planned_total", "job", "failed"): 1}),
    (PlanningPostponed("job", "job[1]"), {("planned_total", "job", "locked"): 1}),
    (
        RecordsDispatched("job", 5, 2, "erp", again=2),
        {("dispatched_total", "erp"): 5, ("redispatched_total",): 2},
    ),
    (RecordsDispatched("job", 5, 2, None), {("dispatched_total", ""): 5, ("redispatched_total",): 0}),
    (DispatchFailed("no"), {("dispatch_failures_total", "unavailable"): 1}),
    (DispatchFailed("no", "refused"), {("dispatch_failures_total", "refused"): 1}),
    (LeadershipWon("one", 1), {("leader_elections_total",): 1}),
    (StreamFailed("shop", "no"), {("stream_errors_total",): 1}),
    (HistoryLost("shop", "no"), {("stream_errors_total",): 1}),
    (BatchFailed("shop", "no"), {("flush_failures_total",): 1}),
    (RunFinished("never declared", "x[1]", 1, "completed", 0.1), {("duration_seconds", "(undeclared)", "success"): 1}),
]


@pytest.fixture
def registry() -> Registry:
    """One task, called job."""
    registry = Registry()
    registry.add(declare("job", {"collection": "jobs"}), celery_name="proj.job")
    return registry


def numbers(totals: Totals) -> dict[tuple[str, ...], float]:
    """Return counters, and the numbers of observations, by name and labels."""
    counted: dict[tuple[str, ...], float] = {
        (name, *labels): value for (name, labels), value in totals.counters.items()
    }
    return counted | {(name, *labels): sum(one.numbers) for (name, labels), one in totals.distributions.items()}


@pytest.mark.parametrize(("event", "expected"), COUNTED, ids=[str(event) for event, _ in COUNTED])
def test_an_event_counts_where_it_belongs(
    registry: Registry, event: Event, expected: dict[tuple[str, ...], float]
) -> None:
    """B-54, B-55: and those who push hear of it only when something was counted."""
    counts, heard = Counts(), []
    Listener(counts, registry, on_counted=lambda: heard.append(1))(event)
    assert numbers(counts.totals()) == expected
    assert len(heard) == bool(expected)


def test_every_counter_and_histogram_is_fed_by_an_event() -> None:
    """B-55: one that nothing counts would stay 0 for ever."""
    fed = {series[0] for _, expected in COUNTED for series in expected}
    assert fed == {metric.name for metric in METRICS if metric.kind is not Kind.GAUGE}
    assert {type(event) for event, _ in COUNTED} <= set(EVENTS)


def test_a_process_knows_what_its_planners_do() -> None:
    """B-55: which groups it stands for, and which it leads."""
    standing = Standing()
    for event in (PlannerStarted("one", 1, "a"), PlannerStarted("one", 1, "b"), LeadershipWon("one", 7, "a")):
        standing(event)
    assert (standing.groups, standing.terms) == ({"a", "b"}, {"a": 7})
    for event in (LeadershipEnded("one", 7, True, "a"), PlannerStopped("one", "a")):  # noqa: FBT003 -- handed over
        standing(event)
    assert (standing.groups, standing.terms) == ({"b"}, {})


def distributions() -> st.SearchStrategy[Distribution]:
    """Return distributions over the same few buckets."""
    return st.tuples(*[st.integers(0, 9)] * 3).map(lambda found: Distribution((1.0, 5.0), found, float(sum(found))))


def some_totals() -> st.SearchStrategy[Totals]:
    """Return totals of a few series."""
    series = st.tuples(st.sampled_from(["a", "b"]), st.tuples(st.sampled_from(["x", "y"])))
    return st.builds(
        Totals,
        st.dictionaries(series, st.integers(0, 99).map(float)),
        st.dictionaries(st.tuples(st.just("h"), st.tuples(st.sampled_from(["x", "y"]))), distributions()),
    )


@given(some_totals(), some_totals())
def test_what_is_added_can_be_taken_away(first: Totals, second: Totals) -> None:
    """B-55: a process that goes on under a new name loses nothing and counts nothing twice."""
    assert without_nothing(first.plus(second).minus(first)) == without_nothing(second)
    assert without_nothing(first.plus(second)) == without_nothing(second.plus(first))


@given(some_totals())
def test_what_is_stored_is_what_is_read(totals: Totals) -> None:
    """B-55: name, labels, buckets."""
    assert Totals.from_entries(totals.to_entries()) == totals


def without_nothing(totals: Totals) -> Totals:
    """Return *totals* without series that are 0: there and missing is the same."""
    return Totals(
        {series: value for series, value in totals.counters.items() if value},
        {series: one for series, one in totals.distributions.items() if sum(one.numbers)},
    )


@given(st.lists(st.floats(0, 1e5), max_size=50), st.sets(st.floats(0.001, 1e5), max_size=8))
def test_other_buckets_lose_no_observation_and_make_none_smaller(values: list[float], bounds: set[float]) -> None:
    """B-55: counts of another version of the package keep their number and their sum."""
    seen = observed(catalogue.DURATION, values)
    fitted = seen.fitted(sorted(bounds))
    assert sum(fitted.numbers) == len(values)
    assert fitted.sum == seen.sum
    at_most = 0
    for bound, number in zip((*sorted(bounds), math.inf), fitted.numbers, strict=True):
        at_most += number
        assert at_most <= sum(value <= bound for value in values)


def test_an_observation_falls_into_the_first_bucket_that_holds_it() -> None:
    """B-55: bounds belong to their buckets, as Prometheus has it."""
    metric = dataclasses.replace(catalogue.WAIT, buckets=(1.0, 2.0))
    one = observed(metric, [0.0, 1.0, 1.1, 2.0, 9.0])
    assert (one.numbers, one.sum) == ((2, 2, 1), 13.1)


def observed(metric: Metric, values: list[float]) -> Distribution:
    """Return the distribution of some observations."""
    counts = Counts()
    for value in values:
        counts.observe(metric, value=value)
    found = counts.totals().distributions
    return found[metric.name, ()] if values else Distribution(metric.buckets, (0,) * (len(metric.buckets) + 1), 0.0)


def exposed(registry: Registry, totals: Totals, *samples: Sample) -> str:
    """Return the text for *totals* and *samples*."""
    return Exposition(registry, Standing(), totals=lambda: totals, gauges=lambda: samples).text().decode()


def test_counters_begin_with_nothing(registry: Registry) -> None:
    """B-55: or Prometheus would take no notice of the first count."""
    text = exposed(registry, Totals())
    for line in (
        'reactive_tasks_retries_total{task_name="job"} 0.0',
        'reactive_tasks_planned_total{result="failed",task_name="job"} 0.0',
        'reactive_tasks_dispatch_failures_total{reason="unavailable"} 0.0',
        "reactive_tasks_leader_elections_total 0.0",
    ):
        assert line in text


def test_tasks_that_are_no_longer_declared_are_left_out(registry: Registry) -> None:
    """B-55: or every name that a task has ever had would stay a label's value."""
    counts = Counts()
    for task in ("job", "its.old.name", catalogue.UNDECLARED):
        counts.add(catalogue.RETRIES, task)
        counts.observe(catalogue.DURATION, task, "success", value=1.0)
    text = exposed(registry, counts.totals())
    assert "its.old.name" not in text
    for task in ("job", catalogue.UNDECLARED):
        assert f'retries_total{{task_name="{task}"}} 1.0' in text
        assert f'duration_seconds_count{{status="success",task_name="{task}"}} 1.0' in text


def test_a_histogram_is_cumulated(registry: Registry) -> None:
    """B-55: each bucket holds all that is not larger."""
    counts = Counts()
    for value in (0.001, 0.3, 0.3, 4000.0):
        counts.observe(catalogue.DURATION, "job", "success", value=value)
    text = exposed(registry, counts.totals())
    labels = 'status="success",task_name="job"'
    assert f'reactive_tasks_duration_seconds_bucket{{le="0.005",{labels}}} 1.0' in text
    assert f'reactive_tasks_duration_seconds_bucket{{le="0.5",{labels}}} 3.0' in text
    assert f'reactive_tasks_duration_seconds_bucket{{le="1800.0",{labels}}} 3.0' in text
    assert f'reactive_tasks_duration_seconds_bucket{{le="+Inf",{labels}}} 4.0' in text
    assert f"reactive_tasks_duration_seconds_count{{{labels}}} 4.0" in text


def test_a_registry_beside_others_is_none_the_worse_without_a_database(registry: Registry) -> None:
    """B-55: what a program exposes of its own must not go with it."""

    def totals() -> Totals:
        if is_away:
            raise StoreUnavailableError("away")
        return Totals()

    own = CollectorRegistry()
    Gauge("own", "Of the program.", registry=own).set(7)
    is_away = True
    own.register(SystemCollector(Exposition(registry, Standing(), totals=totals, gauges=tuple)))
    assert generate_latest(own).decode().endswith("own 7.0\n")
    is_away = False
    assert "reactive_tasks_build_info" in generate_latest(own).decode()


def test_an_app_has_its_metrics_as_text_and_as_a_registry() -> None:
    """B-55: public surface; refused where they are switched off, before anything is read."""
    app = Celery("proj", set_as_current=False)
    app.conf.reactive_metrics_scrape_mode = "local"
    assert f'build_info{{version="{version("celery-reactive")}"}} 1.0' in Reactive.of(app).metrics().decode()
    assert b"build_info" in generate_latest(Reactive.of(app).metrics_registry())
    assert Reactive.METRICS_CONTENT_TYPE == METRICS_CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    off = Celery("off", set_as_current=False)
    off.conf.reactive_metrics_enabled = False
    for ask in (Reactive.of(off).metrics, Reactive.of(off).metrics_registry):
        with pytest.raises(ConfigurationError, match="reactive_metrics_enabled"):
            ask()


@pytest.mark.parametrize("name", ['quo"ted', "back\\slash", "new\nline", "späte", "{}"])
def test_a_task_may_be_called_anything(name: str) -> None:
    """B-45, B-55: what would end a label's value is escaped."""
    registry = Registry()
    registry.add(declare(name, {"collection": "jobs"}), celery_name=name)
    families = list(text_string_to_metric_families(exposed(registry, Totals(), Sample(catalogue.PAUSED, (name,), 1))))
    values: list[Any] = [
        sample.labels["task_name"] for family in families for sample in family.samples if "task_name" in sample.labels
    ]
    assert set(values) == {name}


def test_names_follow_prometheus_customs() -> None:
    """B-55: counters end in `_total`, durations in `_seconds`; labels are as few as the catalogue says."""
    for metric in METRICS:
        assert metric.full_name == f"reactive_tasks_{metric.name}"
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert set(metric.labels) <= {"task_name", "status", "queue", "group", "reason", "result", "version"}
        assert list(metric.buckets) == sorted(metric.buckets)

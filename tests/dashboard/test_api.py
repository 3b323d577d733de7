"""The JSON API: it keeps to its OpenAPI document, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from celery_reactive.core.redaction import MASK
from celery_reactive.core.states import RecordState
from celery_reactive.dashboard import openapi
from celery_reactive.dashboard.access import Action
from tests.dashboard.conftest import FAILED_ID, SECRET, MakeClient, Shop

EXAMPLES = 12
"""Requests of each kind for each operation."""


def bad_data_is_refused(ctx: Any, response: Any, case: Any) -> bool | None:
    """What violates the document is refused, if it is not refused for its size before anybody reads it."""
    return None if response.status_code == 413 else negative_data_rejection(ctx, response, case)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    bad_data_is_refused,
]
"""What must hold of every answer; that good data is taken is not among it: a task's name may be good and unknown."""


def test_every_endpoint_is_in_the_document(visitor: TestClient) -> None:
    """B-57: what is not described is not there, and the other way round."""
    described = visitor.get("/openapi.json").json()["paths"]
    assert {path.removeprefix(f"{openapi.BASE}/") for path in described} == {
        *Action,
        "status",
        "activity",
        "records",
        "record",
        "errors",
        "failures",
        "operations",
        "planner",
        "preview",
        "schedule",
    }
    for path, methods in described.items():
        for method in ("get", "post"):
            answer = visitor.request(method, path, json={} if method == "post" else None)
            assert (answer.status_code == 405) == (method not in methods), (path, method)


def test_a_record_is_told_with_its_reasons(visitor: TestClient) -> None:
    """B-53: facts and explanation; secrets masked."""
    found = visitor.get("/api/v1/record", params={"task": "sync", "doc_id": str(FAILED_ID)})
    record = found.json()["record"]
    assert (record["doc_id"], record["status"], record["attempts"]) == (
        '{"$oid": "5f0000000000000000000001"}',
        "failed",
        1,
    )
    assert record["last_observed_values"]["v"]["password"] == MASK
    assert found.json()["explanation"]["outlook"] == "will_not_run"
    assert SECRET not in found.text


def test_an_action_says_what_it_came_to(visitor: TestClient, shop: Shop) -> None:
    """B-52: the preview counts the same records, and changes nothing."""
    asked = {"task": "sync", "status": ["failed"], "error": "refused"}
    assert visitor.post("/api/v1/preview", json=asked).json()["count"] == 2
    assert shop.record(FAILED_ID).status is RecordState.FAILED
    done = visitor.post("/api/v1/retry", json=asked).json()
    assert done == {"sentence": "2 records are pending now", "changed": 2, "operation": None}
    assert shop.record(FAILED_ID).status is RecordState.PENDING


def test_an_operation_can_be_followed_and_stopped(visitor: TestClient, shop: Shop) -> None:
    """B-57: by its id."""
    started = shop.reactive.start_operation("retry", task="sync")
    items = visitor.get("/api/v1/operations").json()["items"]
    assert [(one["id"], one["state"]) for one in items] == [(started.id, "running")]
    assert visitor.post("/api/v1/cancel", json={"operation": started.id}).json()["sentence"].startswith("the operation")
    assert visitor.get("/api/v1/operations").json()["items"][0]["state"] == "cancelled"
    assert visitor.post("/api/v1/cancel", json={"operation": "nonsense"}).status_code == 400


def test_as_many_values_are_taken_as_the_document_says(visitor: TestClient) -> None:
    """B-57: one name may be given 200 times, in a query as in a body, and not once more."""
    most = ["failed"] * 200
    assert visitor.get("/api/v1/records", params={"status": most}).status_code == 200
    for answer in (
        visitor.get("/api/v1/records", params={"status": [*most, "failed"]}),
        visitor.post("/api/v1/preview", json={"status": [*most, "failed"]}),
    ):
        assert answer.status_code == 400
        assert answer.json()["reason"] == "status: expected at most 200 values, got 201"


def test_fewer_rights_are_told_by_status(make_client: MakeClient) -> None:
    """B-57: 401 and 403 are answered in JSON as well."""
    assert make_client(tokens=["0123456789abcdef"]).get("/api/v1/status").json().keys() == {"reason"}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_whatever_is_sent_the_document_holds(shop: Shop, mode: schemathesis.GenerationMode) -> None:
    """B-57: generated requests, good and bad, are answered as described: no 500, no answer of another shape."""
    application = shop.reactive.dashboard(authorize=lambda _: "all")
    schema = schemathesis.openapi.from_asgi("/openapi.json", application)
    problems: list[str] = []
    for found in schema.get_all_operations():
        operation: Any = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        try:
            check()
        except Unsatisfiable:
            # Without a parameter there is no bad value of one.
            assert mode is schemathesis.GenerationMode.NEGATIVE
        except (AssertionError, BaseExceptionGroup) as error:
            problems.append(f"{operation.label}: {error}")
    assert not problems, "\n".join(problems)

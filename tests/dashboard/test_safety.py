"""Who is let in, to what, from where; and what no request can bring about."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from bson import SON
from celery import Celery
from pymongo.database import Database
from starlette.authentication import SimpleUser
from starlette.requests import Request
from starlette.testclient import TestClient

from celery_reactive import ConfigurationError, Reactive
from celery_reactive.core.states import RecordState
from celery_reactive.dashboard.access import Action
from celery_reactive.dashboard.guard import MOST_BYTES
from celery_reactive.errors import StoreBusyError, StoreUnavailableError
from celery_reactive.management import listing
from tests.dashboard.conftest import FAILED_ID, SECRET, MakeClient, Shop

TOKEN = "0123456789abcdef"  # noqa: S105 -- a test's own
PASSWORD = "correct horse: battery"  # noqa: S105 -- a test's own
OWN = {"sec-fetch-site": "same-origin"}
LOOKING = [
    "/",
    "/records?task=sync",
    f"/record?task=sync&doc_id={FAILED_ID}",
    "/errors",
    "/planner",
    "/operations",
    "/schedule",
    "/confirm/retry?task=sync",
    "/api/v1/status",
    "/api/v1/activity",
    "/api/v1/planner",
    "/api/v1/schedule",
]
PUBLIC: dict[str, Any] = {"base_url": "https://dash.example.org", "client": ("203.0.113.9", 40000)}


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header of basic authentication."""
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


# --- who ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/records", "/api/v1/status", "/openapi.json", "/static/dashboard.css", "/nowhere"]
)
def test_without_credentials_only_this_machine_is_answered(make_client: MakeClient, path: str) -> None:
    """B-57: safe by default, also where it is mounted in something that listens to the world."""
    assert make_client(**PUBLIC).get(path).status_code == 403
    assert make_client(client=("203.0.113.9", 1)).get(path).status_code == 403
    assert make_client(base_url="http://rebound.example.org").get(path).status_code == 403
    for header in ("x-forwarded-for", "forwarded", "x-real-ip", "via"):
        assert make_client().get(path, headers={header: "127.0.0.1"}).status_code == 403


@pytest.mark.parametrize("base_url", ["http://localhost:8765", "http://127.0.0.1", "http://[::1]:8765"])
def test_this_machine_is_answered_by_any_of_its_names(make_client: MakeClient, base_url: str) -> None:
    """B-57: one who starts it and looks at it needs nothing else."""
    assert make_client(base_url=base_url).get("/").status_code == 200


def test_users_and_tokens_are_let_in(make_client: MakeClient) -> None:
    """B-57: basic authentication for people, bearer tokens for programs."""
    client = make_client(**PUBLIC, users={"ops": PASSWORD}, tokens=[TOKEN])
    assert client.get("/", headers=basic("ops", PASSWORD)).status_code == 200
    assert client.get("/api/v1/status", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


class _Signed:
    """An application that knows who asks, as Starlette's middleware tells it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on."""
        await self._inner({**scope, "user": SimpleUser("maria")}, receive, send)


def test_what_was_done_names_who_did_it(make_client: MakeClient, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """B-57: by user, by the name of a token, by the user of the application around it; in the list and in the log."""
    caplog.set_level(logging.INFO, "celery_reactive.dashboard")
    client = make_client(**PUBLIC, users={"ops": PASSWORD}, tokens={"deploy-bot": TOKEN})
    everything = {"all": True}
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert client.post("/api/v1/retry", json=everything, headers=basic("ops", PASSWORD)).status_code == 200
    assert client.post("/api/v1/retry", json=everything, headers=bearer).status_code == 200
    assert client.post("/api/v1/pause", json={"task": "sync"}, headers=bearer).status_code == 200
    around = TestClient(_Signed(shop.reactive.dashboard(authorize=lambda _: "all")), base_url="http://localhost")
    assert around.post("/api/v1/retry", json=everything).status_code == 200
    found = client.get("/api/v1/operations", headers=bearer).json()["items"]
    assert [one["by"] for one in found] == ["maria (dashboard)", "deploy-bot (dashboard)", "ops (dashboard)"]
    logged = [one.__dict__ for one in caplog.records if one.getMessage() == "done by hand"]
    assert [(one["action"], one["by"]) for one in logged] == [
        ("retry", "ops (dashboard)"),
        ("retry", "deploy-bot (dashboard)"),
        ("pause", "deploy-bot (dashboard)"),
        ("retry", "maria (dashboard)"),
    ]


@pytest.mark.parametrize("path", LOOKING)
def test_looking_writes_nothing(visitor: TestClient, app: Celery, path: str) -> None:
    """B-57: a role that may only read suffices for whoever only looks."""
    app.conf.beat_schedule = {"nightly": {"task": "shop.sync", "schedule": 86400.0}}
    database = Reactive.of(app).runtime.connection.database()
    database.command("profile", 2)
    try:
        assert visitor.get(path).status_code == 200
    finally:
        database.command("profile", 0)
    writes = {"op": {"$in": ["insert", "update", "remove"]}, "ns": {"$not": {"$regex": "system.profile$"}}}
    assert list(database["system.profile"].find(writes)) == []
    assert database["system.profile"].count_documents({}) > 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("ops", "wrong"),
        basic("nobody", PASSWORD),
        basic("ops", ""),
        basic("", ""),
        {"authorization": "Basic %%%"},
        {"authorization": "Basic"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer " + TOKEN[:-1]},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer é"},
    ],
)
def test_nobody_else_is_let_in(make_client: MakeClient, headers: dict[str, str]) -> None:
    """B-57: also from this machine, once there are credentials."""
    client = make_client(users={"ops": PASSWORD}, tokens=[TOKEN])
    answer = client.get("/", headers={name: value.encode("latin-1") for name, value in headers.items()})  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("answer", ["all", True])
def test_authorize_decides_about_everything(make_client: MakeClient, answer: Any) -> None:
    """B-57: whoever it lets in needs no credentials, from anywhere."""
    client = make_client(**PUBLIC, authorize=lambda _: answer)
    assert client.get("/").status_code == 200
    assert client.post("/actions/pause", data={"task": "sync"}, headers=OWN).status_code == 200


@pytest.mark.parametrize("answer", [None, False])
def test_authorize_lets_nobody_in(make_client: MakeClient, answer: Any) -> None:
    """B-57: nothing is shown, not even static files."""
    client = make_client(authorize=lambda _: answer)
    assert {client.get(path).status_code for path in ("/", "/api/v1/status", "/static/logo.svg")} == {403}


def test_authorize_sees_the_request_and_may_wait(make_client: MakeClient) -> None:
    """B-57: the user's own session or header decides, also in a coroutine."""

    async def authorize(request: Request) -> str | None:
        return "read-only" if request.headers.get("x-role") == "support" else None

    client = make_client(**PUBLIC, authorize=authorize)
    assert client.get("/", headers={"x-role": "support"}).status_code == 200
    assert client.get("/").status_code == 403


@pytest.mark.parametrize(
    "options", [{"read_only": True}, {"authorize": lambda _: "read-only"}, {"authorize": lambda _: set()}]
)
def test_who_may_only_look_changes_nothing(make_client: MakeClient, shop: Shop, options: dict[str, Any]) -> None:
    """B-57: checked on the server for each action, by pages and API; the pages offer none."""
    client = make_client(**options)
    for action in Action:
        assert client.get(f"/confirm/{action}?task=sync").status_code == 403
        assert client.post(f"/actions/{action}", data={"task": "sync"}, headers=OWN).status_code == 403
        assert client.post(f"/api/v1/{action}", json={"task": "sync"}).status_code == 403
    for path in ("/", "/records", f"/record?task=sync&doc_id={FAILED_ID}", "/errors", "/planner"):
        assert "/confirm/" not in client.get(path).text
    assert shop.record(FAILED_ID).status is RecordState.FAILED


def test_a_set_of_actions_is_allowed_one_by_one(make_client: MakeClient) -> None:
    """B-57: what is not among them is refused and not offered."""
    client = make_client(authorize=lambda _: {"pause", "retry"})
    assert client.post("/api/v1/pause", json={"task": "sync"}).status_code == 200
    refused = client.post("/api/v1/discard", json={"task": "sync"})
    assert (refused.status_code, refused.json()) == (403, {"reason": "you may look, and not discard"})
    page = client.get(f"/record?task=sync&doc_id={FAILED_ID}").text
    assert "/confirm/retry" in page
    assert "/confirm/discard" not in page


def test_a_mistake_of_authorize_lets_nobody_in(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    """B-57: what it returns is checked, and the log says what was expected."""
    client = make_client(authorize=lambda _: {"retrry"})
    assert client.get("/").status_code == 503
    assert "did you mean 'retry'?" in caplog.text


# --- from where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://localhost"}, 200),
        ({}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
    ],
)
def test_a_form_is_taken_only_from_this_site(make_client: MakeClient, headers: dict[str, str], status: int) -> None:
    """B-57: a page of another site can send a form in a person's name, and must not change anything by it."""
    assert make_client().post("/actions/pause", data={"task": "sync"}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
    ],
)
def test_the_api_takes_what_no_other_site_can_send(
    make_client: MakeClient, headers: dict[str, str], status: int
) -> None:
    """B-57: a program sends JSON; a browser asks before it sends that elsewhere, and is not told yes."""
    answer = make_client().post(
        "/api/v1/pause", content=b'{"task": "sync"}', headers={"content-type": "application/json", **headers}
    )
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/", "/records?status=nonsense", "/nowhere", "/static/dashboard.js", "/api/v1/status"]
)
def test_every_answer_carries_the_policy(make_client: MakeClient, path: str) -> None:
    """B-57: no inline script, no frame, no guessing of types, on errors too."""
    headers = make_client().get(path).headers
    assert "script-src 'self';" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == ("no-cache" if "static" in path else "no-store")


def test_what_is_too_large_is_refused(make_client: MakeClient) -> None:
    """B-57: a body is read to a limit."""
    client = make_client()
    body = json.dumps({"task": "x" * MOST_BYTES}).encode()
    assert client.post("/api/v1/pause", content=body, headers={"content-type": "application/json"}).status_code == 413


# --- what is asked --------------------------------------------------------------------------------------


HOSTILE_IDS = [
    '{"$ne": null}',
    '{"$gt": ""}',
    '{"$in": [1]}',
    '{"$regularExpression": {"pattern": ".*", "options": ""}}',
    '{"$code": "1"}',
]


@pytest.mark.parametrize("doc_id", HOSTILE_IDS)
def test_an_id_is_never_an_operator(make_client: MakeClient, shop: Shop, doc_id: str) -> None:
    """B-51: what reads like one is an id that no document has."""
    client = make_client()
    found = client.get("/api/v1/records", params={"doc_id": doc_id})
    assert found.status_code in {200, 400}
    assert found.status_code == 400 or found.json()["total"] == 0
    changed = client.post("/api/v1/retry", json={"doc_id": doc_id})
    assert changed.status_code == 400 or changed.json()["changed"] == 0
    assert shop.record(FAILED_ID).status is RecordState.FAILED


@pytest.mark.parametrize("value", [{"$ne": None}, ["x", {"$gt": ""}], 7, None, "", True, "a\0b", "\ud800"])
@pytest.mark.parametrize("field", ["task", "status", "collection", "doc_id", "error", "template", "key"])
def test_a_field_that_is_no_text_is_refused(make_client: MakeClient, field: str, value: Any) -> None:
    """B-51: an object in the place of a text gets nowhere near a query."""
    answer = make_client().post(
        "/api/v1/retry",
        content=json.dumps({field: value}).encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["reason"]


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("task=synk", 404, "did you mean 'sync'?"),
        ("status=faild", 400, "did you mean 'failed'?"),
        ("collection=order", 400, "did you mean 'orders'?"),
        ("taks=sync", 400, "did you mean 'task'?"),
        ("limit=0", 400, "limit"),
        ("limit=-1", 400, "limit"),
        ("limit=1e9", 400, "limit"),
        ("limit=٣", 400, "limit"),
        ("skip=-1", 400, "skip"),
        ("skip=10001", 400, "go deeper"),
        ("sort=scheduledAt", 400, "did you mean 'nextRunAt'?"),
        ("sort=lastError", 400, "sort"),
        ("after=nonsense", 400, "after"),
        ("error=(&regex=true", 400, "regular expression"),
        ("error=" + "a" * 201 + "&regex=true", 400, "at most 200 characters"),
        ("regex=perhaps", 400, "true or false"),
        ("doc_id=" + quote("[" * 3000), 400, "doc_id"),
        ("doc_id=" + quote('{"$oid": "nonsense"}'), 400, "doc_id"),
        ("doc_id=99999999999999999999", 400, "store"),
        ("doc_id=%ff", 400, "percent-encoded"),
        ("doc_id=a%00b", 400, "NUL"),
        ("&".join(f"task={number}" for number in range(600)), 400, "query string"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(make_client: MakeClient, query: str, status: int, reason: str) -> None:
    """B-57: 4xx and what was expected, by pages and API alike; never 500."""
    client = make_client()
    told = client.get(f"/api/v1/records?{query}")
    assert told.status_code == status, told.text
    assert reason in told.json()["reason"]
    assert client.get(f"/records?{query}").status_code == status


def test_a_limit_is_cut(make_client: MakeClient) -> None:
    """B-57: nobody can ask for everything at once."""
    assert make_client().get("/api/v1/records?limit=999999999").json()["limit"] == 200


def test_a_pattern_that_never_ends_is_stopped(make_client: MakeClient, stored: Database[Any]) -> None:
    """B-57: a regular expression works for a limited time on the server."""
    stored.orders_tasks.update_many({"lastError": {"$ne": None}}, {"$set": {"lastError": "a" * 4000 + "!"}})
    answer = make_client().get("/api/v1/records", params={"error": "^(a+)+$", "regex": "true"})
    assert answer.status_code in {200, 400, 503}


@pytest.mark.parametrize(
    ("error", "status"), [(StoreUnavailableError(f"mongodb://me:{SECRET}@db"), 503), (StoreBusyError("50"), 503)]
)
def test_a_database_away_is_told_without_its_address(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    """B-57: not 500, and no credentials."""

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(listing, "get_tasks", fails)
    for path in ("/records", "/api/v1/records"):
        answer = make_client().get(path)
        assert (answer.status_code, SECRET in answer.text) == (status, False)


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (StoreUnavailableError(f"db:27017 timed out, mongodb://me:{SECRET}@db"), 503, logging.WARNING),
        (ConfigurationError("sort", ["timed out"]), 400, logging.INFO),
    ],
)
def test_the_log_says_what_the_answer_does_not(
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    level: int,
) -> None:
    """B-57: the page of a failure sends to the log, whose line has the reason; wrong requests are no warning."""

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(listing, "get_tasks", fails)
    caplog.set_level(logging.INFO)
    assert make_client().get("/records").status_code == status
    (line,) = [one for one in caplog.records if one.name == "celery_reactive.dashboard.application"]
    assert "timed out" in line.getMessage()
    assert "/records" in line.getMessage()
    assert SECRET not in line.getMessage()
    assert line.levelno == level


def test_an_options_mistake_is_an_error_at_once(shop: Shop) -> None:
    """B-57: all that is wrong, with what was expected; no password among it."""
    wrong: Mapping[str, Any] = SON(
        [
            ("usrs", {}),
            ("users", {"ops": ""}),
            ("tokens", {"bot": "short"}),
            ("flower_url", "javascript:alert(1)"),
            ("refresh_seconds", -1),
        ]
    )
    with pytest.raises(ConfigurationError) as raised:
        shop.reactive.dashboard(**wrong)
    assert len(raised.value.problems) == 5
    assert "did you mean 'users'?" in str(raised.value)
    assert "short" not in str(raised.value)

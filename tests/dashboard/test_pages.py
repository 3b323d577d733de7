"""What the pages show, and that what they offer does what it says."""

from __future__ import annotations

import html as html_module
import json
import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from bson import ObjectId
from celery import Celery
from starlette.testclient import TestClient

from celery_reactive import Reactive, signals
from celery_reactive.core.states import RecordState
from celery_reactive.core.totals import DURATION, SUCCESS, Distribution, Totals
from celery_reactive.management import activity as activities
from celery_reactive.store import flow, leadership, positions
from celery_reactive.store.flow import Pace
from celery_reactive.store.positions import Position
from tests.dashboard.conftest import EVIL, FAILED_ID, SECRET, MakeClient, Shop, document

PAGES = ["/", "/records", "/errors", "/planner", "/operations", "/schedule"]
FORM = {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"}


def text_of(html: str) -> str:
    """Return what of a page is read, on one line."""
    return html_module.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))).replace(" ,", ",")


def record_page(visitor: TestClient, doc_id: str, task: str = "sync") -> str:
    """Return the page of a record."""
    return visitor.get(f"/record?task={task}&doc_id={quote(doc_id)}").text


def act(visitor: TestClient, action: str, **fields: Any) -> str:
    """Do something as the form of a page does; return what it says."""
    answer = visitor.post(f"/actions/{action}", data=fields, headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 200, answer.text
    return text_of(answer.text)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_shown(visitor: TestClient, path: str) -> None:
    """B-57: every page of the navigation is there and says where one is."""
    answer = visitor.get(path)
    assert answer.status_code == 200
    assert 'aria-current="page"' in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_a_page_of_an_empty_system_is_shown(empty_shop: Shop, path: str) -> None:
    """B-57: before any planner has run there is nothing to see, and no error."""
    with TestClient(empty_shop.reactive.dashboard(), base_url="http://localhost", client=("127.0.0.1", 1)) as visitor:
        assert visitor.get(path).status_code == 200


def test_the_overview_counts_by_task_and_status(visitor: TestClient) -> None:
    """B-57: the numbers are those of `status`, each with the way to its records."""
    page = visitor.get("/").text
    assert re.search(r'href="/records\?task=sync&amp;status=failed"[^>]*>2<', page)
    assert re.search(r'href="/records\?task=sync&amp;status=completed"[^>]*>3<', page)
    assert re.search(r'href="/records\?task=mail&amp;status=pending"[^>]*>1<', page)
    assert "nobody leads" in page


def test_a_listing_says_what_it_covers(visitor: TestClient) -> None:
    """B-57: a number is of how many, and every filter stands in the URL."""
    page = text_of(visitor.get("/records?task=sync&status=failed").text)
    assert "2 of 12 records" in page
    assert "order 17 refused" in page
    assert "12 records, 3 shown" in text_of(visitor.get("/records?limit=3").text)


def test_the_order_is_named_as_the_columns_are(visitor: TestClient) -> None:
    """B-57: nobody has to know what a field is called where it is stored."""
    page = visitor.get("/records").text
    assert '<option value="-lastFinalizedAt">last end, newest first</option>' in page
    assert not re.search(r">\w+At, (newest|oldest) first<", page)


def test_the_next_page_goes_on_where_the_last_ended(visitor: TestClient) -> None:
    """B-51: going from page to page meets every record once."""
    seen: list[str] = []
    path: str | None = "/records?limit=5&task=sync"
    while path is not None:
        page = visitor.get(path).text
        seen += re.findall(r'name="key" value="([^"]*)"', page)
        following = re.search(r'href="([^"]*)" rel="next"', page)
        path = following[1].replace("&amp;", "&") if following else None
    assert len(seen) == len(set(seen)) == 11


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("5f0000000000000000000001", '{"$oid": "5f0000000000000000000001"}'),
        ("A-17", '"A-17"'),
        ("101", "101"),
        ('"101"', '"101"'),
    ],
)
def test_a_document_is_found_by_what_is_typed(visitor: TestClient, typed: str, expected: str) -> None:
    """B-57: the search understands ObjectIds, numbers and strings, and says what it took them for."""
    answer = visitor.get(f"/find?doc_id={quote(typed)}")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/records?doc_id={quote(expected, safe='').replace('%20', '+')}"


def test_a_number_that_is_stored_as_text_is_found(visitor: TestClient, shop: Shop) -> None:
    """B-57: where no record has the number as its id, the text is meant."""
    shop.sync.plan(document("4711"))
    assert visitor.get("/find?doc_id=4711").headers["location"] == "/records?doc_id=%224711%22"


def test_a_record_says_why_what_and_since_when(visitor: TestClient) -> None:
    """B-53: the page explains the record and shows what it saw, its error and its runs."""
    page = record_page(visitor, str(FAILED_ID))
    read = text_of(page)
    assert "It will not run as things are" in read
    assert "ErpError order 17 refused" in read
    assert "Traceback" in read
    assert "&#34;total&#34;: 1" in page
    assert "As seen; the document's are the same now" in read


def test_a_record_shows_what_has_changed_since(visitor: TestClient, shop: Shop) -> None:
    """B-57: the watched paths whose values are others now, before and after."""
    shop.sync.put(document("done-1", total=5, more={"deep": [1]}))
    read = text_of(record_page(visitor, "done-1"))
    assert "v.total 1 5" in read
    assert "v.more.deep.0 1" in read
    shop.sync.delete("done-2")
    assert "There is no such document now" in text_of(record_page(visitor, "done-2"))


def test_a_document_without_a_record_is_explained(visitor: TestClient, shop: Shop) -> None:
    """B-53: one that the task has never met may be triggered from its page."""
    shop.sync.put(document("new"))
    page = record_page(visitor, "new")
    assert "/confirm/trigger?task=sync&amp;doc_id=%22new%22" in page
    shop.sync.put({**document("draft"), "on": False})
    assert "/confirm/trigger" not in record_page(visitor, "draft")


def test_a_document_without_a_record_is_led_to_why(visitor: TestClient, shop: Shop) -> None:
    """B-53: a search that finds nothing leads to what each task says about the document."""
    shop.sync.put({**document("draft"), "on": False})
    page = visitor.get("/records", params={"doc_id": '"draft"'}).text
    links = re.findall(r'href="(/record\?[^"]*)"', page)
    assert links == ["/record?task=mail&amp;doc_id=%22draft%22", "/record?task=sync&amp;doc_id=%22draft%22"]
    why = text_of(visitor.get(links[1].replace("&amp;", "&")).text)
    assert "does not match the task's filter" in why


def test_a_number_leads_to_the_text_that_looks_like_it(visitor: TestClient, shop: Shop) -> None:
    """B-57: where there are records of both, the other ones are one step away."""
    shop.sync.plan(document("2"))
    page = visitor.get("/records?doc_id=2").text
    link = re.search(r'Look for <a href="([^"]*)"', page)
    assert link
    assert "1 of 13 records" in text_of(visitor.get(link[1]).text)


def test_a_failed_record_leads_to_all_with_its_error(visitor: TestClient) -> None:
    """B-57: from one record to the group that is retried, and from there back to what came of it."""
    link = re.search(r'href="([^"]*)">All records with this error', record_page(visitor, str(FAILED_ID)))
    assert link
    path = link[1].replace("&amp;", "&")
    page = visitor.get(path).text
    assert "2 of 12 records" in text_of(page)
    asked = re.search(r'href="(/confirm/retry[^"]*)"', page)
    assert asked
    assert "Errors that say: order ⟨n⟩ refused" in text_of(visitor.get(asked[1].replace("&amp;", "&")).text)
    act(visitor, "discard", task="sync", status="failed")
    page = visitor.get(path).text
    assert "No record has this error now" in text_of(page)
    assert "/records?task=sync&amp;sort=-lastFinalizedAt" in page


def test_a_completed_record_has_nothing_left_to_do(visitor: TestClient) -> None:
    """B-53: what has run well does not read like a fault."""
    assert "It has run: nothing is left to do" in text_of(record_page(visitor, "done-1"))


def test_what_the_loop_guard_has_paused_is_seen_without_looking_for_it(visitor: TestClient, shop: Shop) -> None:
    """B-64: the overview counts it by task, and leads to a list that marks it."""
    shop.sync.guard(document("loop"))
    page = visitor.get("/").text
    assert ", 1 looping" in text_of(page)
    link = re.search(r'class="badge held" href="([^"]*)"', page)
    assert link
    assert "pending looping" in text_of(visitor.get(link[1].replace("&amp;", "&")).text)


def test_a_record_leads_to_flower(make_client: MakeClient, shop: Shop) -> None:
    """B-56: the link names the Celery task as its messages do."""
    page = record_page(make_client(flower_url="https://flower.example/"), "A-17")
    record = shop.record("A-17")
    assert f'href="https://flower.example/task/{record.celery_id}"' in page
    namespace = f"{shop.sync.source.database.name}.orders"
    assert record.celery_id == record.key.celery_id(namespace, 0)


def test_errors_are_grouped_by_what_they_say(visitor: TestClient) -> None:
    """B-57: ids and numbers do not count; a group leads to its records."""
    page = visitor.get("/errors").text
    read = text_of(page)
    assert "2 kinds of error in 3 records" in read
    assert "order ⟨n⟩ refused at https://•••@erp" in read
    link = re.search(r'scope="row" class="error"><a href="([^"]*)"', page)
    assert link
    assert "2 of 12 records" in text_of(visitor.get(link[1].replace("&amp;", "&")).text)


def test_one_group_of_errors_is_retried(visitor: TestClient, shop: Shop) -> None:
    """B-57: the button of a group shows how many and which, asks, and retries those and no others."""
    link = re.search(r'href="(/confirm/retry[^"]*refused[^"]*)"', visitor.get("/errors").text)
    assert link
    asked = visitor.get(link[1].replace("&amp;", "&")).text
    assert "Retry 2 records?" in text_of(asked)
    fields = dict(re.findall(r'type="hidden" name="(template|task)" value="([^"]*)"', asked))
    assert "2 records are pending now" in act(visitor, "retry", **fields, status=["failed", "pending"])
    assert shop.record(FAILED_ID).status is shop.record(2).status is RecordState.PENDING
    assert shop.record("A-17").next_run_at - shop.record("A-17").due_at > timedelta(minutes=50)


def test_the_planner_page_shows_what_could_not_be_planned(visitor: TestClient) -> None:
    """B-20, B-57: the document, why, since when."""
    read = text_of(visitor.get("/planner").text)
    assert "No planner has led yet" in read
    assert "poison sync failed" in read
    assert "$toInt failed" in read


def test_the_planner_page_tells_who_led_and_what_the_oplog_bridges(visitor: TestClient, shop: Shop) -> None:
    """B-46, B-57: terms with how they ended, and the lag as a share of the oplog's window."""
    globals_ = shop.reactive.runtime.connection.globals()
    for name in ("host-a", "host-b"):
        leadership.acquire(globals_, "default", name, leadership.read(globals_, "default"))
    position = Position({"_data": "00"}, shop.sync.cluster_time(), ObjectId(), frozenset())
    positions.store(globals_, "default", shop.sync.source.database.name, position, term=2)
    read = text_of(visitor.get("/planner").text)
    assert re.search(r"2 host-b now [\d.]+ m?s leads 1 host-a now [\d.]+ m?s vanished", read)
    assert "The oplog reaches back" in read
    assert re.search(r"UTC [\d.]+ m?s ((under 1|\d+) %|–)", read)
    found = visitor.get("/api/v1/planner").json()
    assert [(term["term"], term["instance"], term["was_handed_over"]) for term in found["terms"]] == [
        (2, "host-b", False),
        (1, "host-a", False),
    ]
    assert found["terms"][1]["ended_at"] == found["terms"][0]["since"]
    assert found["oplog_window_seconds"] >= 0


# --- acting -------------------------------------------------------------------------------------------


def test_bulk_work_asks_with_count_and_sample(visitor: TestClient) -> None:
    """B-57: nothing is changed before how many and which of them was shown."""
    read = text_of(visitor.get("/confirm/discard?task=sync&status=failed").text)
    assert "Discard 2 records?" in read
    assert str(FAILED_ID) in read


def test_selected_records_are_retried(visitor: TestClient, shop: Shop) -> None:
    """B-52: those ticked, and no others."""
    keys = ['["sync", "2"]', '["mail", "\\"anna\\""]']
    assert "Retry 2 records?" in text_of(visitor.get("/confirm/retry", params={"key": keys}).text)
    assert "2 records are pending now" in act(visitor, "retry", key=keys)
    assert shop.record(2).status is RecordState.PENDING
    assert shop.record(FAILED_ID).status is RecordState.FAILED


def test_of_selected_records_all_or_none_are_changed(visitor: TestClient, shop: Shop) -> None:
    """B-52: a refusal means that nothing was done, also where only the last one is of no task."""
    failed = json.dumps(["sync", f'{{"$oid": "{FAILED_ID}"}}'])
    fields = {"key": [failed, '["synk", "2"]']}
    answer = visitor.post("/actions/retry", data=fields, headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 404
    assert shop.record(FAILED_ID).status is RecordState.FAILED


def test_bulk_work_is_an_operation_that_is_listed(visitor: TestClient) -> None:
    """B-57: what was done, on what, by whom."""
    act(visitor, "discard", task="sync", status="failed")
    read = text_of(visitor.get("/operations").text)
    assert "discard" in read
    assert "task: sync; status: failed" in read
    assert "somebody (dashboard)" in read
    assert "done" in read


def test_an_operation_on_a_group_of_errors_is_named_as_the_group_is(visitor: TestClient) -> None:
    """B-57: nobody has to read the pattern that finds the group."""
    link = re.search(r'href="(/confirm/retry[^"]*refused[^"]*)"', visitor.get("/errors").text)
    assert link
    asked = visitor.get(link[1].replace("&amp;", "&")).text
    act(visitor, "retry", **dict(re.findall(r'type="hidden" name="(template|task)" value="([^"]*)"', asked)))
    assert "error: order ⟨n⟩ refused at https://•••@erp" in text_of(visitor.get("/operations").text)


def test_a_record_of_a_paused_task_offers_to_resume_it(visitor: TestClient) -> None:
    """B-53: what holds a record back can be ended where it is read."""
    assert "Resume the task" not in record_page(visitor, "101")
    act(visitor, "pause", task="sync")
    page = record_page(visitor, "101")
    assert "nothing of it runs before resume sync" in text_of(page)
    assert 'href="/confirm/resume?task=sync"' in page


def test_everything_is_changed_only_if_one_says_so(visitor: TestClient) -> None:
    """B-51: without a filter nothing is retried, unless all is said."""
    refused = visitor.post("/actions/retry", content="", headers=FORM)
    assert (refused.status_code, "for every record of every task say all" in refused.text) == (400, True)
    assert "12 records are pending now" in act(visitor, "retry", all="true")


def test_a_task_is_paused_throttled_limited_and_resumed(visitor: TestClient, shop: Shop) -> None:
    """B-35, B-53, B-58: the page shows what is in force, at once."""
    act(visitor, "pause", task="sync")
    assert "paused" in text_of(visitor.get("/planner").text)
    act(visitor, "resume", task="sync")
    act(visitor, "throttle", task="sync", delay="15m")
    assert "throttled until" in text_of(visitor.get("/planner").text)
    act(visitor, "limit", task="mail", rate="100/m", concurrency="4", priority="")
    assert "4 at a time" in text_of(visitor.get("/").text)
    assert "mail at most 100/m 4 at a time set by hand" in text_of(visitor.get("/planner").text)
    (mail,) = [task for task in shop.reactive.status().tasks if task.task == "mail"]
    assert (mail.rate_limit, mail.max_concurrency) == ("100/m", 4)


def test_a_document_is_triggered(visitor: TestClient, shop: Shop) -> None:
    """B-52: it gets a record and runs; what does not match is said."""
    shop.sync.put(document("new"))
    assert 'sync runs for "new" now' in act(visitor, "trigger", task="sync", doc_id='"new"')
    assert shop.record("new").status is RecordState.PENDING
    assert "Nothing was done nothing to run" in act(visitor, "trigger", task="sync", doc_id="nobody")


def test_a_record_that_the_loop_guard_has_paused_is_resumed(visitor: TestClient, shop: Shop) -> None:
    """B-64: its page says why it stands, and offers to let it run; of no other record."""
    shop.sync.guard(document("loop"))
    page = visitor.get("/record", params={"task": "sync", "doc_id": "loop"}).text
    assert "The loop guard has paused it" in text_of(page)
    assert "/confirm/resume" in page
    asked = visitor.get("/confirm/resume", params={"task": "sync", "doc_id": "loop"})
    assert "the loop guard counts from the beginning" in text_of(asked.text)
    assert 'sync runs for "loop" now' in act(visitor, "resume", task="sync", doc_id='"loop"')
    assert not shop.record("loop").guarded
    assert "nothing to resume" in act(visitor, "resume", task="sync", doc_id='"loop"')
    page = visitor.get("/record", params={"task": "sync", "doc_id": "loop"}).text
    assert "/confirm/resume" not in page


def test_a_reconciliation_is_asked_for(visitor: TestClient) -> None:
    """B-48: by the task's menu."""
    actions: list[str] = []

    def heard(event: Any, **_: Any) -> None:
        actions.append(event.action)

    signals.SIGNALS["manual_action"].connect(heard)
    try:
        act(visitor, "reconcile", task="sync")
    finally:
        signals.SIGNALS["manual_action"].disconnect(heard)
    assert actions == ["reconcile"]


def test_an_entry_of_the_schedule_is_sent(visitor: TestClient, app: Celery) -> None:
    """B-67: once, now, by its name; an unknown one is an error that lists the known."""
    app.conf.beat_schedule = {"nightly": {"task": "shop.sync", "schedule": 86400.0, "args": ["x"]}}
    assert "nightly shop.sync" in text_of(visitor.get("/schedule").text)
    assert "Send nightly?" in text_of(visitor.get("/confirm/send?entry=nightly").text)
    assert "nightly is sent, id" in act(visitor, "send", entry="nightly")
    assert visitor.post("/api/v1/send", json={"entry": "weekly"}).json() == {
        "reason": "entry: expected one of 'nightly', got 'weekly'"
    }


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [*PAGES, "/records?task=sync", f"/record?task=sync&doc_id={FAILED_ID}", "/confirm/retry?task=sync"]
)
def test_no_page_shows_a_secret_or_runs_what_is_stored(visitor: TestClient, path: str) -> None:
    """B-57: fields are masked by their names, also inside of messages; values are escaped."""
    page = visitor.get(path).text
    assert SECRET not in page
    assert EVIL not in page
    assert not re.search(r"<script(?! src=)|\son\w+=|\sstyle=", page)


def test_more_fields_can_be_masked(make_client: MakeClient) -> None:
    """B-57: `redact` adds names to the usual ones."""
    assert "evil" not in record_page(make_client(redact=["note"]), str(FAILED_ID))
    assert "evil" in record_page(make_client(), str(FAILED_ID))


def test_the_setting_masks_more_fields(make_client: MakeClient, app: Celery) -> None:
    """B-57: `reactive_redact` counts for dashboard and command line alike."""
    app.conf.reactive_redact = ["note"]
    with Reactive.of(app).made_anew():
        assert "evil" not in record_page(make_client(), str(FAILED_ID))


def test_what_was_run_lately_is_told_in_steps(visitor: TestClient) -> None:
    """B-57: the chart's numbers say how many runs they cover."""
    found = visitor.get("/api/v1/activity?task=sync").json()
    assert (found["covers"], found["runs"]) == ("last runs", 5)
    assert not found["is_cut"]
    assert sum(step["completed"] for step in found["steps"]) == 3
    assert sum(step["failed"] for step in found["steps"]) == 2
    (took,) = {step["duration_p50_seconds"] for step in found["steps"]} - {None}
    assert took == 0.012
    assert all(step["wait_p50_seconds"] is None or step["wait_p50_seconds"] >= 0 for step in found["steps"])


def test_charts_show_every_run_that_was_counted(visitor: TestClient, shop: Shop) -> None:
    """B-55, B-57: from the workers' counters, once the leader has kept them for a quarter of an hour."""
    globals_ = shop.reactive.runtime.connection.globals()
    for runs in (0, 30, 60):
        tasks = {
            "sync": Distribution((0.1, 1.0), (runs, 0, 0), 1.0),
            "mail": Distribution((0.1, 1.0), (0, runs, 0), 1.0),
        }
        totals = Totals({}, {(DURATION, (task, SUCCESS)): one for task, one in tasks.items()})
        flow.keep(globals_, Pace.MINUTE, totals)
        for one in list(globals_.find({"_id.k": {"$in": ["flow", "flow_base"]}})):
            globals_.delete_one({"_id": one["_id"]})
            for place, name in ((one["_id"], "at"), (one, "at"), (one, "since")):
                if name in place:
                    place[name] -= timedelta(minutes=8)
            globals_.insert_one(one)
    found = visitor.get("/api/v1/activity?span=1h").json()
    assert (found["covers"], found["runs"], found["step_seconds"]) == ("all runs", 120, 60)
    assert found["late_seconds"] == 120
    known = [step for step in found["steps"] if step["completed"] is not None]
    assert [step["completed"] for step in known] == [60, 60]
    assert known[0]["duration_p50_seconds"] == 0.1
    assert 0.1 < known[0]["duration_p95_seconds"] < 1
    assert visitor.get("/api/v1/activity?span=1h&task=sync").json()["runs"] == 60
    assert visitor.get("/api/v1/activity?span=6h").json()["covers"] == "last runs"


def test_what_is_too_much_for_a_chart_is_said(visitor: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-57: a chart of the newest runs only says so."""
    monkeypatch.setattr(activities, "MOST_RUNS", 2)
    monkeypatch.setattr(activities, "_LEAST_EACH", 2)
    found = visitor.get("/api/v1/activity?task=sync").json()
    assert (found["runs"], found["is_cut"]) == (2, True)

"""The dashboard in a real browser: what people click, type and see; accessibility by axe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from celery_reactive.core.states import RecordState
from tests.dashboard.conftest import FAILED_ID, SECRET, Serve, Shop, document

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).with_name("vendored") / "axe.min.js"
RECORD = f"/record?task=sync&doc_id={FAILED_ID}"
PAGES = [
    "/",
    "/records",
    "/records?status=failed",
    RECORD,
    "/errors",
    "/planner",
    "/operations",
    "/schedule",
    "/confirm/pause?task=sync",
]
PHONE = {"width": 390, "height": 844}

Open = Callable[..., Page]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium, or CHROMIUM")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser, serve: Serve) -> Iterator[Open]:
    """Open a page of a dashboard with options; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def start(path: str = "/", *, viewport: Any = None, color_scheme: Any = "light", **options: Any) -> Page:
        address = serve(**options)
        viewport = viewport or {"width": 1280, "height": 900}
        context = chromium.new_context(viewport=viewport, color_scheme=color_scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address + path)
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def violations(page: Page) -> list[str]:
    """Return what axe finds: the rule, and where."""
    # Not as a script of the page, which its policy would forbid.
    page.evaluate(AXE.read_text() + "; undefined")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{one['id']}: {[node['html'] for node in one['nodes']][:3]}" for one in found["violations"]]


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_no_page_has_a_violation(open_page: Open, color_scheme: str) -> None:
    """B-57: axe finds nothing, on any page, in the light and in the dark."""
    page = open_page(color_scheme=color_scheme)
    address = page.url.rstrip("/")
    for path in PAGES:
        page.goto(address + path)
        assert violations(page) == [], path
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()
    assert violations(page) == []


def test_a_phone_shows_every_page_without_scrolling_sideways(open_page: Open) -> None:
    """B-57: usable on a phone."""
    page = open_page(viewport=PHONE)
    address = page.url.rstrip("/")
    for path in PAGES:
        page.goto(address + path)
        wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, path
        assert violations(page) == [], path


def is_beside(one: Locator) -> bool:
    """Whether part of what is shown is left or right of a phone's screen."""
    expect(one).to_be_visible()
    box = one.bounding_box()
    return box is None or box["x"] < 0 or box["x"] + box["width"] > PHONE["width"]


def test_on_a_phone_nothing_is_beside_the_screen(open_page: Open) -> None:
    """B-57: what a table holds, and what can be done about it, is seen without moving it sideways."""
    page = open_page(viewport=PHONE)
    page.locator("#menu-2 summary").click()
    wanted = [page.locator("#menu-2").get_by_text(name) for name in ("Pause", "Trigger a document", "Reconcile")]
    wanted.append(page.locator(".tasks .count.bad"))
    assert [is_beside(one) for one in wanted] == [False] * 4
    page.goto(page.url.rstrip("/") + "/records?status=failed")
    assert not is_beside(page.locator(".records .error").nth(1))
    assert not is_beside(page.locator(".records .badge").first)


def test_the_charts_are_drawn_and_say_what_they_cover(open_page: Open) -> None:
    """B-57: throughput and latency."""
    page = open_page()
    expect(page.locator("#chart-runs canvas")).to_be_visible()
    expect(page.locator("#chart-times canvas")).to_be_visible()
    expect(page.locator("#runs-note")).to_contain_text("5 in all, 2 failed")
    expect(page.locator("#charts-cover")).to_have_text("Covers the last run of each record.")


def test_a_filter_stands_in_the_url(open_page: Open) -> None:
    """B-57: what one sees can be sent to somebody else."""
    page = open_page("/records")
    page.get_by_label("failed").check()
    expect(page.locator(".covers")).to_contain_text("2 of 12 records")
    page.get_by_label("Error says").fill("order 17")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    assert "status=failed" in page.url
    assert "error=order+17" in page.url


def test_the_keyboard_leads_everywhere(open_page: Open) -> None:
    """B-57: `/` searches, `?` helps, `g r` goes to the records."""
    page = open_page()
    page.keyboard.press("/")
    expect(page.locator("#find")).to_be_focused()
    page.keyboard.type(str(FAILED_ID))
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.wait_for_load_state()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("e")
    expect(page.get_by_role("heading", name="Errors")).to_be_visible()


def test_live_updates_leave_the_focus_where_it_is(open_page: Open, shop: Shop) -> None:
    """B-57: who works by keyboard is not thrown back to the top of the page."""
    page = open_page("/records?task=sync&status=failed", refresh_seconds=1)
    link = page.locator("tbody tr", has_text=str(FAILED_ID)).get_by_role("link")
    link.focus()
    shop.sync.exhaust(shop.sync.start(document("new failure")))
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(link).to_be_focused()


def test_a_question_is_asked_and_left_by_keyboard(open_page: Open) -> None:
    """B-57: space and Enter ask, Escape leaves, and one is where one was."""
    page = open_page("/records?status=failed")
    button = page.get_by_role("button", name="Discard all 2")
    for key in ("Space", "Enter"):
        button.focus()
        page.keyboard.press(key)
        expect(page.get_by_role("dialog")).to_contain_text("Discard 2 records?")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(button).to_be_focused()


def test_a_menu_is_opened_and_left_by_keyboard(open_page: Open) -> None:
    """B-57: Escape closes it; a question that was asked from it leads back to it."""
    page = open_page()
    menu = page.get_by_label("Actions on sync")
    menu.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    expect(menu).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Pause sync?")
    # Until htmx has taken the form over, some 20 ms, its answer would be a page of its own.
    expect(page.locator(".htmx-added")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("sync is paused")
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()


def test_going_back_shows_the_filters_of_that_page(open_page: Open) -> None:
    """B-57: the form says what the list holds, and the link names only what is set."""
    page = open_page("/records")
    page.get_by_label("failed").check()
    expect(page.locator(".covers")).to_contain_text("2 of 12 records")
    assert page.url.endswith("/records?status=failed&limit=50")
    page.get_by_label("Error says").fill("order 17")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.go_back()
    expect(page.locator(".covers")).to_contain_text("2 of 12 records")
    expect(page.get_by_label("Error says")).to_have_value("")
    page.go_back()
    expect(page.locator(".covers")).to_contain_text("12 records")
    expect(page.get_by_label("failed")).not_to_be_checked()


def test_who_must_sign_in_again_is_told(chromium: Browser, serve: Serve) -> None:
    """B-57: an expired login is not taken for a server that is away."""
    page = chromium.new_page()
    page.goto(f"{serve(refresh_seconds=1)}/errors")
    page.route("**/errors*", lambda route: route.fulfill(status=401, body="who?"))
    expect(page.locator("#offline")).to_contain_text("load it anew to sign in again")
    page.close()


def test_a_record_is_retried_by_hand(open_page: Open, shop: Shop) -> None:
    """B-52: asked first, done once, and seen at once."""
    page = open_page(RECORD)
    expect(page.locator("h1 .badge")).to_have_text("failed")
    page.get_by_role("button", name="Retry").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Retry 1 record?")
    assert violations(page) == []
    dialog.get_by_role("button", name="Retry").click()
    expect(dialog).to_contain_text("1 record is pending now")
    dialog.get_by_role("button", name="Close").or_(dialog.get_by_role("link", name="Close")).click()
    expect(page.locator("h1 .badge")).to_have_text("pending")
    assert shop.record(FAILED_ID).status is RecordState.PENDING


def test_what_was_done_is_watched_behind_its_answer(open_page: Open, shop: Shop) -> None:
    """B-57: the page goes on while the answer stands before it; only a question holds it."""
    page = open_page("/errors", refresh_seconds=1)
    row = page.locator("tbody tr", has_text="refused")
    row.get_by_role("button", name="Retry").click()
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 records are pending now")
    expect(row.locator("[data-label=retrying]")).to_have_text("2")
    for claim in shop.sync.claim(FAILED_ID, 2):
        shop.sync.complete(claim)
    expect(row).to_have_count(0)


def test_leaving_a_question_changes_nothing(open_page: Open, shop: Shop) -> None:
    """B-57: bulk work is not begun by opening its question."""
    page = open_page("/records?status=failed")
    page.get_by_role("button", name="Discard all 2").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Discard 2 records?")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert shop.record(FAILED_ID).status is RecordState.FAILED


def test_live_updates_keep_what_was_selected(open_page: Open, shop: Shop) -> None:
    """B-57: a tick stays through updates, and the bulk action is for what is ticked."""
    page = open_page("/records?task=sync&status=failed", refresh_seconds=1)
    page.get_by_label("Select 2 of sync").check()
    claim = shop.sync.start(document("new failure"))
    shop.sync.exhaust(claim)
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.get_by_label("Select 2 of sync")).to_be_checked()
    page.get_by_role("button", name="Retry selected (1)").click()
    expect(page.get_by_role("dialog")).to_contain_text("Retry 1 record?")


def test_live_updates_can_be_turned_off_and_stay_off(open_page: Open, shop: Shop) -> None:
    """B-57: the page stands still, and also after it is loaded anew."""
    page = open_page("/records?task=sync&status=failed", refresh_seconds=1)
    page.get_by_role("button", name="Live").click()
    expect(page.get_by_role("button", name="Live")).to_have_attribute("aria-pressed", "false")
    page.reload()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/static/" not in request.url else None)
    page.wait_for_timeout(2500)
    assert asked == []
    page.get_by_role("button", name="Live").click()
    shop.sync.exhaust(shop.sync.start(document("new failure")))
    expect(page.locator("tbody tr")).to_have_count(3)


def test_live_updates_pause_while_nobody_looks(open_page: Open) -> None:
    """B-57: a hidden tab asks for nothing."""
    page = open_page("/records", refresh_seconds=1)
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []


def test_a_server_away_is_said_and_what_was_seen_stays(chromium: Browser, serve: Serve) -> None:
    """B-57: the last picture stays, with a note that it is old."""
    page = chromium.new_page()
    page.goto(f"{serve(refresh_seconds=1)}/records")
    page.route("**/records*", lambda route: route.fulfill(status=503, body="away"))
    expect(page.locator("#offline")).to_be_visible()
    expect(page.locator("tbody tr").first).to_be_visible()
    page.unroute("**/records*")
    expect(page.locator("#offline")).to_be_hidden()
    page.close()


def test_light_and_dark_are_remembered(open_page: Open) -> None:
    """B-57: the system decides until somebody does."""
    page = open_page(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Change between light and dark").click()
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_nothing_secret_is_seen(open_page: Open) -> None:
    """B-57: neither as text nor in a link."""
    page = open_page("/errors")
    assert SECRET not in page.content()
    page.goto(page.url.replace("/errors", RECORD))
    assert SECRET not in page.content()

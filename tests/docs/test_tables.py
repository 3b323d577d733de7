"""What the pages list is what the code has: options, settings, events, waits, causes."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from celery_reactive import CleanupPolicy, Evolution, RetryPolicy, TaskContext, signals
from celery_reactive.cli import reactive
from celery_reactive.core.declaration import OPTIONS, declare
from celery_reactive.core.filters import _REFUSED
from celery_reactive.core.policies import DeleteWhen, OnHandlerVersionChange
from celery_reactive.core.retry import _LIMITS, RetryType
from celery_reactive.core.states import RecordState
from celery_reactive.settings import Settings
from tests.docs import tables
from tests.docs.pages import PAGES, ROOT, anchors_of, bold_items, code_in, links_of, table

GUIDE = ROOT / "docs" / "guide"


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_tables_are_up_to_date(page: Path) -> None:
    """`python -m tests.docs.tables` brings them up to date."""
    assert page.read_text() == tables.with_tables(page.read_text())


def test_every_table_is_in_a_page() -> None:
    """A table that nobody shows is none."""
    shown = [name for page in tables.PAGES for name in re.findall(r"<!-- begin (\w+) -->", page.read_text())]
    assert sorted(shown) == sorted(tables.TABLES)


def test_every_option_is_listed_with_its_default() -> None:
    """B-2: the table is complete, and writing a default changes nothing."""
    rows = table("declaring.md", "options")
    assert [code_in(row[0]) for row in rows] == [[option] for option in OPTIONS]
    plain = declare("proj.task", {"collection": "orders"})
    for option, default in literals(rows).items():
        assert declare("proj.task", {"collection": "orders", option: default}) == plain, option


@pytest.mark.parametrize(("name", "policy"), [("cleanup_policy", CleanupPolicy), ("evolution", Evolution)])
def test_every_key_of_a_policy_is_listed_with_its_default(name: str, policy: type[CleanupPolicy | Evolution]) -> None:
    """B-2: the tables of the policies are complete."""
    rows = table("declaring.md", name)
    assert [code_in(row[0]) for row in rows] == [[field.name] for field in dataclasses.fields(policy)]
    assert policy(**literals(rows)) == policy()


def test_every_choice_is_listed() -> None:
    """B-2: an enum's values are what one writes."""
    [cleanup] = [row[1] for row in table("declaring.md", "cleanup_policy") if row[0] == "`delete_when`"]
    [change] = [row[1] for row in table("declaring.md", "evolution") if row[0] == "`on_handler_version_change`"]
    assert [ast.literal_eval(code) for code in code_in(cleanup)] == list(DeleteWhen)
    assert [ast.literal_eval(code) for code in code_in(change)] == list(OnHandlerVersionChange)


@pytest.mark.parametrize(
    ("declared", "elsewhere"),
    [
        (CleanupPolicy, {"core/declaration.py", "core/policies.py", "core/task.py"}),
        (Evolution, {"core/declaration.py", "core/policies.py", "core/task.py"}),
        (Settings, {"settings.py", "app.py", "runtime.py"}),
    ],
)
def test_what_can_be_written_is_acted_on(declared: type[Any], elsewhere: set[str]) -> None:
    """A key that is checked and then read by nothing would be a promise."""
    modules = [path for path in tables.PACKAGE.rglob("*.py") if str(path.relative_to(tables.PACKAGE)) not in elsewhere]
    text = "\n".join(module.read_text() for module in modules)
    names = [field.name for field in dataclasses.fields(declared)]
    assert [name for name in names if not re.search(rf"\.{name}\b", text)] == []


def test_every_limit_of_a_retry_policy_is_listed_with_its_default() -> None:
    """B-39: the table is complete."""
    rows = table("retries.md", "limits")
    assert [code_in(row[0]) for row in rows] == [[limit] for limit in _LIMITS]
    assert RetryPolicy.exponential(**literals(rows)) == RetryPolicy()


def test_every_retry_policy_is_listed() -> None:
    """B-38: by the name of its type."""
    text = (GUIDE / "retries.md").read_text()
    assert {policy for policy in RetryType if f"| `{policy}` |" in text} == set(RetryType)
    assert {code.partition("(")[0] for code in tables.POLICIES} == set(RetryType)


def test_every_member_of_the_context_is_listed() -> None:
    """B-31: what a handler can use."""
    public = {name for name in vars(TaskContext) if not name.startswith("_")}
    listed = [name.removesuffix("()") for row in table("running.md", "context") for name in code_in(row[0])]
    assert sorted(listed) == sorted(public)


def test_every_state_is_explained() -> None:
    """B-21: five states."""
    text = (GUIDE / "running.md").read_text()
    assert [state for state in RecordState if f"| `{state}` |" in text] == list(RecordState)


def test_every_operator_that_is_refused_is_listed() -> None:
    """B-5: with the reason."""
    listed = {name for row in table("filters.md", "refused") for name in code_in(row[0])}
    assert listed == set(_REFUSED)


def test_every_event_is_a_signal_that_is_listed() -> None:
    """A supervisor looks for the event's code."""
    listed = re.findall(r"^\| `(\w+)` \| (?:debug|info|warning|error) \|", tables.events(), flags=re.MULTILINE)
    assert listed == list(signals.SIGNALS)


def test_readme_and_guide_list_the_same_causes_of_a_repeated_run() -> None:
    """B-10: every cause is documented."""
    causes = bold_items(GUIDE / "running.md", "## What repeats a run")
    assert len(causes) == 8
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert [cause for cause in causes if cause not in readme] == []


def test_commands_in_the_pages_exist() -> None:
    """What is typed as in a page is understood."""
    typed = [name for page in PAGES for name in re.findall(r"celery-reactive -A \S+ (\w+)", page.read_text())]
    assert typed
    assert set(typed) <= set(reactive.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_heading(page: Path) -> None:
    """Whoever follows a link finds what it speaks of."""
    missing = [
        f"{target.name}#{anchor}"
        for target, anchor in links_of(page)
        if not target.exists() or (anchor and anchor not in anchors_of(target))
    ]
    assert missing == []


def literals(rows: list[list[str]]) -> dict[str, Any]:
    """Return the defaults that a table writes as code, by name."""
    return {code_in(row[0])[0]: ast.literal_eval(code_in(row[2])[0]) for row in rows if code_in(row[2])}

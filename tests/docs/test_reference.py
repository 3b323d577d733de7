"""What can be relied on by its name is listed: reasons, environment, extras, exit codes, fixtures, options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tomllib

import pytest_celery_reactive
from celery_reactive import testing
from celery_reactive.dashboard.options import Options
from celery_reactive.management import explain
from celery_reactive.store import server
from tests.docs.pages import ROOT, code_in, rows_of
from tests.docs.tables import PACKAGE

REFERENCE = (ROOT / "docs" / "reference" / "README.md").read_text()
CODES = (ROOT / "docs" / "reference" / "codes.md").read_text()
TESTING = (ROOT / "docs" / "guide" / "testing.md").read_text()
DASHBOARD = (ROOT / "docs" / "guide" / "dashboard.md").read_text()
PRIVATE = {"CELERY_REACTIVE_COUNTS", "CELERY_REACTIVE_DEMO_PLANNER"}
"""What one of our processes tells another."""


def test_every_reason_of_explain_is_listed() -> None:
    """B-53: with whether it holds a document back."""
    listed = {code: row[1] == "yes" for row in rows_of(CODES, "<!-- table: reasons -->") for code in code_in(row[0])}
    assert listed == dict(reasons())


def reasons() -> list[tuple[str, bool]]:
    """Return the code of each reason that `explain` gives, and whether it holds back."""
    found = []
    for call in ast.walk(ast.parse(inspect.getsource(explain))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Reason":
            codes = [one.value for one in ast.walk(call.args[0]) if isinstance(one, ast.Constant)]
            found += [(str(code), any(one.arg == "holds_back" for one in call.keywords)) for code in codes]
    return found


def test_every_variable_of_the_environment_is_listed() -> None:
    """Those that are for users."""
    modules = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    strings = {one.value for module in modules for one in ast.walk(module) if isinstance(one, ast.Constant)}
    names = r"CELERY_REACTIVE_[A-Z_]+|MONGODB_URL|BROKER_URL|MONGOD|[A-Z]+_SERVER|CELERY_APP"
    used = {text for text in strings if isinstance(text, str) and re.fullmatch(names, text)}
    listed = {name for row in rows_of(CODES, "## Environment") for name in code_in(row[0])}
    assert listed == used - PRIVATE


def test_every_extra_is_listed() -> None:
    """What `pip install` takes in brackets."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {name for row in rows_of(CODES, "<!-- table: extras -->") for name in code_in(row[0])}
    assert listed == set(project["optional-dependencies"])


def test_the_versions_that_are_tested_are_listed() -> None:
    """Those of the tests on every change, and no others."""
    matrix = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    listed = {row[0]: re.findall(r"[0-9]+[.][0-9]+", row[1]) for row in rows_of(REFERENCE, "<!-- table: versions -->")}
    for name in ("Python", "Celery"):
        [tested] = re.findall(rf"^ +{name.lower()}: \[(.*)\]$", matrix, flags=re.MULTILINE)
        assert listed[name] == re.findall(r"[0-9]+[.][0-9]+", tested)
    assert listed["MongoDB"] == [".".join(map(str, server._OLDEST))]


def test_every_exit_code_is_listed() -> None:
    """Success, failure, wrong use."""
    assert [row[0] for row in rows_of(CODES, "## Exit codes")] == ["0", "1", "2"]


def test_every_fixture_is_listed() -> None:
    """None is in force unless a test asks for it."""
    listed = {name for row in rows_of(TESTING, "## Fixtures") for name in code_in(row[0])}
    assert listed == set(pytest_celery_reactive.__all__)


def test_every_function_for_tests_is_listed() -> None:
    """With what it takes."""
    listed = {name.partition("(")[0] for row in rows_of(TESTING, "## Functions") for name in code_in(row[0])}
    assert listed == set(testing.__all__)


def test_every_option_of_the_dashboard_is_listed() -> None:
    """`Reactive.dashboard` and `dashboard_wsgi` take the same."""
    listed = [name for row in rows_of(DASHBOARD, "| option | means |") for name in code_in(row[0])]
    assert sorted(listed) == sorted(field.name for field in dataclasses.fields(Options))

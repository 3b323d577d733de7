"""The tables of the pages that are made from the code.

`python -m tests.docs.tables` writes them into the pages; `test_tables.py` finds pages that are out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

import celery_reactive
from celery_reactive import RetryPolicy
from celery_reactive.cli import reactive
from celery_reactive.core.duration import format_duration
from celery_reactive.events import EVENTS
from celery_reactive.management.doctor.examine import ailments
from celery_reactive.management.doctor.finding import Severity
from celery_reactive.metrics.catalogue import METRICS
from celery_reactive.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (*sorted((DOCS / "guide").glob("*.md")), *sorted((DOCS / "reference").glob("*.md")))
PACKAGE = Path(celery_reactive.__file__).parent
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ATTEMPTS = range(1, 7)
POLICIES = {
    'fixed("30s")': RetryPolicy.fixed("30s"),
    'linear("30s")': RetryPolicy.linear("30s"),
    "exponential()": RetryPolicy.exponential(),
    'exponential("1s", "30s", factor=3)': RetryPolicy.exponential("1s", "30s", factor=3),
    'series(["5s", "1m", "1h"], max_attempts=-1)': RetryPolicy.series(["5s", "1m", "1h"], max_attempts=-1),
    'cron("0 3 * * *")': RetryPolicy.cron("0 3 * * *"),
    'cron("*/15 * * * *", max_attempts=3)': RetryPolicy.cron("*/15 * * * *", max_attempts=3),
}
KINDS = {
    "timedelta": "duration",
    "int": "integer",
    "bool": "`True` or `False`",
    "str": "string",
    "tuple[str, ...]": "list of strings",
    "Callable[..., Any]": "callable",
    "Callable[[], Any]": "callable",
}


def main() -> None:
    """Write all tables into their pages."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


def with_tables(text: str) -> str:
    """Return the text of a page with the tables that its markers name, as the code has them now."""

    def fill(marker: re.Match[str]) -> str:
        name = marker[1]
        return f"<!-- begin {name} -->\n{TABLES[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)


def waits() -> str:
    """Return how long each of some policies waits after each attempt."""
    heading = ["policy", *(f"after {attempt}" for attempt in ATTEMPTS)]
    rows = [[f"`{code}`", *waits_of(policy)] for code, policy in POLICIES.items()]
    return table(heading, rows)


def waits_of(policy: RetryPolicy) -> Iterator[str]:
    """Yield the waits of *policy* until the record is failed."""
    for attempt in ATTEMPTS:
        wait = policy.next_wait(attempt, failing_for=timedelta(0), now=NOON, random=1)
        if wait is None:
            yield "failed"
            return
        yield format_duration(wait)


def settings() -> str:
    """Return every setting with its kind, default and meaning."""
    meanings = field_docs(Settings)
    rows = [
        [f"`reactive_{field.name}`", kind_of(str(field.type)), default_of(field), meanings[field.name]]
        for field in dataclasses.fields(Settings)
    ]
    return table(["key", "what you write", "default", "meaning"], rows)


def kind_of(annotation: str) -> str:
    """Return an annotation in a reader's words."""
    kinds = [KINDS[part] for part in annotation.split(" | ") if part != "None"]
    return " or ".join(kinds)


def default_of(field: dataclasses.Field[object]) -> str:
    """Return a default as one writes it."""
    if isinstance(field.default, timedelta):
        return f'`"{format_duration(field.default)}"`'
    return "`" + repr(field.default).replace("'", '"') + "`"


def field_docs(class_: type) -> dict[str, str]:
    """Return the docstrings that stand below the fields of *class_*, without the numbers of rules."""
    found = re.findall(
        r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(class_), flags=re.MULTILINE | re.DOTALL
    )
    return {name: without_rules(text) for name, text in found}


def events() -> str:
    """Return every event with its level, meaning and facts."""
    rows = [
        [
            f"`{event.code}`",
            {10: "debug", 20: "info", 30: "warning", 40: "error"}[event.level],
            without_rules(inspect.cleandoc(event.__doc__ or "").partition("\n\n")[0]),
            ", ".join(f"`{field.name}`" for field in dataclasses.fields(event)),
        ]
        for event in EVENTS
    ]
    return table(["signal", "level", "when", "facts"], rows)


def metrics() -> str:
    """Return every metric with its kind, labels and meaning."""
    rows = [
        [f"`{metric.name}`", metric.kind, ", ".join(f"`{label}`" for label in metric.labels), metric.meaning]
        for metric in METRICS
    ]
    return table(["name", "kind", "labels", "meaning"], rows)


def without_rules(text: str) -> str:
    """Return *text* as one line, without references such as "(B-20)"."""
    return re.sub(r" \(B-[^)]*\)", "", " ".join(text.split()))


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; short rows are filled up."""
    full = [row + [""] * (len(heading) - len(row)) for row in rows]
    lines = [heading, ["---"] * len(heading), *full]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def logs() -> str:
    """Return the log entries with a code of their own that are no events: code, level, text."""
    entries = sorted({entry for path in sorted(PACKAGE.rglob("*.py")) for entry in log_entries(path)})
    return table(["code", "level", "text"], [[f"`{code}`", level, text] for code, level, text in entries])


def log_entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield code, level and text of each entry that a module logs with a constant code."""
    for call in ast.walk(ast.parse(path.read_text())):
        match call:
            case ast.Call(func=ast.Attribute(attr=level), args=[ast.Constant(value=str(text)), *_], keywords=keywords):
                extras = [one.value for one in keywords if one.arg == "extra" and isinstance(one.value, ast.Dict)]
                for code in (value for extra in extras for value in codes_in(extra)):
                    yield code, level, re.sub(r"%[srd]", "…", text)


def codes_in(extra: ast.Dict) -> Iterator[str]:
    """Yield the code in the extra fields of a log entry, if it is a constant."""
    for key, value in zip(extra.keys, extra.values, strict=True):
        match key, value:
            case ast.Constant(value="event"), ast.Constant(value=str(code)):
                yield code


def doctor() -> str:
    """What `doctor` can find, the worst first, with what to do."""
    severities = list(Severity)
    known = sorted(ailments().values(), key=lambda one: severities.index(one.severity))
    rows = [f"| `{one.code}` | {one.severity} | {one.remedy} |" for one in known]
    return "\n".join(["| code | severity | what to do |", "|---|---|---|", *rows])


def commands() -> str:
    """Return a section for each command: its usage, what it does, its options."""
    return "\n\n".join(section for name, command in leaves(reactive) for section in section_of(name, command))


def leaves(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands below *group* that are no groups, with what is typed to call them."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
        else:
            yield " ".join([*path, name]), command


def section_of(name: str, command: click.Command) -> Iterator[str]:
    """Yield the paragraphs on one command."""
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=name)))
    yield f"## {name}"
    yield f"```text\ncelery-reactive -A APP {name} {usage}\n```"
    yield inspect.cleandoc(command.help or "")
    options = [one for one in command.params if isinstance(one, click.Option)]
    if options:
        yield table(["option", "meaning"], [[written(option), option.help or ""] for option in options])


def written(option: click.Option) -> str:
    """Return an option as one types it, with the kind of its value."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {option.make_metavar(click.Context(click.Command('')))}"
    return f"`{names}{value}`"


TABLES: dict[str, Callable[[], str]] = {
    "doctor": doctor,
    "logs": logs,
    "metrics": metrics,
    "waits": waits,
    "settings": settings,
    "events": events,
    "commands": commands,
}

if __name__ == "__main__":
    main()

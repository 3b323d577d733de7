"""What commands print for programs is what its schema says: nothing else, and nothing less."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import click
import jsonschema
import pytest
from bson import Decimal128, ObjectId, Timestamp
from celery import Celery
from click.testing import CliRunner

from celery_reactive import Reactive, cli, reactive_task
from celery_reactive.cli.schemas import PRINTED, schema_of
from celery_reactive.store import unplanned
from tests.integration.bench import Bench

Ask = Callable[..., Any]


@pytest.fixture
def app(mongodb_url: str) -> Iterator[Celery]:
    """An app with a task and a schedule."""
    app = Celery("json_proj", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url
    app.conf.beat_schedule = {"hourly": {"task": "shop.report", "schedule": 3600.0}}

    def handler(ctx: Any) -> None:
        """Never called here."""

    reactive_task(task="sync", collection="orders", debounce=0)(app.task(handler, name="shop.sync", shared=False))
    app.finalize()
    yield app
    Reactive.of(app).runtime.connection.close()


@pytest.fixture
def ask(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Type a command with --json and return what it prints."""
    module = types.ModuleType("json_proj")
    module.app = app  # type: ignore[attr-defined]  # as the user's module has it
    monkeypatch.setitem(sys.modules, "json_proj", module)

    def run(*words: str) -> Any:
        return json.loads(CliRunner().invoke(cli._standalone(), ["-A", "json_proj", *words, "--json"]).stdout)

    return run


def strict(schema: Any) -> Any:
    """Return a schema that allows no field that it does not name."""
    match schema:
        case dict() if "properties" in schema:
            return {**{name: strict(value) for name, value in schema.items()}, "additionalProperties": False}
        case dict():
            return {name: strict(value) for name, value in schema.items()}
        case list():
            return [strict(value) for value in schema]
        case _:
            return schema


def test_every_listing_is_what_its_schema_says(app: Celery, ask: Ask) -> None:
    """With documents of every kind, records in every state, and something to complain of."""
    runtime = Reactive.of(app).runtime
    bench = Bench(runtime.connection, runtime.registry.get("sync"))
    bench.handle({"_id": 1, "v": Decimal128("1.5"), "at": bench.now()})
    bench.error(bench.start({"_id": ObjectId(), "v": float("nan")}))
    bench.exhaust(bench.start({"_id": "dead", "v": None}))
    bench.start({"_id": None})
    note = {"at": Timestamp(1, 1), "gone": False, "reason": unplanned.Reason.FAILED, "error": "boom"}
    unplanned.note(runtime.connection.globals(), bench.key({"a": 1}), **note)  # type: ignore[arg-type]  # of many types
    begun = Reactive.of(app).start_operation("retry", task="sync", source={"v": None})
    arguments = {
        "plan": ["sync"],
        "tasks show": ["sync", "dead"],
        "tasks explain": ["sync", "dead"],
        "tasks retry": ["--doc-id", "dead", "--yes"],
        "tasks discard": ["--status", "pending", "--yes"],
        "tasks purge": ["sync", "--gone", "--yes"],
        "operations show": [begun.id],
    }
    for command in PRINTED:
        printed = ask(*command.split(), *arguments.get(command, []))
        assert printed, command
        jsonschema.validate(printed, strict(schema_of(command)))


def test_every_command_with_json_has_a_schema() -> None:
    """A new listing is documented before it is used."""
    assert sorted(_with_json(cli.reactive, "")) == sorted(PRINTED)


def _with_json(group: click.Group, prefix: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _with_json(command, f"{prefix}{name} ")
        elif any("--json" in parameter.opts for parameter in command.params):
            yield f"{prefix}{name}"


@pytest.mark.parametrize("command", PRINTED)
def test_a_schema_is_printed(command: str) -> None:
    """And is a valid one."""
    printed = CliRunner().invoke(cli.reactive, ["schema", *command.split()])
    assert printed.exit_code == 0, printed.output
    jsonschema.Draft202012Validator.check_schema(json.loads(printed.stdout))


def test_schemas_are_named() -> None:
    """What has none is told with what has."""
    assert CliRunner().invoke(cli.reactive, ["schema"]).stdout.splitlines() == list(PRINTED)
    assert CliRunner().invoke(cli.reactive, ["schema", "planner"]).exit_code == 2

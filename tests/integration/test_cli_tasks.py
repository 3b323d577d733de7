"""The commands that look at records and change them, typed as a user types them, on a real server."""

from __future__ import annotations

import json
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from celery import Celery
from click import Argument
from click.testing import CliRunner, Result

from celery_reactive import Reactive, cli
from celery_reactive.cli.project import TaskName
from celery_reactive.core.outcome import Exhausted, Failure
from celery_reactive.core.redaction import MASK
from celery_reactive.core.states import RecordState
from celery_reactive.management import operations
from celery_reactive.store import unplanned
from tests.docs.tables import leaves
from tests.integration.bench import TOOK, Bench
from tests.integration.shop import on, shop_app

Typed = Callable[..., Result]


@pytest.fixture
def app(mongodb_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app in a module `typed_proj`, whose tasks `sync` and `index` watch orders."""
    with shop_app(mongodb_url, sync="orders", index="orders") as app:
        module = types.ModuleType("typed_proj")
        module.app = app  # type: ignore[attr-defined]  # as the user's module has it
        monkeypatch.setitem(sys.modules, "typed_proj", module)
        yield app


@pytest.fixture
def sync(app: Celery) -> Bench:
    """A workbench for the records of `sync`."""
    app.finalize()
    handle = Reactive.of(app)
    return Bench(handle.runtime.connection, handle.registry.get("sync"))


@pytest.fixture
def typed(sync: Bench) -> Typed:  # noqa: ARG001 -- it makes the collections
    """Type a command; `answer` is what is typed when it asks."""

    def run(*words: str, answer: str | None = None) -> Result:
        command = cli._standalone()
        return CliRunner().invoke(command, ["-A", "typed_proj", *words], input=answer, auto_envvar_prefix="CELERY")

    return run


def fail(bench: Bench, *doc_ids: Any, message: str = "502 Bad Gateway") -> None:
    """Let the runs of documents fail for good."""
    for doc_id in doc_ids:
        bench.settle(bench.start(on(doc_id)), Exhausted(Failure(message, "HTTPError", "traceback"), TOOK))


def of(result: Result) -> Any:
    """Return the JSON that a command printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_records_are_listed(typed: Typed, sync: Bench) -> None:
    """B-51: for people a table, for programs JSON with every field, in pages."""
    fail(sync, 1, 2)
    sync.handle(on(3))
    shown = typed("tasks", "list", "--status", "failed", "--sort", "-attempts").stdout
    assert "502 Bad Gateway" in shown
    assert "1-2 of 2" in shown
    first = of(typed("tasks", "list", "--limit", "2", "--sort", "createdAt", "--json"))
    assert (len(first["items"]), first["total"]) == (2, 3)
    rest = of(typed("tasks", "list", "--sort", "createdAt", "--after", first["next"], "--json"))
    assert [item["source_doc_id"] for item in (*first["items"], *rest["items"])] == [1, 2, 3]
    assert typed("tasks", "list", "--task", "index").stdout == "no records\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--task", "sync"),
        ("--status", "failed"),
        ("--status", "failed", "--status", "pending"),
        ("--doc-id", "1"),
        ("--collection", "orders"),
        ("--source", '{"paid": {"$exists": true}}'),
        ("--error", "Bad"),
        ("--error", "^502 B[a-z]+", "--regex"),
        ("--has-error",),
    ],
    ids=" ".join,
)
def test_each_filter_narrows(typed: Typed, sync: Bench, options: tuple[str, ...]) -> None:
    """B-51: every filter of the command line chooses what it says."""
    fail(sync, 1)
    sync.source.update_one({"_id": 1}, {"$set": {"paid": True}})
    expected = 2 if options[0] in {"--task", "--collection"} else 1
    sync.handle(on(2))
    assert typed("tasks", "count", *options).stdout == f"{expected}\n"
    assert of(typed("tasks", "count", *options, "--json")) == {"count": expected}


@pytest.mark.parametrize(
    ("doc_id", "written"),
    [
        (7, "7"),
        ("7", '"7"'),
        ("plain text", "plain text"),
        (ObjectId("5f0000000000000000000001"), "5f0000000000000000000001"),
        ("5f0000000000000000000001", '"5f0000000000000000000001"'),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (None, "null"),
        ({"a": 1}, '{"a": 1}'),
        ("$in", "$in"),
    ],
    ids=repr,
)
def test_an_id_is_written_as_it_looks(typed: Typed, sync: Bench, doc_id: Any, written: str) -> None:
    """B-51: on the command line as in the database; nothing is an operator."""
    sync.handle(on(doc_id))
    sync.handle(on("another"))
    record = of(typed("tasks", "show", "sync", written, "--json"))
    assert record["status"] == "completed"
    assert "watched values  {" in typed("tasks", "show", "sync", written).stdout
    assert typed("tasks", "count", "--doc-id", written).stdout == "1\n"


def test_values_are_shown_in_their_own_letters(typed: Typed, sync: Bench) -> None:
    """B-51: what a person reads is what is stored."""
    sync.handle(on("Zürich", v="你好"))
    assert '"Zürich"' in typed("tasks", "list").stdout
    assert '{"v": "你好"}' in typed("tasks", "show", "sync", "Zürich").stdout


def test_an_id_of_no_record_is_told_with_the_other_reading(typed: Typed, sync: Bench) -> None:
    """B-51: a string that looks like a number is found on the second try."""
    sync.handle(on("7"))
    missing = typed("tasks", "show", "sync", "7")
    assert missing.exit_code == 1
    assert """for the string write '"7"'""" in missing.stderr
    assert typed("tasks", "show", "sync", '"7"').exit_code == 0
    assert typed("tasks", "show", "sync", '{"$oid": 1}').exit_code == 2


def test_a_document_is_explained(typed: Typed, sync: Bench) -> None:
    """B-53: in words, and for programs with codes."""
    fail(sync, 1)
    assert "502 Bad Gateway" in typed("tasks", "explain", "sync", "1").stdout
    found = of(typed("tasks", "explain", "sync", "1", "--json"))
    assert found["outlook"] == "will_not_run"
    assert [reason["code"] for reason in found["reasons"]] == ["failed"]
    assert "for the string write" in typed("tasks", "explain", "sync", "99").stdout


@pytest.mark.parametrize(("command", "state"), [("retry", RecordState.PENDING), ("discard", RecordState.COMPLETED)])
def test_a_bulk_change_shows_what_it_means_and_asks(
    typed: Typed, sync: Bench, command: str, state: RecordState
) -> None:
    """B-52: the count and a sample; no is no, and nothing was begun."""
    fail(sync, *range(8))
    refused = typed("tasks", command, "--status", "failed", answer="n\n")
    assert refused.exit_code == 1
    assert f"{command.title()} 8 records?" in refused.stderr
    assert "sync[0]" in refused.stderr
    assert "and 3 others" in refused.stderr
    assert sync.records.count_documents({"status": "failed"}) == 8
    assert of(typed("operations", "list", "--json")) == []
    assert typed("tasks", command, "--status", "failed", answer="").exit_code == 1
    done = typed("tasks", command, "--status", "failed", answer="y\n")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("8 records ")
    assert sync.records.count_documents({"status": state.value}) == 8


def test_yes_does_not_ask_and_json_tells_the_operation(typed: Typed, sync: Bench) -> None:
    """B-52: for scripts."""
    fail(sync, *range(5))
    ended = of(typed("tasks", "retry", "--task", "sync", "--error", "Bad", "--limit", "2", "--yes", "--json"))
    assert (ended["action"], ended["state"], ended["changed"]) == ("retry", "done", 2)
    assert ended["asked"]["error"] == "Bad"


def test_discard_counts_what_it_would_change(typed: Typed, sync: Bench) -> None:
    """B-52: completed records are none of its business."""
    sync.handle(on(1))
    fail(sync, 2)
    assert "Discard 1 record?" in typed("tasks", "discard", "--task", "sync", answer="n\n").stderr
    nothing = typed("tasks", "discard", "--status", "completed", answer="")
    assert (nothing.exit_code, nothing.stdout) == (0, "0 records discarded\n")


def test_everything_is_changed_only_where_that_is_said(typed: Typed, sync: Bench) -> None:
    """B-51: retrying everything needs --all."""
    fail(sync, 1)
    refused = typed("tasks", "retry", "--yes")
    assert refused.exit_code == 2
    assert "--all" in refused.stderr
    assert typed("tasks", "retry", "--all", "--yes").stdout == "1 record retried\n"


def test_a_purge_shows_what_it_means_and_asks(typed: Typed, sync: Bench) -> None:
    """B-41: of a declared task only what --gone or --left names."""
    sync.handle(on(1))
    sync.leave(1, at=sync.delete(1), gone=True)
    sync.handle(on(2))
    assert typed("tasks", "purge", "sync", "--yes").exit_code == 2
    asked = typed("tasks", "purge", "sync", "--gone", answer="n\n")
    assert "sync[1]" in asked.stderr
    assert "Remove 1 record?" in asked.stderr
    assert typed("tasks", "purge", "sync", "--gone", answer="y\n").stdout == "1 record removed\n"
    assert of(typed("tasks", "purge", "sync", "--gone", "--older-than", "7d", "--yes", "--json"))["changed"] == 0
    assert sync.records.count_documents({}) == 1


def test_work_left_to_the_planner_is_seen_and_cancelled(typed: Typed, app: Celery, sync: Bench) -> None:
    """B-52: --background returns at once."""
    fail(sync, 1)
    begun = typed("tasks", "retry", "--task", "sync", "--yes", "--background").stdout
    (listed,) = of(typed("operations", "list", "--running", "--json"))
    assert listed["id"] in begun
    assert "waits for a planner" in typed("operations", "show", listed["id"]).stdout
    assert typed("operations", "cancel", listed["id"]).stdout == "cancelled after 0 records\n"
    assert typed("operations", "cancel", listed["id"]).stdout == "had ended already: cancelled\n"
    assert of(typed("operations", "show", listed["id"], "--json"))["state"] == "cancelled"
    assert operations.resume_stalled(Reactive.of(app).runtime, lambda: False) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tasks", "list", "--task", "synk"), "did you mean 'sync'"),
        (("tasks", "list", "--status", "failt"), "failed"),
        (("tasks", "list", "--collection", "ordres"), "did you mean 'orders'"),
        (("tasks", "list", "--sort", "scheduledAt"), "did you mean 'nextRunAt'"),
        (("tasks", "list", "--source", "{oops"), "extended JSON"),
        (("tasks", "list", "--source", "[1]"), "expected a JSON object"),
        (("tasks", "count", "--source", '{"$oops": 1}'), "--source: expected what MongoDB takes: unknown"),
        (("tasks", "retry", "--error", "(?u:x)", "--regex"), "--error: expected what MongoDB takes"),
        (("tasks", "list", "--error", "(", "--regex"), "regular expression"),
        (("tasks", "list", "--error", "x" * 201, "--regex"), "expected a pattern of at most 200 characters, got 201"),
        (("tasks", "list", "--regex"), "--error"),
        (("tasks", "list", "--limit", "0"), "--limit"),
        (("tasks", "list", "--after", "zzz"), "expected the `next` of a page"),
        (("tasks", "retry", "--yes"), "--all"),
        (("tasks", "purge", "sync", "--yes"), "--gone"),
        (("tasks", "purge", "sync", "--gone", "--older-than", "soon"), "soon"),
        (("tasks", "retri"), "retry"),
        (("throttle", "sync", "soon"), "soon"),
        (("throttle", "sync", "2026-01-31T12:00"), "2026-01-31T12:00Z"),
        (("limit", "sync"), "expected one of"),
        (("limit", "sync", "--rate", "fast"), "fast"),
        (("limit", "sync", "--priority", "10"), "priority"),
        (("operations", "show", "nothing"), "expected the id of an operation"),
        (("operations", "cancel", "nothing"), "expected the id of an operation"),
        (("beat", "trigger", "nightly"), "expected an entry of the schedule, which has none"),
        (("planner", "--group", "nope"), "expected a planner group that has tasks, one of 'default'"),
        (("planner", "--loglevel", "LOUD"), "LOUD"),
        (("dashboard", "--host", "0.0.0.0"), "expected credentials"),  # noqa: S104 -- it is refused
        (("dashboard", "--flower-url", "nonsense"), "flower_url"),
        (("schema", "planner"), "prints no JSON"),
        (("demo", "--seconds", "0"), "--seconds"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_wrong_use_is_told_with_the_right_one(typed: Typed, words: tuple[str, ...], said: str) -> None:
    """B-51: one message that names the mistake, no traceback, and exit code 2."""
    ended = typed(*words)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


COMMANDS = dict(leaves(cli.reactive))
OF_A_TASK = [name for name, one in COMMANDS.items() if any(isinstance(param.type, TaskName) for param in one.params)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_option_that_it_does_not_have(typed: Typed, command: str) -> None:
    """Public surface: exit code 2 wherever something was typed that has no meaning."""
    ended = typed(*command.split(), "--nonsense")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "--nonsense" in ended.stderr


@pytest.mark.parametrize("command", OF_A_TASK)
def test_every_command_that_takes_a_task_lists_the_known(typed: Typed, command: str) -> None:
    """B-52: an unknown task is wrong use."""
    taken = [param for param in COMMANDS[command].params if isinstance(param, Argument)]
    arguments = ["synk" if isinstance(param.type, TaskName) else "1m" for param in taken] or ["--task", "synk"]
    ended = typed(*command.split(), *arguments)
    assert (ended.exit_code, ended.stdout) == (2, ""), ended.output
    assert "did you mean 'sync'" in ended.stderr
    assert "known: index, sync" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [("tasks", "show", "sync", "99"), ("trigger", "sync", "99"), ("doctor",), ("tasks", "retry", "--doc-id", "1")],
    ids=" ".join,
)
def test_what_was_not_done_or_not_found_ends_with_one(typed: Typed, sync: Bench, words: tuple[str, ...]) -> None:
    """Public surface: scripts tell a failure from a mistake in their own words."""
    fail(sync, 1)
    assert typed(*words).exit_code == 1


@pytest.mark.parametrize("command", ["status", "doctor", "tasks list", "planner", "limit sync --rate 1/m"])
def test_a_wrong_setting_is_no_wrong_use(typed: Typed, app: Celery, command: str) -> None:
    """Public surface: what was typed is right, and the project is not."""
    app.conf.reactive_batch_size = 0
    with Reactive.of(app).made_anew():
        ended = typed(*command.split())
    assert ended.exit_code == 1
    assert "reactive_batch_size" in ended.output


def test_a_task_is_held_back_and_run_by_hand(typed: Typed, app: Celery, sync: Bench) -> None:
    """B-53: pause, throttle, resume, trigger."""
    handle = Reactive.of(app)
    assert typed("pause", "sync").exit_code == 0
    assert next(one for one in handle.status().tasks if one.task == "sync").paused
    assert "throttled until" in typed("throttle", "sync", "15m").stdout
    assert "throttled until 2999-01-01" in typed("throttle", "sync", "2999-01-01T00:00Z").stdout
    assert typed("resume", "sync").exit_code == 0
    task = next(one for one in handle.status().tasks if one.task == "sync")
    assert (task.paused, task.throttled_until) == (False, None)
    sync.put(on(5))
    assert typed("trigger", "sync", "5").stdout == "sync[5] runs now\n"
    assert sync.state(5) is RecordState.PENDING


def test_a_record_that_the_loop_guard_has_paused_is_resumed(typed: Typed, sync: Bench) -> None:
    """B-64: it is listed first, shown as such, and let run alone; of another it says so, and exits with 1."""
    sync.guard(on(1))
    sync.plan(on(2))
    first, second = of(typed("tasks", "list", "--status", "pending", "--json"))["items"]
    assert (first["guarded"], second["guarded"]) == (True, False)
    assert "guarded" in typed("tasks", "show", "sync", "1").stdout
    assert typed("resume", "sync", "1").stdout == "sync[1] runs now\n"
    assert sync.claim(1)
    ended = typed("resume", "sync", "2")
    assert ended.exit_code == 1
    assert "not paused by the loop guard" in ended.output


def test_an_error_cannot_command_the_terminal(typed: Typed, sync: Bench) -> None:
    """B-51: what a document made a handler say is shown, and moves no cursor and hides no line."""
    message = "\x1b[2J\x1b]0;mine\x07 \x9b31m \u202e é"
    sync.put(on(1))
    sync.settle(sync.start(on(1)), Exhausted(Failure(message, "ValueError", f"Traceback\n\tat {message}"), TOOK))
    for words in (("show", "sync", "1"), ("explain", "sync", "1"), ("list",)):
        ended = typed("tasks", *words)
        assert ended.exit_code == 0
        assert not set("\x1b\x07\x9b\u202e") & set(ended.stdout)
        assert "\\x1b[2J" in ended.stdout
        assert "é" in ended.stdout
    assert of(typed("tasks", "show", "sync", "1", "--json"))["last_error"] == message


SECRET = "hunter2"  # noqa: S105 -- opens nothing


@pytest.fixture
def secretive(typed: Typed, sync: Bench) -> Typed:
    """Commands beside a secret in each place where one may be: values, errors, a history, a filter."""
    told = f"cannot log in with password={SECRET} at mongodb://me:{SECRET}@db"
    sync.put(on(1, v={"token": SECRET, "api_key": SECRET, "total": 5}))
    claim = sync.start(on(1, v={"token": SECRET, "total": 5}))
    sync.settle(claim, Exhausted(Failure(told, "ValueError", f"Traceback\n  token='{SECRET}'"), TOOK))
    note = {"at": Timestamp(1, 1), "gone": False, "reason": unplanned.Reason.FAILED, "error": told}
    unplanned.note(sync.connection.globals(), sync.key(2), **note)  # type: ignore[arg-type]  # of many types
    typed("tasks", "retry", "--source", f'{{"password": "{SECRET}"}}', "--task", "sync", "--yes")
    typed("tasks", "retry", "--error", f"password={SECRET}x", "--yes")
    return typed


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["for people", "as JSON"])
@pytest.mark.parametrize(
    "words",
    [
        ("tasks", "list"),
        ("tasks", "show", "sync", "1"),
        ("tasks", "explain", "sync", "1"),
        ("tasks", "explain", "sync", "2"),
        ("failures",),
        ("operations", "list"),
        ("status",),
    ],
    ids=" ".join,
)
def test_secrets_are_shown_only_where_that_is_said(secretive: Typed, words: tuple[str, ...], form: tuple[str]) -> None:
    """B-57: the command line hides what the dashboard hides, by the same rule."""
    shown = secretive(*words, *form)
    assert shown.exit_code == 0, shown.output
    assert SECRET not in shown.output
    if words != ("status",) or form:
        assert MASK in shown.output
        assert SECRET in secretive(*words, *form, "--show-secrets").output


def test_a_bulk_change_tells_no_secret_of_its_filters(secretive: Typed) -> None:
    """B-57: what a script prints ends up in a log."""
    asked = ("tasks", "retry", "--source", f'{{"password": "{SECRET}"}}', "--task", "sync", "--yes", "--json")
    assert of(secretive(*asked))["asked"]["source"] == {"password": MASK}


def test_a_setting_names_more_secrets(app: Celery, typed: Typed, sync: Bench) -> None:
    """B-57: `reactive_redact`, besides the usual ones."""
    app.conf.reactive_redact = ["iban_of_customer"]
    sync.handle(on(1, v={"ibanOfCustomer": "DE00", "token": SECRET, "total": 5}))
    values = of(typed("tasks", "show", "sync", "1", "--json"))["last_observed_values"]
    assert values == {"v": {"ibanOfCustomer": MASK, "token": MASK, "total": 5}}


def test_a_deployment_is_tried_dry(typed: Typed, sync: Bench) -> None:
    """B-53: what it would do, with examples; --dry-run is said or not."""
    sync.put(on(1))
    shown = typed("plan", "sync", "--dry-run").stdout
    assert "is new" in shown
    assert "nothing written" in shown
    report = of(typed("plan", "sync", "--json"))
    assert (report["create"], report["samples"]) == (1, {"create": [1]})
    assert sync.records.count_documents({}) == 0

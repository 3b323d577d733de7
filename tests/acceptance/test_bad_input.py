"""What a user meets first when something is wrong: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GOOD = {"broker": "redis://127.0.0.1:1/0", "settings": "", "options": 'collection="jobs"'}

CASES = {
    "an option misspelt": ({"options": 'collection="jobs", debouce=1'}, 1, ["'debouce'", "did you mean 'debounce'"]),
    "a filter that cannot be kept": ({"options": 'collection="jobs", filter={"$where": "1"}'}, 1, ["$where"]),
    "every problem at once": ({"options": 'debounce="5x", filter=3'}, 1, ["collection", "debounce", "filter"]),
    "a setting misspelt": ({"settings": "app.conf.reactive_leder_ttl = 5"}, 1, ["did you mean 'reactive_leader_ttl'"]),
    "a setting of the wrong type": ({"settings": 'app.conf.reactive_batch_size = "many"'}, 1, ["reactive_batch_size"]),
    "a connection string that is none": (
        {"settings": 'app.conf.reactive_mongodb_url = "mongodb://me:secret@127.0.0.1:no/x"'},
        1,
        ["reactive_mongodb_url: expected a connection string", "127.0.0.1:no"],
    ),
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `celery-reactive` in *folder*."""
    return subprocess.run(
        [sys.executable, "-m", "celery_reactive.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write_project(folder: Path, *, broker: str, settings: str, options: str) -> None:
    """Write `proj.py` with one task."""
    (folder / "proj.py").write_text(
        "from celery import Celery\n"
        "from celery_reactive import reactive_task\n"
        f'app = Celery("proj", broker="{broker}")\n'
        f"{settings}\n"
        f"@reactive_task({options})\n"
        "@app.task\n"
        "def job(ctx): ...\n",
    )


@pytest.mark.parametrize(("wrong", "code", "words"), CASES.values(), ids=list(CASES))
def test_what_is_wrong_is_said_in_one_message(
    tmp_path: Path, wrong: dict[str, str], code: int, words: list[str]
) -> None:
    """B-2: subject, expected, got, remedy; nothing was started, no secret is shown."""
    write_project(tmp_path, **{**GOOD, **wrong})
    ended = run(tmp_path, "-A", "proj", "planner")
    assert ended.returncode == code
    assert not [word for word in words if word not in ended.stderr], ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """A command that asks it fails; the planner waits for it, which has a test of its own."""
    away = 'app.conf.reactive_mongodb_url = "mongodb://me:secret@127.0.0.1:1/x?serverSelectionTimeoutMS=500"'
    write_project(tmp_path, broker="memory://", settings=away, options=GOOD["options"])
    ended = run(tmp_path, "-A", "proj", "failures")
    assert ended.returncode == 1
    assert "MongoDB does not answer at mongodb://127.0.0.1:1/x" in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path, mongodb_url: str) -> None:
    """The planner does not start without its broker; later it waits for it."""
    settings = f'app.conf.reactive_mongodb_url = "{mongodb_url}"'
    write_project(tmp_path, broker="redis://:secret@127.0.0.1:1/0", settings=settings, options=GOOD["options"])
    ended = run(tmp_path, "-A", "proj", "planner")
    assert ended.returncode == 1
    assert "broker does not answer" in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout


def test_an_app_without_reactive_tasks_is_told_so(tmp_path: Path, mongodb_url: str) -> None:
    """A planner with nothing to plan is a mistake."""
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        'app = Celery("proj", broker="redis://127.0.0.1:1/0")\n'
        f'app.conf.reactive_mongodb_url = "{mongodb_url}"\n',
    )
    ended = run(tmp_path, "-A", "proj", "planner")
    assert ended.returncode == 1
    assert "no reactive task" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-A", "nosuch", "planner"], "nosuch"), (["planner"], "CELERY_APP"), (["plannr"], "planner")],
    ids=["no such module", "no app", "no such command"],
)
def test_wrong_use_ends_with_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    """Exit code 2 is wrong use of the command line."""
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr

"""The user's project: find its Celery app, import its tasks, return the handle.

Called by every command that needs an app. Code of the user's runs here, and may raise anything: what it
raises becomes a message that names the exception and the line.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.app.utils import find_app
from click.shell_completion import CompletionItem

from celery_reactive.app import Reactive
from celery_reactive.cli.guard import HANDLE
from celery_reactive.errors import ReactiveError

_VARIABLES = {
    "loader": "CELERY_LOADER",
    "broker": "CELERY_BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "config": "CELERY_CONFIG_MODULE",
}
"""Celery's global options that an app reads from the environment while it is made."""
_FINDERS = ("celery.app.utils", "kombu.utils.imports")


def export(options: Mapping[str, Any]) -> None:
    """Put Celery's global options where an app that is about to be imported finds them."""
    os.environ.update({name: options[option] for option, name in _VARIABLES.items() if options.get(option)})


def load_app(name: str) -> Celery:
    """Import the Celery app called *name*, as `-A` names it.

    Raises:
        UsageError: There is no such module, or no app in it.
        ClickException: The module raised while it was imported.
        ReactiveError: A declaration in it is wrong.
    """
    try:
        app = find_app(name)
    except ReactiveError:
        raise
    except Exception as error:
        raise _not_loaded(name, error) from error
    if not isinstance(app, Celery):
        got = type(app).__name__
        raise click.UsageError(f"-A {name}: expected a Celery app, got {got}; name it: -A module:variable")
    return app


def open_project(ctx: click.Context) -> Reactive:
    """Import all tasks of the app that the command line names, and return its handle.

    Raises:
        UsageError: No app is named.
        ClickException: A module of tasks raised while it was imported.
        ConfigurationError: A declaration or a setting is wrong.
    """
    root = ctx.find_root()
    if root.params.get("app") is None:
        raise click.UsageError("no Celery app; expected one by -A (as in -A proj) or by CELERY_APP", root)
    app: Celery = ctx.obj.app
    try:
        app.loader.import_default_modules()
        app.finalize()
    except ReactiveError:
        raise
    except Exception as error:
        raise click.ClickException(f"the app's tasks cannot be imported: {_raised(error)}") from error
    handle = Reactive.of(app)
    root.meta[HANDLE] = handle
    return handle


class TaskName(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """The name of a reactive task; the shell completes it from the project that the command line names."""

    name = "task"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names of the project's reactive tasks that begin so; none where it cannot be loaded."""
        app_name = ctx.find_root().params.get("app") or os.environ.get("CELERY_APP")
        if not app_name:
            return []
        try:
            app = load_app(app_name)
            app.loader.import_default_modules()
            app.finalize()
            names = [task.name for task in Reactive.of(app).runtime.registry]
        except Exception:  # noqa: BLE001 -- the user's code may raise anything, and a shell wants no message here
            return []
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _not_loaded(name: str, error: Exception) -> click.ClickException:
    module = name.partition(":")[0]
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return click.UsageError(
            f"-A {name}: no module {error.name!r} in {Path.cwd()} or on the Python path; expected an importable "
            "module, as in -A proj; run this in the project's folder, or give --workdir before -A",
        )
    if _is_missing_app(error):
        return click.UsageError(
            f"-A {name}: {error}; expected a module with a Celery app called 'app' or 'celery', "
            "or its name: -A module:variable",
        )
    return click.ClickException(f"-A {name}: importing it failed: {_raised(error)}")


def _frame_of(error: Exception) -> traceback.FrameSummary:
    """Return where *error* was raised."""
    return traceback.extract_tb(error.__traceback__)[-1]


def _is_missing_app(error: Exception) -> bool:
    """Whether Celery looked into a module that was imported well and found no app; the user's code raised nothing."""
    if isinstance(error, ModuleNotFoundError):
        return ":" in (error.name or "")
    raised_in = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return isinstance(error, AttributeError) and raised_in in _FINDERS


def _raised(error: Exception) -> str:
    frame = _frame_of(error)
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno}); --traceback shows more"

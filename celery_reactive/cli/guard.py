"""Failures as one message on stderr: what, expected, got, remedy; a traceback only where it is asked for.

Exit codes: 0 success, 1 failure, 2 wrong use: what was typed has no meaning, and nothing was done. The groups of the
command line are `GuardedGroup`s, so that a command lets errors through. No message may show a password.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import click
from celery import Celery
from click_didyoumean import DYMGroup

from celery_reactive.app import Reactive
from celery_reactive.errors import (
    ArgumentError,
    ConfigurationError,
    ReactiveError,
    StoreUnavailableError,
    UnknownTaskError,
)
from celery_reactive.planner.publish import BrokerUnavailableError

_USERINFO = re.compile(r"(?<=://)[^\s'\"]*@")
_MASK = "***"

traceback_option = click.option(
    "--traceback",
    is_flag=True,
    envvar="CELERY_REACTIVE_TRACEBACK",
    help="Show where an error comes from, not only what it says.",
)


class GuardedGroup(DYMGroup):
    """A group that suggests commands, and turns expected errors of its commands into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named.

        Raises:
            UsageError: What was typed names nothing, or has no meaning.
            ClickException: Another expected failure as a message; click shows it and ends with its code.
        """
        try:
            return super().invoke(ctx)
        except ReactiveError as error:
            if ctx.params["traceback"]:
                traceback.print_exception(error)
            is_misuse = isinstance(error, (ArgumentError, UnknownTaskError))
            kind = click.UsageError if is_misuse else click.ClickException
            raise kind(describe(error, _handle_of(ctx))) from error


def describe(error: ReactiveError, handle: Reactive | None = None) -> str:
    """Return the message for *error*: whole sentences, several problems as a list, no secrets.

    Args:
        error: What a command raised.
        handle: The project's, if it could be opened: names the servers.
    """
    match error:
        case ConfigurationError():
            text = _listed(error)
        case StoreUnavailableError():
            text = _store_away(error, handle)
        case BrokerUnavailableError():
            text = f"{error}\nExpected a running broker at that address; start it, or correct broker_url (-b)."
        case _:
            text = str(error)
    return redact(text, urls_of(None if handle is None else handle.app))


def redact(text: str, urls: Iterable[str] = ()) -> str:
    """Return *text* without the user and password of any URL in it, and without the passwords of *urls* anywhere."""
    for url in urls:
        for secret in _secrets_of(url):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _MASK, text)
    return _USERINFO.sub(f"{_MASK}@", text)


def _listed(error: ConfigurationError) -> str:
    if len(error.problems) == 1:
        return str(error)
    return "\n  - ".join([f"{error.subject}: {len(error.problems)} problems", *error.problems])


def _store_away(error: StoreUnavailableError, handle: Reactive | None) -> str:
    url = handle.runtime.settings.shown_url if handle is not None else "its address"
    return (
        f"MongoDB does not answer at {url}: {error}\n"
        "Expected a running replica set at that address; start it, or correct reactive_mongodb_url "
        "(or CELERY_REACTIVE_MONGODB_URL)."
    )


def _secrets_of(url: str) -> list[str]:
    """Return what of *url* must not be shown: the password, also as the driver may have torn it apart.

    A reserved character that should have been escaped makes a driver take a part of the password for a host.
    """
    userinfo, at, _ = url.partition("://")[2].rpartition("@")
    password = userinfo.partition(":")[2] if at else ""
    parts = re.split(r"[@/:?]", password)
    return sorted({secret for secret in (password, unquote(password), *parts) if secret}, key=len, reverse=True)


def urls_of(app: Celery | None) -> list[str]:
    """Return the addresses, with their secrets, that messages on *app* may quote."""
    if app is None:
        return []
    conf = app.conf
    databases = [conf.get("reactive_mongodb_url"), os.environ.get("CELERY_REACTIVE_MONGODB_URL")]
    brokers = [conf.broker_url, conf.broker_read_url, conf.broker_write_url, conf.result_backend]
    return [url for address in (*databases, *brokers) if isinstance(address, str) for url in address.split(";")]


def _handle_of(ctx: click.Context) -> Reactive | None:
    """Return the project's handle if a command got as far as opening it."""
    handle = ctx.find_root().meta.get(HANDLE)
    return handle if isinstance(handle, Reactive) else None


HANDLE = "celery_reactive.handle"
"""Where `project.open_project` leaves the handle in click's context."""

"""`dashboard`: serve the web dashboard by itself, to this machine, or to others who know a password or a token.

Credentials come from the environment, where no list of processes shows them.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor, wait
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from celery_reactive.cli.project import open_project
from celery_reactive.core.task import DEFAULT_GROUP

if TYPE_CHECKING:
    from uvicorn import Server

DEFAULT_PORT = 8765
USERS, TOKENS = "CELERY_REACTIVE_DASHBOARD_USERS", "CELERY_REACTIVE_DASHBOARD_TOKENS"
_GLANCE_SECONDS = 0.25
"""A signal may come to any thread, and does not end this one's wait."""
_NEEDED = ("jinja2", "starlette", "uvicorn")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535), help="Port.")
@click.option("--read-only", is_flag=True, help="Nobody may change anything.")
@click.option("--title", default="celery-reactive", show_default=True, help="Which installation this is, for people.")
@click.option("--flower-url", help="Where Flower is, for links to Celery tasks.")
@click.option("--group", default=DEFAULT_GROUP, show_default=True, help="The planner group whose leader is shown.")
@click.pass_context
def dashboard(ctx: click.Context, /, *, host: str, port: int, **options: Any) -> None:
    """Serve the web dashboard until SIGTERM or SIGINT.

    Listens at an address that others can reach only with credentials, from the environment:
    CELERY_REACTIVE_DASHBOARD_USERS="name:password", several separated by spaces, and
    CELERY_REACTIVE_DASHBOARD_TOKENS="name:token", for programs; the name, which may be left out, tells who did what.
    """
    credentials = _credentials()
    if not credentials and not _is_loopback(host):
        raise click.UsageError(
            f"--host {host}: expected credentials beside an address that others can reach; set {USERS} or {TOKENS}"
        )
    application = open_project(ctx).dashboard(**options, **credentials)
    import uvicorn  # noqa: PLC0415 -- an extra

    # What a proxy says of its client is not believed: whoever can reach the port could say it.
    config = uvicorn.Config(application, log_level="warning", proxy_headers=False, server_header=False)
    with _listening(host, port) as listener:
        click.echo(f"dashboard at http://{f'[{host}]' if ':' in host else host}:{port}/")
        _serve(uvicorn.Server(config), listener)


def is_installed() -> bool:
    """Whether the packages that the dashboard needs are there."""
    return all(importlib.util.find_spec(name) is not None for name in _NEEDED)


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise click.ClickException(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error


def _serve(server: Server, listener: socket.socket) -> None:
    """Serve until a signal comes, in a thread: in the main one the server would end the process by that signal."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with ThreadPoolExecutor(1, thread_name_prefix="reactive-dashboard") as serving:
        running = serving.submit(server.run, [listener])
        while not running.done():
            wait([running], timeout=_GLANCE_SECONDS)
        running.result()


def _credentials() -> dict[str, Any]:
    found: dict[str, Any] = {}
    users = os.environ.get(USERS, "").split()
    if users:
        pairs = [user.partition(":") for user in users]
        if not all(name and password for name, _, password in pairs):
            # Not shown: there are passwords in it.
            raise click.UsageError(f'{USERS}: expected "name:password", several separated by spaces')
        found["users"] = {name: password for name, _, password in pairs}
    tokens = os.environ.get(TOKENS, "").split()
    if tokens:
        pairs = [token.rpartition(":") for token in tokens]
        found["tokens"] = {name or f"token {number}": token for number, (name, _, token) in enumerate(pairs, 1)}
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

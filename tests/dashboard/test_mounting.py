"""The dashboard inside of other applications, and by itself from the command line."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from celery_reactive import ConfigurationError
from celery_reactive.core.states import RecordState
from tests.acceptance.project import Process, wait_until
from tests.dashboard.conftest import FAILED_ID, Shop

PAGES = ["/", "/records", "/errors", "/planner", "/operations", "/schedule"]
PROJECT = """
from celery import Celery
from celery_reactive import reactive_task

app = Celery("proj", broker="memory://")

@reactive_task(collection="orders", task="sync")
@app.task
def sync(ctx):
    pass
"""


def assert_mounted(client: TestClient) -> None:
    """Check that every link and file of every page leads to where the dashboard is."""
    for page in PAGES:
        answer = client.get(f"/reactive{page}")
        assert answer.status_code == 200, page
        links = re.findall(r'(?:href|src|action|data-source|hx-get)="(/[^"]*)"', answer.text)
        assert links
        assert [link for link in links if not link.startswith("/reactive/")] == []
        for link in links:
            if "/static/" in link:
                assert client.get(link).status_code == 200, link
    assert client.get("/reactive/openapi.json").json()["servers"] == [{"url": "/reactive"}]
    own = {"sec-fetch-site": "same-origin"}
    fields = {"key": json.dumps(["sync", f'{{"$oid": "{FAILED_ID}"}}'])}
    assert "1 record is pending now" in client.post("/reactive/actions/retry", data=fields, headers=own).text


@pytest.mark.parametrize("outer", [FastAPI, Starlette], ids=lambda outer: outer.__name__)
def test_it_is_mounted_in_an_asgi_application(shop: Shop, outer: Any) -> None:
    """B-57: `FastAPI.mount`; every address holds the place where it is mounted."""
    application = outer()
    dashboard = shop.reactive.dashboard(authorize=lambda _: "all")
    application.router.routes.append(Mount("/reactive", dashboard))
    with TestClient(application, base_url="http://shop.example") as client:
        assert_mounted(client)
    assert shop.record(FAILED_ID).status is RecordState.PENDING


def test_it_is_mounted_in_a_wsgi_application(shop: Shop) -> None:
    """B-57: Flask and Django's wsgi.py, through a2wsgi, on a real server."""
    flask_app = Flask("shop")
    flask_app.add_url_rule("/", view_func=lambda: "shop")
    dashboard = shop.reactive.dashboard_wsgi(users={"ops": "correct-horse"})
    application = DispatcherMiddleware(flask_app.wsgi_app, {"/reactive": dashboard})

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            assert fetch(address) == (200, "shop")
            assert fetch(f"{address}/reactive/")[0] == 401
            ops = {"Authorization": "Basic b3BzOmNvcnJlY3QtaG9yc2U="}
            for page in PAGES:
                status, text = fetch(f"{address}/reactive{page}", ops)
                assert (status, 'href="/reactive/records"' in text) == (200, True)
            task = b'{"task": "sync"}'
            paused = fetch(f"{address}/reactive/api/v1/pause", {**ops, "Content-Type": "application/json"}, task)
            assert paused[0] == 200
        finally:
            server.shutdown()
            thread.join()


def test_a_missing_extra_names_the_line_to_install_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-57: one who has not installed it is told how."""
    for name in [name for name in sys.modules if name.startswith("celery_reactive.dashboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'celery-reactive\[dashboard\]'"):
        shop.reactive.dashboard()


# --- the command ------------------------------------------------------------------------------------------


def run(folder: Path, mongodb_url: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `celery-reactive -A proj dashboard` to its end."""
    (folder / "proj.py").write_text(PROJECT)
    return subprocess.run(
        [sys.executable, "-m", "celery_reactive.cli", "-A", "proj", "dashboard", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "CELERY_REACTIVE_MONGODB_URL": mongodb_url, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "db.example.org"])  # noqa: S104 -- refused
def test_an_open_address_needs_credentials(tmp_path: Path, mongodb_url: str, host: str) -> None:
    """B-57: it does not start."""
    ended = run(tmp_path, mongodb_url, "--host", host)
    assert ended.returncode == 2
    assert "expected credentials" in ended.stderr


@pytest.mark.parametrize("users", ["ops", "ops:", ":secret-word"])
def test_unreadable_credentials_are_refused_and_not_shown(tmp_path: Path, mongodb_url: str, users: str) -> None:
    """B-57: the message says how they are written."""
    ended = run(tmp_path, mongodb_url, CELERY_REACTIVE_DASHBOARD_USERS=users)
    assert ended.returncode == 2
    assert 'expected "name:password"' in ended.stderr
    assert "secret-word" not in ended.stderr


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, mongodb_url: str) -> None:
    """B-57: `celery-reactive dashboard` prints its address, asks who one is, and ends with 0."""
    (tmp_path / "proj.py").write_text(PROJECT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-u", "-m", "celery_reactive.cli", "-A", "proj", "dashboard", "--port", str(port)]
    environment = {"CELERY_REACTIVE_MONGODB_URL": mongodb_url, "CELERY_REACTIVE_DASHBOARD_USERS": "ops:correct-horse"}
    process = Process("dashboard", arguments, tmp_path, environment)
    try:
        wait_until(lambda: is_served(f"http://127.0.0.1:{port}/"), logs=process.text)
        ops = {"Authorization": "Basic b3BzOmNvcnJlY3QtaG9yc2U="}
        assert fetch(f"http://127.0.0.1:{port}/", ops)[0] == 200
        assert fetch(f"http://127.0.0.1:{port}/")[0] == 401
        assert f"dashboard at http://127.0.0.1:{port}/" in process.text()
    finally:
        ended = process.stop()
    assert ended == 0, process.text()


def is_served(address: str) -> bool:
    """Whether somebody answers there."""
    try:
        fetch(address)
    except urllib.error.URLError:
        return False
    return True


def fetch(address: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> tuple[int, str]:
    """Return status and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers or {})) as answer:  # noqa: S310 -- ours
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()

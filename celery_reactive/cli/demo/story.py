"""What happens in the demo, in order. Read this first in `demo/`.

Servers start, two planners and a worker, and the shop opens. In the middle the leading planner is killed. When the
shop has closed, the demo waits until everything is handled, and judges. Whatever happens, also Ctrl-C, it ends what it
started, last the servers.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pymongo import MongoClient

from celery_reactive import embedded
from celery_reactive.cli.dashboard import is_installed
from celery_reactive.cli.demo import audit
from celery_reactive.cli.demo.audit import Takeover, Verdict
from celery_reactive.cli.demo.board import Board
from celery_reactive.cli.demo.processes import Child
from celery_reactive.errors import ReactiveError
from celery_reactive.metrics import shipped

_TICK_SECONDS = 0.25
_START_SECONDS = 30.0
_SETTLE_SECONDS = 60.0
_KILL_AT = 0.4
_ALLOWED_TAKEOVER = timedelta(seconds=5)
"""The lock's TTL of 3 s and one heartbeat of 1 s, and a second for a busy machine."""
_SCRAPING = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: planners
    static_configs: [{{targets: {targets}}}]
"""


class DemoFailedError(ReactiveError):
    """The demo could not be played to its end. What it had started has been ended."""


class Stage:
    """Everything that runs while the demo is played."""

    def __init__(self, client: MongoClient[dict[str, Any]], mongodb_url: str, broker_url: str, folder: Path) -> None:
        self.mongodb_url = mongodb_url
        self.broker_url = broker_url
        self.folder = folder
        self.shop: audit.Shop = client.get_default_database()
        self.dashboard_url: str | None = None
        """None: what it needs is not installed."""
        self.metrics_urls: dict[str, str] = {}
        """By the planners' names."""
        self.prometheus_url: str | None = None
        """None: nobody has asked for one."""
        self.children: dict[str, Child] = {}
        self.may_have_ended: set[str] = set()
        """Names of the children whose end is part of the story."""
        self._client = client

    def add(self, child: Child) -> Child:
        """Keep *child*, to be ended with the demo."""
        self.children[child.name] = child
        return child

    def server_time(self) -> datetime:
        """Return the database's clock."""
        now: datetime = self._client.admin.command("hello", codec_options=self._client.codec_options)["localTime"]
        return now

    def complain_of_the_dead(self) -> None:
        """Look whether all processes run that should.

        Raises:
            DemoFailedError: One has ended; the message holds the end of its log.
        """
        for child in self.children.values():
            if child.exit_code is not None and child.name not in self.may_have_ended:
                raise DemoFailedError(
                    f"{child.name} ended with code {child.exit_code}; the end of its log:\n{child.tail()}"
                )


def play(stage: Stage, board: Board, seconds: float) -> Verdict:
    """Play the demo on a stage that is set.

    Args:
        stage: What runs.
        board: Where to show it.
        seconds: How long the shop is open.

    Raises:
        DemoFailedError: Something ended that should run, or nobody led.
    """
    _wait_for_leader(stage, board)
    shop = stage.add(Child.shop("shop", stage.mongodb_url, seconds, folder=stage.folder))
    stage.may_have_ended.add(shop.name)
    board.tell("the shop opens: a program of its own that writes orders and knows nothing of us")
    taken_over = _watch_the_shop(stage, board, shop, seconds)
    board.tell("the shop is closed; waiting until all is handled")
    is_settled = _wait(stage, board, lambda: audit.is_settled(stage.shop), _SETTLE_SECONDS)
    board.show(audit.look(stage.shop))
    board.tell("all is handled" if is_settled else "not all is handled, but time is up")
    return audit.judge(stage.shop, taken_over, allowed_takeover=_ALLOWED_TAKEOVER)


@contextmanager
def set_stage(board: Board) -> Iterator[Stage]:
    """Start the servers, the planners and the worker; end all of them afterwards.

    Raises:
        EmbeddedServerError: A server could not be found or started; nothing is left running.
    """
    with ExitStack() as ends:
        folder = Path(tempfile.mkdtemp(prefix="celery-reactive-demo-"))
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        board.tell("starting MongoDB and Valkey")
        mongodb, broker = embedded.mongodb(), embedded.broker()
        ends.enter_context(mongodb)
        ends.enter_context(broker)
        name = f"celery_reactive_demo_{uuid.uuid4().hex[:8]}"
        client = ends.enter_context(MongoClient[dict[str, Any]](mongodb.url_of(name), tz_aware=True))
        ends.callback(client.drop_database, name)
        stage = Stage(client, mongodb.url_of(name), broker.url, folder)
        stage.shop.runs.create_index([("order", 1), ("fence", -1)])
        ends.callback(_end, stage, board)
        environment = {
            "CELERY_REACTIVE_MONGODB_URL": stage.mongodb_url,
            "CELERY_BROKER_URL": stage.broker_url,
        }
        board.tell("starting two planners and a worker with two processes")
        for planner in ("planner-a", "planner-b"):
            _start_planner(stage, board, planner, environment)
        stage.add(Child.worker("worker", folder=folder, environment=environment))
        _open_dashboard(stage, board, environment)
        yield stage


def _start_planner(stage: Stage, board: Board, name: str, environment: Mapping[str, str]) -> None:
    port = _free_port()
    stage.add(Child.planner(name, port, folder=stage.folder, environment=environment))
    stage.metrics_urls[name] = f"http://127.0.0.1:{port}/metrics"
    board.tell(f"{name} has metrics at {stage.metrics_urls[name]}", "cyan")


def open_prometheus(stage: Stage, board: Board) -> None:
    """Start a Prometheus beside the demo, which scrapes both planners and judges by the shipped rules.

    Raises:
        DemoFailedError: There is none on PATH.
    """
    port, configuration = _free_port(), stage.folder / "prometheus.yml"
    targets = [urlsplit(url).netloc for url in stage.metrics_urls.values()]
    configuration.write_text(_SCRAPING.format(targets=json.dumps(targets)))
    (stage.folder / "rules.yml").write_text(shipped.rules())
    try:
        stage.add(Child.prometheus("prometheus", port, configuration, folder=stage.folder))
    except OSError as error:
        raise DemoFailedError("expected a program prometheus on PATH (Debian: apt install prometheus)") from error
    stage.may_have_ended.add("prometheus")
    stage.prometheus_url = f"http://localhost:{port}/"
    board.tell(f"Prometheus at {stage.prometheus_url}", "cyan")


def _open_dashboard(stage: Stage, board: Board, environment: Mapping[str, str]) -> None:
    if not is_installed():
        board.tell("no dashboard: pip install 'celery-reactive[dashboard]' to see it too")
        return
    port = _free_port()
    stage.add(Child.dashboard("dashboard", port, folder=stage.folder, environment=environment))
    stage.may_have_ended.add("dashboard")
    stage.dashboard_url = f"http://localhost:{port}/"
    board.tell(f"dashboard at {stage.dashboard_url}", "cyan")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _end(stage: Stage, board: Board) -> None:
    board.tell("stopping everything")
    children = list(reversed(stage.children.values()))
    for child in children:
        child.ask_to_end()
    for child in children:
        child.stop()


def _wait_for_leader(stage: Stage, board: Board) -> None:
    def is_led() -> bool:
        return audit.look(stage.shop).leader is not None

    if not _wait(stage, board, is_led, _START_SECONDS):
        log = stage.children["planner-a"].tail()
        raise DemoFailedError(f"no planner leads after {_START_SECONDS:.0f} s; the log of one of them:\n{log}")
    snapshot = audit.look(stage.shop)
    board.tell(f"{snapshot.leader} leads, term {snapshot.term}; the other planner stands by", "green")


def _watch_the_shop(stage: Stage, board: Board, shop: Child, seconds: float) -> Takeover | None:
    """Watch until the shop closes; kill the leader in the middle and note who takes over."""
    pause = threading.Event()
    started = time.monotonic()
    killed: tuple[str, datetime] | None = None
    taken_over: Takeover | None = None
    while shop.exit_code is None or (killed is not None and taken_over is None and not _is_too_late(stage, killed)):
        board.show(audit.look(stage.shop))
        if killed is None and time.monotonic() - started >= seconds * _KILL_AT:
            killed = _kill_leader(stage, board)
        if killed is not None and taken_over is None:
            taken_over = _look_for_successor(stage, board, *killed)
        stage.complain_of_the_dead()
        pause.wait(_TICK_SECONDS)
    if shop.exit_code:
        raise DemoFailedError(f"the shop failed; the end of its log:\n{shop.tail()}")
    return taken_over


def _kill_leader(stage: Stage, board: Board) -> tuple[str, datetime] | None:
    leader = audit.look(stage.shop).leader
    if leader is None:
        return None
    stage.may_have_ended.add(leader)
    killed_at = stage.server_time()
    stage.children[leader].kill()
    board.tell(f"{leader}, the leader, is killed (SIGKILL): nobody plans now, the shop goes on", "bold red")
    return leader, killed_at


def _look_for_successor(stage: Stage, board: Board, killed: str, killed_at: datetime) -> Takeover | None:
    taken_over = audit.takeover(stage.shop, killed, killed_at)
    if taken_over is not None:
        took = taken_over.duration.total_seconds()
        board.tell(f"{taken_over.successor} leads, {took:.1f} s after the kill (the lock's TTL is 3 s)", "green")
    return taken_over


def _is_too_late(stage: Stage, killed: tuple[str, datetime]) -> bool:
    return stage.server_time() - killed[1] > timedelta(seconds=_START_SECONDS)


def _wait(stage: Stage, board: Board, condition: Callable[[], bool], within_seconds: float) -> bool:
    """Wait for *condition*, showing the board; return whether it came about *within_seconds*."""
    pause = threading.Event()
    end = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > end:
            return False
        board.show(audit.look(stage.shop))
        stage.complain_of_the_dead()
        pause.wait(_TICK_SECONDS)
    return True

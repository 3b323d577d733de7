"""What the demo shows: a live board in a terminal, plain lines anywhere else.

Called by `story`, which knows only `Board`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from celery_reactive.cli.demo.audit import Check, Latency, Snapshot, Verdict
from celery_reactive.core.states import RUNNING, RecordState

_WIDTH = 92
_TICKS = 70
_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_INTERVAL_SECONDS = 2.0
_BROKEN_SHOWN = 5


class Board(Protocol):
    """Shows the demo to somebody."""

    def tell(self, text: str, style: str = "") -> None:
        """Say that something happened."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the system as it is now."""

    def close(self) -> None:
        """Leave what was shown as it is; what is told from now on are lines below it."""


@contextmanager
def board_for(console: Console) -> Iterator[Board]:
    """Yield the board that suits *console*."""
    board = LiveBoard(console) if console.is_terminal else PlainBoard(console)
    try:
        yield board
    finally:
        board.close()


class PlainBoard:
    """A line for each thing that happens, and one with the figures every two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._shown = 0.0

    def tell(self, text: str, style: str = "") -> None:
        """Print a line."""
        line = f"{time.monotonic() - self._started:5.1f} s  {text}"
        self._console.print(line, style=style, markup=False, soft_wrap=True)

    def show(self, snapshot: Snapshot) -> None:
        """Print the figures, if the last time was two seconds ago."""
        now = time.monotonic()
        if now - self._shown >= _PLAIN_INTERVAL_SECONDS:
            self._shown = now
            self.tell("; ".join(figure for _, figure in _figures(snapshot)))

    def close(self) -> None:
        """Do nothing: there are only lines."""


class LiveBoard:
    """The figures in a frame that stays, the events below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._events: list[tuple[float, Text]] = []
        self._snapshot: Snapshot | None = None
        self._unhandled: deque[int] = deque(maxlen=_TICKS)
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=8)
        self._live.start()

    def tell(self, text: str, style: str = "") -> None:
        """Add an event."""
        second = time.monotonic() - self._started
        if self._live.is_started:
            self._events.append((second, Text(text, style=style)))
        else:
            self._console.print(f"{second:5.1f} s  {text}", style=style, markup=False)

    def show(self, snapshot: Snapshot) -> None:
        """Put new figures into the frame."""
        self._snapshot = snapshot
        self._unhandled.append(snapshot.unhandled)

    def close(self) -> None:
        """Leave the last picture on the screen."""
        self._live.stop()

    def render(self) -> RenderableType:
        """Return the board as it looks now."""
        events = Table.grid(padding=(0, 2))
        events.add_column(justify="right", style="dim", width=7)
        events.add_column(max_width=_WIDTH - 12)
        for second, text in self._events:
            events.add_row(f"{second:.1f} s", text)
        if self._snapshot is None:
            return events
        return Group(self._frame(self._snapshot), events)

    def _frame(self, snapshot: Snapshot) -> Panel:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", width=9)
        rows.add_column()
        for name, figure in _figures(snapshot):
            rows.add_row(name, figure)
        rows.add_row("Backlog", Text.assemble((_bars(self._unhandled), "cyan"), f"  {snapshot.unhandled}"))
        return Panel(rows, title="[bold]celery-reactive demo[/]", border_style="green", width=_WIDTH)


def _figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    tally, states = snapshot.tally, snapshot.states
    running = sum(states[state] for state in RUNNING)
    return [
        ("Shop", f"{tally['orders']} orders, {tally['changes']} changes, {tally['deleted']} deleted"),
        ("Handler", f"{snapshot.runs} runs, {snapshot.failed_runs} of them failed"),
        ("Records", f"{states[RecordState.COMPLETED]} done, {states[RecordState.PENDING]} pending, {running} running"),
        ("Leader", _leader_in_words(snapshot)),
        ("Latency", _latency_in_words(snapshot.latency)),
    ]


def _leader_in_words(snapshot: Snapshot) -> str:
    if snapshot.leader is None:
        return "nobody leads"
    age = "" if snapshot.heartbeat_age is None else f", heartbeat {snapshot.heartbeat_age.total_seconds():.1f} s ago"
    return f"{snapshot.leader}, term {snapshot.term}{age}"


def _latency_in_words(latency: Latency | None) -> str:
    if latency is None:
        return "nothing ran in the last 5 s"
    return f"write to handler p50 {latency.p50:.0f} ms, p99 {latency.p99:.0f} ms in the last 5 s"


def _bars(values: Sequence[int]) -> str:
    highest = max([*values, 10])
    return "".join(_BARS[min(-(-value * (len(_BARS) - 1) // highest), len(_BARS) - 1)] for value in values)


def verdict_for(verdict: Verdict) -> RenderableType:
    """Return the verdict as it is printed at the end."""
    checks = [_check(check) for check in verdict.checks]
    return Group(Text(), _summary(verdict), Text(), *checks, Text(), _last(verdict))


def _summary(verdict: Verdict) -> Table:
    tally = verdict.tally
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column()
    changes = f"{tally['changes']} changes, {tally['notes']} to fields nobody watches"
    went = f"{tally['deleted']} deleted, {tally['restored']} written again, {tally['cancelled']} cancelled"
    rows.add_row("Written", f"{tally['orders']} orders, {changes}; {went}")
    rows.add_row("Handled", f"{verdict.runs} runs, {verdict.failed_runs} failed and retried, {_skipped(verdict)}")
    rows.add_row("Latency", _quantiles(verdict.latency))
    if verdict.takeover is not None:
        took = verdict.takeover.duration.total_seconds()
        succession = f"{verdict.takeover.successor} led {took:.1f} s after {verdict.takeover.killed} was killed"
        rows.add_row("Takeover", succession)
        rows.add_row("", f"writes held up by it: {_quantiles(verdict.latency_in_takeover)}")
    return rows


def _skipped(verdict: Verdict) -> str:
    return f"{verdict.skipped_runs} found that the order had changed or gone meanwhile"


def _quantiles(latency: Latency | None) -> str:
    if latency is None:
        return "nothing measured"
    quantiles = f"p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms, p99 {latency.p99:.0f} ms"
    return f"{quantiles}, longest {latency.longest:.0f} ms from write to handler"


def _check(check: Check) -> Text:
    if check.is_kept:
        return Text.assemble(("  ✓ ", "green"), check.promise)
    more = len(check.broken) - _BROKEN_SHOWN
    lines = [*check.broken[:_BROKEN_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return Text.assemble(("  ✗ ", "bold red"), (check.promise, "red"), *(f"\n      {line}" for line in lines))


def _last(verdict: Verdict) -> Text:
    if verdict.is_good:
        return Text("All promises were kept.", style="bold green")
    return Text("Some promises were broken.", style="bold red")

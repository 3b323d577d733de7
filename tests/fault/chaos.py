"""Seeded chaos: the whole system under faults, and an audit of what came of it. Read this first in `tests/fault/`.

    python -m tests.fault.chaos --seconds 3600 --seed 7 --broker rabbitmq

Two planners and two workers of the project `chaos_app` run on a replica set of three and a broker (`stage`), while a
`writer` writes and `faults`, drawn from the seed, come and go. Then everything is mended, and once nothing waits or
runs any more the `audit` says whether a promise was broken. The seed is printed first; the same seed brings the same
faults at the same times, the same writes in the same order, and the same handlers' whims.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from celery_reactive.embedded import RabbitServer, ValkeyServer
from tests.fault import audit
from tests.fault.audit import Finding, Key, Last, Ran
from tests.fault.faults import Fault, draw
from tests.fault.stage import Broker, Stage
from tests.fault.writer import Writer

REST_TIMEOUT_SECONDS = 90.0
_STEADY_SECONDS = 2.0
BROKERS: Mapping[str, type[ValkeyServer | RabbitServer]] = {"valkey": ValkeyServer, "rabbitmq": RabbitServer}


@dataclasses.dataclass(frozen=True, slots=True)
class Suffered:
    """A fault as it was, on the monotonic clock."""

    fault: Fault
    began: float
    ended: float
    error: str | None
    """Why it could not be done as it was drawn."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What came of a run."""

    seed: int
    broker: str
    began: float
    writes: Counter[str]
    runs: Sequence[Ran]
    stored_runs: Sequence[Mapping[str, Any]]
    suffered: Sequence[Suffered]
    unasked: Counter[str]
    findings: Sequence[Finding]
    rest_seconds: float | None
    """How long it took, after the last fault, until everything was at rest; None: it never was."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was found."""
        return not self.findings and self.rest_seconds is not None

    def summary(self) -> str:
        """Return the run in a line."""
        found = Counter(finding.promise for finding in self.findings)
        outcomes = Counter(_kind_of_outcome(run) for run in self.runs)
        faults = Counter(suffered.fault.kind.value for suffered in self.suffered)
        rest = "never" if self.rest_seconds is None else f"after {self.rest_seconds:.1f} s"
        return (
            f"seed {self.seed} on {self.broker}: {self.writes.total()} writes, {len(self.runs)} runs "
            f"({_listed(outcomes)}), {faults.total()} faults ({_listed(faults)}), "
            f"{found['lost']} lost, {found['overlap']} overlaps, {found['stale']} stale, "
            f"{found['record']} wrong records; at rest {rest}; ended unasked: {_listed(self.unasked) or 'none'}"
        )


def run(seed: int, seconds: float, broker: str, folder: Path) -> tuple[Report, str]:
    """Let the system run under faults for *seconds*, and judge it.

    Args:
        seed: Decides faults, writes and whims.
        seconds: Length of the faulty time; starting and coming to rest take longer.
        broker: A key of `BROKERS`.
        folder: Where the logs go.

    Returns:
        The report, and the story of each document that something was found about.

    Raises:
        EmbeddedServerError: A server could not be started; that broker is not installed.
    """
    server: Broker = BROKERS[broker]()
    with Stage(server, folder, seed) as stage, contextlib.closing(Writer(stage.url, seed)) as writer:
        began = time.monotonic()
        writer.start()
        suffered = _suffer(stage, draw(seed, seconds), began, seconds)
        writer.stop()
        with MongoClient[dict[str, Any]](stage.url, tz_aware=True) as client:
            chaos = client.get_default_database()
            rest_seconds = _await_rest(chaos, writer)
            documents, stored = writer.documents(), list(chaos.runs.find(sort=[("startedMono", 1)]))
            records = _records(chaos)
        runs = [Ran.of(one) for one in stored]
        findings = audit.judge(runs, documents, records)
        report = Report(
            seed, broker, began, writer.tally, runs, stored, suffered, stage.unasked, findings, rest_seconds
        )
        keys = list(dict.fromkeys(finding.key for finding in findings))
        return report, "\n\n".join(
            _story(key, report, writer, documents[key[1]], records.get(key)) for key in keys[:10]
        )


def _suffer(stage: Stage, faults: Sequence[Fault], began: float, seconds: float) -> list[Suffered]:
    """Let each fault come at its time, in a thread of its own; return when all have gone."""
    suffered: list[Suffered] = []
    pause = threading.Event()

    def suffer(fault: Fault) -> None:
        started, problem = time.monotonic(), None
        try:
            with stage.suffering(fault):
                pause.wait(fault.seconds)
        except Exception as error:  # noqa: BLE001 -- a fault that fails is told of, and the run goes on
            problem = f"{type(error).__name__}: {error}"
        suffered.append(Suffered(fault, started, time.monotonic(), problem))

    threads = [threading.Thread(target=suffer, args=(fault,), name=str(fault)) for fault in faults]
    for fault, thread in zip(faults, threads, strict=True):
        pause.wait(max(0.0, began + fault.at - time.monotonic()))
        thread.start()
    pause.wait(max(0.0, began + seconds - time.monotonic()))
    for thread in threads:
        thread.join()
    return sorted(suffered, key=lambda one: one.began)


def _await_rest(chaos: Any, writer: Writer) -> float | None:
    """Wait until nothing waits, runs, or shows an old state; return how long it took, None if it was never so."""
    began = time.monotonic()
    steady_since: float | None = None
    pause = threading.Event()
    while time.monotonic() - began < REST_TIMEOUT_SECONDS:
        try:
            at_rest = _is_at_rest(chaos, writer)
        except PyMongoError:
            at_rest = False
        now = time.monotonic()
        steady_since = (steady_since or now) if at_rest else None
        if steady_since is not None and now - steady_since >= _STEADY_SECONDS:
            return steady_since - began
        pause.wait(0.5)
    return None


def _is_at_rest(chaos: Any, writer: Writer) -> bool:
    if chaos.orders_tasks.count_documents({"status": {"$nin": ["completed", "failed"]}}):
        return False
    runs = [Ran.of(one) for one in chaos.runs.find()]
    found = audit.judge(runs, writer.documents(), _records(chaos))
    return not any(finding.promise in {"lost", "record"} for finding in found)


def _records(chaos: Any) -> dict[Key, dict[str, Any]]:
    return {(record["task"], record["sourceDocId"]): record for record in chaos.orders_tasks.find()}


def _story(key: Key, report: Report, writer: Writer, last: Last, record: Mapping[str, Any] | None) -> str:
    """Return all that is known of a document, in the order of time."""
    task, doc = key
    since = report.began
    lines = [
        (written.sent, f"{written.what} {written.document} (acknowledged {written.acknowledged - since:.3f})")
        for written in writer.journal[doc]
    ]
    own = [one for one in report.stored_runs if one["task"] == task and one["doc"] == doc]
    lines += [(one["startedMono"], _told_of_run(one, since)) for one in own]
    lines += [
        (one.began, f"      fault: {one.fault.kind.value} {one.fault.target} until {one.ended - since:.3f}")
        for one in report.suffered
    ]
    told = [f"{at - since:9.3f}  {what}" for at, what in sorted(lines)]
    found = [f"{finding.promise}: {finding.what}" for finding in report.findings if finding.key == key]
    return "\n".join([f"=== {task} {doc!r}: {'; '.join(found)}", *told, f"last: {last}", f"record: {record}"])


def _told_of_run(one: Mapping[str, Any], since: float) -> str:
    ended = one.get("finishedMono")
    return (
        f"   run: fence {one['fence']} attempt {one['attempt']} by {one['worker']} {one['pid']} "
        f"token {one['token'][:8]} for {one['watched']} -> "
        + (
            "never ended"
            if ended is None
            else f"{one['outcome']} saw {one.get('saw')} at {ended - since:.3f}, renewed {one['renewed'] - since:.3f}"
            f"{', lease lost' if one['leaseLost'] else ''}"
        )
    )


def _kind_of_outcome(ran: Ran) -> str:
    return "unfinished" if ran.outcome is None else ran.outcome.split(":")[0]


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counted.most_common())


def seed_of_today() -> int:
    """Return the seed that CHAOS_SEED names, else a new one."""
    named = os.environ.get("CHAOS_SEED")
    return int(named) if named else random.SystemRandom().randrange(1_000_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.chaos", description="Seeded chaos with an audit.")
    parser.add_argument("--seconds", type=float, default=60, help="length of the faulty time")
    parser.add_argument("--seed", type=int, default=None, help="default: CHAOS_SEED, else a new one")
    parser.add_argument("--broker", choices=[*BROKERS, "both"], default="both", help="both: half the time each")
    parser.add_argument("--logs", type=Path, default=None, help="folder for logs; default: a temporary one, removed")
    parser.add_argument("--plan", action="store_true", help="print the faults of the seed and do nothing")
    options = parser.parse_args(arguments)
    seed = seed_of_today() if options.seed is None else options.seed
    brokers = list(BROKERS) if options.broker == "both" else [options.broker]
    seconds = options.seconds / len(brokers)
    print(f"chaos with --seed {seed}, {seconds:.0f} s on {' and '.join(brokers)}", flush=True)
    if options.plan:
        print("\n".join(map(str, draw(seed, seconds))))
        return 0
    with tempfile.TemporaryDirectory(prefix="celery-reactive-chaos-") as temporary:
        return max(_run_and_tell(seed, seconds, broker, options.logs or Path(temporary)) for broker in brokers)


def _run_and_tell(seed: int, seconds: float, broker: str, logs: Path) -> int:
    folder = logs / broker
    folder.mkdir(parents=True, exist_ok=True)
    report, stories = run(seed, seconds, broker, folder)
    for one in report.suffered:
        if one.error is not None:
            print(f"fault not as drawn: {one.fault}: {one.error}")
    print(report.summary(), flush=True)
    if stories:
        print(stories, flush=True)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())

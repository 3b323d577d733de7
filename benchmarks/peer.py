"""mongodash's reactive tasks beside ours, against the same MongoDB in one run.

mongodash is the library whose reactive tasks these are after, for Node. It is installed by npm when this runs, from
wherever npm is set up to look; without node and npm this is skipped. One process of it plans and works; ours are a
planner and a worker of two processes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import latency
import project
import stage
import throughput
from figures import Figure, Section, tell
from latency import Latency
from pymongo import MongoClient
from pymongo.write_concern import WriteConcern
from stage import BenchmarkError, Documents

from celery_reactive import embedded

FOLDER = Path(__file__).parent / "peer"
PEER = "mongodash"
BEST = 50
"""Concurrency at which it handles most here; its default is 5."""
_PATIENCE_SECONDS = 60.0
TITLE = "Beside mongodash"


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Measure mongodash at its default and at its best, and ours, one after the other."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        return Section("peer", TITLE, [], f"Not measured: {' and '.join(missing)} not found.")
    count, seconds = (60, 1.0) if quick else (5000, 15.0)
    with tempfile.TemporaryDirectory(prefix="celery-reactive-benchmark-") as folder, embedded.mongodb() as mongodb:
        try:
            version = _install(Path(folder))
        except subprocess.CalledProcessError as error:
            return Section("peer", TITLE, [], f"Not measured: npm install: {error.stderr.strip()[-300:]}")
        with MongoClient[dict[str, Any]](mongodb.url) as client:
            peers = {
                name: _peer(client, mongodb, Path(folder), concurrency, count, seconds)
                for name, concurrency in (("default", "default"), ("best", str(BEST)))
            }
        ours = _ours(mongodb, count, seconds)
    note = f"{PEER} {version}, {count} documents. Best: a concurrency of {BEST}. Latencies at 50 writes/s."
    return Section("peer", TITLE, list(_figures(peers, ours)), note)


Measured = tuple[dict[str, float], Latency]
"""Throughput by way, and latency."""


def _figures(peers: dict[str, Measured], ours: Measured) -> Iterator[Figure]:
    for name, (rates, _) in peers.items():
        yield Figure(f"{PEER}, {name}: throughput", rates[name], "/s")
    best = peers["best"][0]["best"]
    goals = {project.DEFAULT: "≥ 5 × best", "1": "≥ 1 × best"}
    for way, rate in ours[0].items():
        name = way if way in (project.DEFAULT, project.BATCH) else f"chunk={way}"
        yield Figure(f"ours, {name}: throughput", rate, "/s", f"{PEER}, best", rate / best, goals.get(way, ""))
    fastest = peers["default"][1]
    yield from fastest.figures(f"{PEER}, default: latency", None)
    for name in ("p50", "p99"):
        mine, peers_ = getattr(ours[1], name), getattr(fastest, name)
        yield Figure(f"{name} ours: latency", mine, "ms", f"{PEER}, default", mine / peers_)


def _install(folder: Path) -> str:
    for file in ("package.json", "main.js"):
        shutil.copy(FOLDER / file, folder)
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    subprocess.run(["npm", "install", *options], cwd=folder, check=True, capture_output=True, text=True, timeout=120)
    package = json.loads((folder / "node_modules" / PEER / "package.json").read_text())
    return str(package["version"])


def _peer(
    client: MongoClient[dict[str, Any]],
    mongodb: embedded.MongoServer | embedded.ExternalServer,
    folder: Path,
    concurrency: str,
    count: int,
    seconds: float,
) -> Measured:
    name = f"benchmark_{uuid.uuid4().hex[:8]}"
    runs = folder / f"{name}.runs"
    orders = client[name].get_collection("orders", write_concern=WriteConcern(w="majority"))
    orders.insert_one({"_id": -1, "v": 0})
    with _running(["node", "main.js", mongodb.url_of(name), concurrency, str(runs)], folder):
        _wait_for(runs, lambda found: len(found) >= 1)
        way = "best" if concurrency.isdigit() else concurrency
        rates = {way: _throughput(orders, runs, count)}
        measured = rates, _latency(orders, runs, rate=50.0, count=max(2, round(50.0 * seconds)))
    client.drop_database(name)
    return measured


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[None]:
    with (folder / "peer.log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as child:
        try:
            yield
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def _throughput(orders: Documents, runs: Path, count: int) -> float:
    began_ns = time.time_ns()
    stage.insert(orders, range(count))
    found = _wait_for(runs, lambda found: all(number in found for number in range(count)))
    return count / (max(found[number] for number in range(count)) - began_ns) * 1e9


def _latency(orders: Documents, runs: Path, *, rate: float, count: int) -> Latency:
    first = 1_000_000
    written: dict[int, int] = {}

    def write(number: int) -> None:
        written[first + number] = time.time_ns()
        orders.insert_one({"_id": first + number, "v": 0})

    latency.evenly(write, rate=rate, count=count)
    found = _wait_for(runs, lambda found: written.keys() <= found.keys())
    return Latency.of([(found[number] - at) / 1e6 for number, at in written.items()])


def _wait_for(runs: Path, enough: Callable[[dict[int, int]], bool]) -> dict[int, int]:
    """Wait until *enough* has run; return the first start of each number."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        whole = runs.read_bytes() if runs.exists() else b""
        found: dict[int, int] = {}
        for fields in project.LAYOUT.iter_unpack(whole[: len(whole) // project.LAYOUT.size * project.LAYOUT.size]):
            run = project.Run(*fields)
            found.setdefault(run.number, run.started_ns)
        if enough(found):
            return found
        time.sleep(0.05)
    log = runs.with_name("peer.log").read_text()[-2000:]
    raise BenchmarkError(f"{PEER} has not run all there was to run\n{log}")


def _ours(mongodb: embedded.MongoServer | embedded.ExternalServer, count: int, seconds: float) -> Measured:
    with stage.set_up(stage.Setting(throughput.WAYS), mongodb=mongodb) as on:
        rates = {way: throughput.reactive_per_second(on, way, count) for way in throughput.WAYS}
        return rates, latency.of_writes(on, rate=50.0, count=max(2, round(50.0 * seconds)))


if __name__ == "__main__":
    tell(measure)

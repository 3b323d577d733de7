"""Removes one guard of the store's statements at a time, and sees whether a test fails for it.

`make mutants` runs all, `python tools/mutants.py NAME…` those whose names contain one of the words. `--list` only names
them, and `--write` puts what it found into the table of docs/evidence/mutants.md. Each mutant is tried in a copy of
the repository.

Two kinds are removed: every entry beside `_id` in the filter of a statement that writes, found in the source, so that
a new guard is a new mutant; and the conditions inside the update pipelines, listed below, each of which must occur in
the source once. A mutant that survives is a guard nobody would miss: write the test, or remove the guard.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
STORE = Path("celery_reactive/store")
PAGE = ROOT / "docs" / "evidence" / "mutants.md"
BEGIN, END = "<!-- begin mutants -->", "<!-- end mutants -->"
WRITES = {
    "update_one",
    "update_many",
    "find_one_and_update",
    "delete_one",
    "delete_many",
    "_update",
    "_settle",
    "UpdateOne",
}
TESTS = (
    "tests/integration/test_guards.py",
    "tests/integration/test_counterexamples.py",
    "tests/integration/test_idempotence.py",
    "tests/integration/test_records_planning.py",
    "tests/integration/test_lay.py",
    "tests/integration/test_records_running.py",
    "tests/integration/test_records_dispatching.py",
    "tests/integration/test_records_by_hand.py",
    "tests/integration/test_reconcile.py",
    "tests/integration/test_evolution.py",
    "tests/integration/test_checkpoints.py",
    "tests/integration/test_protocol.py",
    "tests/integration/test_planning.py",
    "tests/integration/test_limits.py",
    "tests/integration/test_metrics_counters.py",
    "tests/integration/test_metrics_gauges.py",
)
"""In the order in which they are asked, after those that know the mutant best."""
KNOWS_BEST = {
    "apply": "records_planning",
    "adopt": "evolution",
    "beats": "beat",
    "checkpoints": "checkpoints",
    "counters": "metrics_counters",
    "definitions": "leadership",
    "delete": "on_delete",
    "flow": "flow",
    "instances": "instances",
    "leadership": "guards",
    "lay": "lay",
    "leave": "records_planning",
    "locks": "locks",
    "loop": "loops",
    "measures": "metrics_gauges",
    "limiter": "limits",
    "operations": "operations",
    "orphans": "cleanup",
    "orphans.forget": "cleanup_by_hand",
    "orphans.remove_all": "cleanup_by_hand",
    "positions": "leadership",
    "reconciled": "checkpoints",
    "reprocess": "evolution",
    "scan": "reconcile",
    "settle": "counterexamples",
    "unplanned": "planning",
    "records.claim: pipelines.is_before": "limits",
    "records.discard": "management",
    "records.expire_sent": "records_dispatching",
    "records.guard": "loops",
    "records.leave": "records_planning",
    "records.mark": "records_dispatching",
    "records.reprocess": "evolution",
    "records.rescue": "rescue",
    "records.resume": "loops",
    "records.revoke": "records_by_hand",
    "records.settle_each": "records_running",
}
"""By how a mutant's name begins, the test that is asked first."""
LIMIT_SECONDS = 600
CONDITIONS = {
    "delete: told once": (
        '{"$not": flag("gone")}',
        "True",
        "a deletion runs again with each scan that finds the document gone",
    ),
    "delete: not by the way": (
        '{"$or": [flag("forced"), {"$gt": ["$_r.deleted", None]}]}',
        'flag("forced")',
        "a deletion that waits is skipped, as there is no document",
    ),
    "delete: another one": (
        'own = {"$eq": ["$_r.deleted", "$_r.claim.deleted"]}',
        "own = True",
        "a document that was inserted and deleted again during the run is not told of",
    ),
    "delete: left to the planner": (
        'True if gone and not told_of_deletions else "$_r.gone"',
        'True if gone else "$_r.gone"',
        "a deletion that a run has seen before the planner is not told of",
    ),
    "delete: inserted again": (
        'if_("$_r.plan.accepted", REMOVE, "$_r.deleted")',
        '"$_r.deleted"',
        "a document that is there again counts as deleted for ever",
    ),
    "delete: no orphan": (
        '{"$ifNull": ["$_r.changedAt", "$_r.deleted", None]}',
        '{"$ifNull": ["$_r.changedAt", None]}',
        "a deletion whose attempts are spent is cleaned up, and nobody can retry it",
    ),
    "loop: in the run": (
        '{"$and": [_IN_RUN, {"$or": [_BEFORE_ITS_END, _IN_ITS_TRANSACTION]}]}',
        '{"$or": [_BEFORE_ITS_END, _IN_ITS_TRANSACTION]}',
        "attempts for one change count as a loop",
    ),
    "loop: before its end": (
        '{"$or": [_BEFORE_ITS_END, _IN_ITS_TRANSACTION]}',
        "True",
        "somebody else's writes between the runs take the record out",
    ),
    "loop: in its transaction": (
        '{"$or": [_BEFORE_ITS_END, _IN_ITS_TRANSACTION]}',
        "_BEFORE_ITS_END",
        "a handler that completes its run in a transaction loops for ever",
    ),
    "loop: to the past": (
        '{"$and": [flag("loop.again"), _BEFORE_ITS_END]}',
        "False",
        "a handler that defers to the past runs for ever",
    ),
    "loop: retried": (
        "if_(retried, _SO_FAR, 0)",
        "0",
        "a failure in between lets a loop go on for ever",
    ),
    "loop: broken": (
        "if_(retried, _SO_FAR, 0)",
        "_SO_FAR",
        "loops that somebody else's change has broken are added up",
    ),
    "loop: stays out": (
        'if_(flag("guarded"), None, due)',
        "due",
        "a change brings a record back that nobody has resumed",
    ),
    "limiter: what has started": (
        '{"$add": [known, expected]}',
        "expected",
        "a window holds more starts than the rate: those that have happened are forgotten",
    ),
    "limiter: what may still start": (
        '{"$add": [known, expected]}',
        "known",
        "a window holds more starts than the rate: those that were granted a moment ago are overlooked",
    ),
    "limiter: as late as it may": (
        'by = {"$add": [now, milliseconds(_start_within(limits))]}',
        "by = now",
        "a worker that takes its time starts a run in a window that is full",
    ),
    "limiter: the latest of a moment": (
        '{"$max": ["$$last.at", at]}',
        '"$$last.at"',
        "starts of one moment are forgotten when the first of them is",
    ),
    "limiter: once it has happened": (
        '{"$min": ["$mine.by", now]}',
        '"$mine.by"',
        "starts count longer than they need, and the rate is not used up",
    ),
    "limiter: noted once": (
        '{"$min": [count, started]}',
        "started",
        "a start counts twice where the limiter was told of it during the run",
    ),
    "limiter: slots": (
        '{"$subtract": [limits.concurrency, _sum("$slots")]}',
        "limits.concurrency",
        "more run at a time than there may",
    ),
    "limiter: gives back, and takes nothing": (
        'if_(_is_of(token), {"$min": ["$$this.n", count]}, "$$this.n")',
        'if_(_is_of(token), count, "$$this.n")',
        "a rescuer that read before takes slots again that a worker has given back",
    ),
    "limiter: a clock set back, what has started": (
        '{"$min": ["$$this.at", now]}',
        '"$$this.at"',
        "nothing starts after a failover until the clock has caught up",
    ),
    "limiter: a clock set back, what may still start": (
        '{"$min": ["$$this.by", latest]}',
        '"$$this.by"',
        "nothing starts after a failover until the clock has caught up",
    ),
    "limiter: told once": (
        '{"slots": _others("$slots", token), "told": {"$eq": ["$awaited", True]}, "awaited": REMOVE}',
        '{"slots": _others("$slots", token), "told": {"$eq": ["$awaited", True]}}',
        "the planner is woken for every run ever after",
    ),
    "apply: cluster time": (
        '{"$gte": [new_at, "$_r.at"]}',
        "True",
        "an older observation overwrites a newer one",
    ),
    "apply: generation": (
        '{"$gte": [new_gen, "$_r.gen"]}',
        "True",
        "an older leader's definition undoes a newer one's observation",
    ),
    "apply: touched only by something newer": (
        '{"$and": [accepted, {"$gt": [new_at, "$_r.at"]}]}',
        "accepted",
        "a batch planned again sends a finished run round again",
    ),
    "apply: running stays running": (
        'if_("$_r.plan.running", RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value)',
        "RecordState.PENDING.value",
        "two workers run one record",
    ),
    "apply: touched": (
        '{"$and": ["$_r.plan.running", "$_r.plan.newer", {"$not": run}]}',
        "False",
        "A, B, A during a run that has read B loses A",
    ),
    "apply: re-entry": (
        'reentered = {"$or": [flag("gone"), {"$and": [flag("left"), TRUE if reentry_runs else flag("skipped")]}]}',
        "reentered = False",
        "a document inserted again, or back in the filter, does not run",
    ),
    "apply: unknown generations": (
        '{"$or": [{"$ne": ["$lastObservedValues", new_values]}, {"$not": known}]}',
        '{"$ne": ["$lastObservedValues", new_values]}',
        "a change under an earlier projection is taken for none",
    ),
    "apply: a scan does not stamp": (
        'if_("$_r.plan.accepted" if stamps else run, new_at, "$_r.at")',
        'if_("$_r.plan.accepted", new_at, "$_r.at")',
        "a scan hides a deletion and re-insertion that it read over",
    ),
    "apply: the first event of what a scan left unrun": (
        '{"$and": [live, newer, flag("unrun")]}',
        "False",
        "without backfill, the first change does not run",
    ),
    "scan: running records": (
        '{"$not": {"$in": ["$k.status", sorted(RUNNING)]}}',
        "True",
        "a scan after a lost history does not touch a run that has read a passing value",
    ),
    "scan: gone": ('{"$ne": ["$k.gone", True]}', "True", "a scan overlooks a document that is there again"),
    "scan: left": ('{"$ne": ["$k.left", True]}', "True", "a scan overlooks a document that matches again"),
    "scan: values": ('{"$eq": ["$k.values", "$o.w"]}', "True", "a scan overlooks a change"),
    "lay: generation": (
        '{"$eq": ["$k.gen", generation]}',
        "True",
        "a record that a new definition has seen is taken for one of the old",
    ),
    "lay: cluster time": (
        '{"$gte": ["$k.at", at]}',
        "True",
        "an event that told of nothing new does not refuse older ones",
    ),
    "lay: as read": (
        '{"$eq": ["$$ROOT", "$$new.was"]}',
        "True",
        "a record that was claimed meanwhile is put back as it was",
    ),
    "lay: a record that is there stands": (
        '_merge(records, when_matched="fail", when_not_matched="insert")',
        '_merge(records, when_matched="replace", when_not_matched="insert")',
        "a running record is made anew",
    ),
    "adopt: generation as read": (
        '{"$eq": ["$_r.gen", "$$new.gen"]}',
        "True",
        "an older snapshot overwrites one of another generation",
    ),
    "adopt: time as read": (
        '{"$eq": ["$_r.at", "$$new.at"]}',
        "True",
        "an older snapshot overwrites a newer observation",
    ),
    "leave: only pending is skipped": (
        'skips = {"$and": [IS_PENDING, {"$not": HAS_TO_RUN_ALL_THE_SAME}]}',
        'skips = {"$not": HAS_TO_RUN_ALL_THE_SAME}',
        "a running record is released by a deletion, and a re-insertion starts a second worker",
    ),
    "leave: a retry by hand runs": (
        'skips = {"$and": [IS_PENDING, {"$not": HAS_TO_RUN_ALL_THE_SAME}]}',
        "skips = IS_PENDING",
        "a retry by hand is swallowed",
    ),
    "settle: dirty": (
        'again = {"$or": ["$_r.end.dirty", "$_r.end.touched"]}',
        'again = "$_r.end.touched"',
        "a change during the run is lost",
    ),
    "settle: touched": (
        'again = {"$or": ["$_r.end.dirty", "$_r.end.touched"]}',
        'again = "$_r.end.dirty"',
        "A, B, A during a run that has read B loses A",
    ),
    "settle: forced": (
        'if_("$_r.end.forced", NOW, if_(again, changed_time, own_time))',
        "if_(again, changed_time, own_time)",
        "a retry by hand during the run waits for the debounce",
    ),
    "settle: what is off completes": (
        '{"$and": [IS_PENDING, IS_OFF]}',
        "False",
        "a record whose document is gone runs for ever",
    ),
    "settle: a newer observation stands": (
        'newer_known: Expression = {"$gt": ["$_r.at", observed_at]}',
        "newer_known: Expression = False",
        "what a worker saw overwrites what the planner has seen since",
    ),
    "settle: a newer generation stands": (
        'newer_known = {"$or": [newer_known, {"$gt": ["$_r.gen", generation]}]}',
        "pass",
        "what a worker saw under an earlier definition overwrites a newer snapshot",
    ),
    "settle: what came in during a skipped run": (
        '{"$or": [newer_known, "$_r.end.dirty", "$_r.end.touched"]}',
        "newer_known",
        "a document that was back is marked gone",
    ),
    "settle: a skip names its definition": (
        'touched = {"$or": [flag("touched"), {"$gt": ["$_r.gen", generation]}]}',
        'touched = flag("touched")',
        "a worker with the old filter ends what the new one takes in",
    ),
    "settle: what a run saw takes away the marks": (
        'if_(newer_known, "$_r.gone", REMOVE)',
        '"$_r.gone"',
        "a newer state counts as skipped",
    ),
    "settle: what a run saw is dated only when it is kept": (
        'if_(newer_known, "$_r.at", observed_at)',
        '{"$max": ["$_r.at", observed_at]}',
        "the event of the state that was read is refused",
    ),
    "reprocess: what is held stays held": (
        '{"$and": [{"$not": "$_r.reset.running"}, {"$not": {"$and": [IS_PENDING, flag("held")]}}]}',
        '{"$not": "$_r.reset.running"}',
        "a deferral that nothing may cut short is cut short",
    ),
    "is_past: by the server's clock": (
        '{"$lte": [f"${field}", NOW]}',
        "True",
        "what waits is run at once",
    ),
    "reconciled: unless needed again": (
        'done = {"$eq": [{"$ifNull": ["$needs", 0]}, needs]}',
        "done = True",
        "a history lost during a reconciliation is never looked at",
    ),
}
"""Condition as it stands in a module of the store, what takes its place, and what breaks."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """The package without one guard."""

    name: str
    file: Path
    source: str
    breaks: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    killer: str
    """The test that failed; empty: it survived."""
    seconds: float


def mutants() -> Iterator[Mutant]:
    """Yield every mutant there is."""
    yield from _conditions()
    for path in sorted((ROOT / STORE).rglob("*.py")):
        yield from _filters(path)


def _conditions() -> Iterator[Mutant]:
    modules = {path: ast.parse(path.read_text()) for path in sorted((ROOT / STORE).rglob("*.py"))}
    for name, (condition, instead, breaks) in CONDITIONS.items():
        found = [
            (path, ast.unparse(changed))
            for path, module in modules.items()
            for changed in _without(module, condition, instead)
        ]
        if len(found) != 1:
            raise SystemExit(
                f"{name}: expected the condition once in {STORE}, found it {len(found)} times: {condition}"
            )
        path, source = found[0]
        yield Mutant(name, path.relative_to(ROOT), source, breaks)


def _without(module: ast.Module, condition: str, instead: str) -> Iterator[ast.Module]:
    """Yield the module once for each place of *condition*, with *instead* there."""
    wanted, other = _parsed(condition), _parsed(instead)
    for number, node in enumerate(ast.walk(module)):
        if _is_same(node, wanted):
            yield _replaced(module, number, other)


def _is_same(one: object, other: object) -> bool:
    """Whether two pieces of source are the same, wherever they stand."""
    if isinstance(one, ast.AST) and type(one) is type(other):
        return all(_is_same(getattr(one, field, None), getattr(other, field, None)) for field in one._fields)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one == other


def _replaced(module: ast.Module, number: int, other: ast.AST) -> ast.Module:
    """Return a copy of the module with *other* in the place of one node."""
    changed = copy.deepcopy(module)
    place = list(ast.walk(changed))[number]

    class Replacing(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return other if node is place else self.generic_visit(node)

    Replacing().visit(changed)
    return ast.fix_missing_locations(changed)


def _parsed(text: str) -> ast.AST:
    """Return the expression or the statement that *text* is."""
    (statement,) = ast.parse(text).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def _filters(path: Path) -> Iterator[Mutant]:
    """Yield a mutant for each entry beside `_id` in the filters of a module's writing statements."""
    module = ast.parse(path.read_text())
    place = path.stem if path.parent.name == STORE.name else path.parent.name
    for function in [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]:
        for filter_ in _filters_of(function):
            keys, values = filter_.keys, filter_.values
            for number, key in enumerate(keys):
                if _is_identity(key, values[number]):
                    continue
                guard = ast.unparse(values[number]) if key is None else ast.literal_eval(key)
                filter_.keys, filter_.values = _all_but(keys, number), _all_but(values, number)
                yield Mutant(f"{place}.{function.name}: {guard}", path.relative_to(ROOT), ast.unparse(module))
            filter_.keys, filter_.values = keys, values


def _is_identity(key: ast.expr | None, value: ast.expr) -> bool:
    """Whether an entry says which document is meant, and guards nothing."""
    match key, value:
        case ast.Constant(value="_id"), _:
            return True
        case None, ast.Call(func=ast.Name(id="_named")):
            return True
        case _:
            return False


def _all_but(parts: list[T], number: int) -> list[T]:
    return [part for index, part in enumerate(parts) if index != number]


def _filters_of(function: ast.FunctionDef) -> list[ast.Dict]:
    """Return the filters of the writing statements of a function, also those that it puts together before."""
    if not any(_writes(node) for node in ast.walk(function)):
        return []
    filters = [node for node in ast.walk(function) if isinstance(node, ast.Dict) and _names_id(node)]
    filters += [node.args[0] for node in ast.walk(function) if _writes(node) and isinstance(node.args[0], ast.Dict)]
    parts = {
        value.id
        for one in filters
        for key, value in zip(one.keys, one.values, strict=True)
        if key is None and isinstance(value, ast.Name)
    }
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as part) if name in parts:
                filters.append(part)
            case _:
                pass
    return list({id(one): one for one in filters if len(one.keys) > 1}.values())


def _writes(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name in WRITES
        case _:
            return False


def _names_id(node: ast.Dict) -> bool:
    return any(isinstance(key, ast.Constant) and key.value == "_id" for key in node.keys)


def judge(mutant: Mutant, place: Path) -> Verdict:
    """Try the tests on a mutant; the copy is as it was afterwards."""
    target = place / mutant.file
    original = target.read_text()
    target.write_text(mutant.source)
    began = time.monotonic()
    try:
        killer = _failed(_tests_for(mutant), place)
    finally:
        target.write_text(original)
    return Verdict(mutant, killer, time.monotonic() - began)


def _tests_for(mutant: Mutant) -> list[str]:
    best = max((name for name in KNOWS_BEST if mutant.name.startswith(name)), key=len, default="")
    first = [f"tests/integration/test_{KNOWS_BEST[best]}.py"] if best else []
    return [*first, *(test for test in TESTS if test not in first)]


def _failed(tests: list[str], place: Path) -> str:
    """Return the name of a test that fails, empty if all pass."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", "--tb=no", "--timeout=40"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, *options],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(place)},
    )
    if ended.returncode == 0:
        return ""
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split()[1].split("::")[-1].split("[")[0] if failed else "a test that waits for ever"


def copied(folder: Path) -> Path:
    """Return a copy of what the tests need."""
    for name in ("celery_reactive", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def table(verdicts: list[Verdict], known: dict[str, str]) -> str:
    """Return a table in Markdown: a row for each mutant there is, of those not tried now the one that is *known*."""
    rows = known | {one.mutant.name: _row(one) for one in verdicts}
    kept = [rows[mutant.name] for mutant in mutants() if mutant.name in rows]
    return "\n".join(["| removed | what breaks | a test that fails |", "|---|---|---|", *kept])


def _row(one: Verdict) -> str:
    return f"| {_cell(one.mutant.name)} | {one.mutant.breaks} | {_cell(one.killer or 'survives')} |"


def _known(page: str) -> dict[str, str]:
    """Return the rows of a page by the names of their mutants."""
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    return {row[3:].partition("` |")[0].replace("\\|", "|"): row for row in rows}


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def main() -> int:
    """Judge the chosen mutants; 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--write", action="store_true", help="put the table into the documentation")
    options = parser.parse_args()
    chosen = [one for one in mutants() if not options.words or any(word in one.name for word in options.words)]
    if options.list:
        print("\n".join(one.name for one in chosen))
        return 0
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        place = copied(Path(folder))
        for one in chosen:
            verdicts.append(judge(one, place))
            print(f"{verdicts[-1].seconds:6.1f} s  {one.name}: {verdicts[-1].killer or 'SURVIVES'}", flush=True)
    survivors = [one.mutant.name for one in verdicts if not one.killer]
    print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} mutants die")
    if options.write:
        page = PAGE.read_text()
        head, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table(verdicts, _known(page))}\n{END}{rest.partition(END)[2]}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

"""Check the protocol's formal models with spin: every configuration holds, and every mutant breaks.

Run by `make model` and, in part, by `tests/unit/test_model.py`. A configuration is a set of `-D` for a model
whose whole state space is searched; a mutant takes one part of the protocol out of a small configuration and must give
a counterexample, or the part is not needed there. Ends with 0 when all is as expected, 1 when not, 2 without spin.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MODELS = Path(__file__).parents[1] / "docs" / "model"
REMEDY = "spin and a C compiler are needed: apt-get install spin gcc, or brew install spin (source: spinroot.com)"
MEMORY_MB = 7000
_DEPTH = 100_000
_FOUND = re.compile(r"^pan:\d+: (.+?) \(at depth (\d+)\)", re.MULTILINE)
_STATES = re.compile(r"^\s*(\d+) states, stored", re.MULTILINE)
_REACHED = re.compile(r"depth reached (\d+), errors: (\d+)")
_CUT_SHORT = re.compile(r"search depth too small|out of memory|reached -DMEMLIM|error: max search", re.IGNORECASE)

CONFIGURATIONS = {
    "planning": "WRITES=3 TAKEOVER OFF TXN",
    "scanning": "WRITES=3 SCAN OFF",
    "takeover": "WRITES=2 SCAN TAKEOVER",
    "lost": "WRITES=3 OFF LOSE RETRIES=1",
    "running": "WRITES=2 DISPATCH WORKERS=2 CRASHES=1 FREEZES=1 FAILURES=1 LOSSES=1 DOUBLES=1",
    "ending": "WRITES=3 OFF RETRIES=1 DEFERS=1 FAILURES=1",
    "reading": "WRITES=3 OFF OWN RETRIES=1",
    "evolving": "WRITES=2 TAKEOVER GEN",
    "cleaning": "WRITES=3 OFF CLEAN TAKEOVER",
    "company": "",
}
"""Name and definitions. Without an error each; together they use every part of the models."""

ENDLESS = {
    "quiet": "WRITES=2 OFF DISPATCH FAILURES=1 DEFERS=1 LOSSES=1 DOUBLES=1",
    "company, quiet": "",
}
"""Searched for cycles: every schedule comes to an end."""

MUTANTS = {
    "APPLY_AT": "WRITES=2 TAKEOVER",
    "APPLY_EQUAL": "WRITES=2 OFF",
    "APPLY_GEN": "WRITES=2 TAKEOVER GEN",
    "DIRTY": "WRITES=2",
    "DIRTY_SETTLE": "WRITES=2",
    "TOUCHED": "WRITES=3 OWN",
    "REENTRY_GONE": "WRITES=2 OFF",
    "REENTRY_LEFT": "WRITES=2 OFF",
    "LEAVE_AT": "WRITES=2 OFF TAKEOVER",
    "LEAVE_EQUAL": "WRITES=1 OFF",
    "LEAVE_RELEASES": "WRITES=3 OFF WORKERS=2",
    "ORDER": "WRITES=2 OFF",
    "POSITION": "WRITES=1 TAKEOVER",
    "SCAN_STAMPS": "WRITES=2 SCAN OFF",
    "SCAN_LATE": "WRITES=2 SCAN",
    "SCAN_OFF": "WRITES=2 SCAN OFF",
    "CLEANUP": "WRITES=2 OFF CLEAN",
    "DEADLINE": "WRITES=1 DISPATCH LOSSES=1",
    "MARK_AFTER": "WRITES=1 DISPATCH FAILURES=1",
    "CLAIM_STATE": "WRITES=1 DISPATCH WORKERS=2 DOUBLES=1",
    "READ_FIRST": "WRITES=2",
    "TOKEN": "WRITES=2 WORKERS=2 FREEZES=1",
    "BEATS": "WRITES=1 WORKERS=2 FREEZES=1",
    "RESCUE_TOKEN": "WRITES=2 WORKERS=2 FREEZES=1",
    "OVERTAKE_AT": "WRITES=3",
    "OVERTAKE_FLAGS": "WRITES=2 OFF RETRIES=1",
    "OVERTAKE_STAMP": "WRITES=2 TAKEOVER GEN",
    "SKIP_UNMARKED": "WRITES=3 OFF",
    "SKIP_GEN": "WRITES=2 TAKEOVER GEN",
    "SKIP_MARKS": "WRITES=3 OFF LOSE",
    "COMPANY_ALONE": "",
    "COMPANY_GIVE_BACK": "",
    "COMPANY_UNPUNISHED": "",
    "COMPANY_MARK_ALONE": "",
}
"""Name, taken out by `-DMUTANT_name`, and the configuration in which it is missed."""

LIMITS = {
    "own reads": "WRITES=3 OWN GAP",
    "lost position beside an old leader": "WRITES=2 OFF LOSE TAKEOVER",
    "removed record beside an old leader": "WRITES=3 OFF OWN CLEAN TAKEOVER",
}
"""What the protocol does not promise: each gives a counterexample, see docs/evidence/model.md."""


class SpinError(Exception):
    """Spin or the compiler refused the model, or the search did not end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a search came to."""

    states: int
    depth: int
    seconds: float
    violated: str
    """What did not hold; empty: everything did."""


def is_installed() -> bool:
    """Whether spin and a C compiler are on PATH."""
    return all(shutil.which(program) for program in ("spin", "gcc"))


def search(definitions: str, *, model: str = "protocol", mutant: str = "", cycles: bool = False) -> Result:
    """Search the whole state space of *definitions*, or until something does not hold.

    Args:
        definitions: Names, with values where they have one, as in `WRITES=2 OFF`.
        model: Name of the file, without its ending.
        mutant: Part to take out.
        cycles: Look for schedules without an end instead.

    Raises:
        SpinError: Nothing is known; the message shows what the programs said.
    """
    names = [*definitions.split(), *([f"MUTANT_{mutant}"] if mutant else [])]
    with tempfile.TemporaryDirectory(prefix="celery-reactive-model-") as folder:
        _run(["spin", *(f"-D{name}" for name in names), "-a", str(MODELS / f"{model}.pml")], folder)
        kind = ["-DNP"] if cycles else ["-DSAFETY"]
        _run(["gcc", "-O2", "-w", *kind, "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c"], folder)
        began = time.monotonic()
        told = _run(["./pan", f"-m{_DEPTH}", *(["-l"] if cycles else [])], folder)
        seconds = time.monotonic() - began
    return _result(told, seconds)


def _run(command: Sequence[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    if done.returncode:
        raise SpinError(f"{' '.join(command)} ended with {done.returncode}:\n{told[-2000:]}")
    return told


def _result(told: str, seconds: float) -> Result:
    states, reached, found = _STATES.search(told), _REACHED.search(told), _FOUND.search(told)
    if states is None or reached is None or _CUT_SHORT.search(told):
        raise SpinError(f"the search did not end:\n{told[-2000:]}")
    violated = found[1] if found else ""
    if bool(violated) != (reached[2] != "0"):
        raise SpinError(f"expected an error with a name, or none:\n{told[-2000:]}")
    return Result(int(states[1]), int(reached[1]), seconds, violated)


def _tell(name: str, result: Result, *, expected: bool) -> bool:
    said = result.violated or "holds"
    verdict = "" if expected else "   <- unexpected"
    print(f"{name:<36}{result.states:>12,}{result.depth:>7}{result.seconds:>8.1f} s  {said}{verdict}", flush=True)
    return expected


def main() -> int:
    """Check what is named on the command line, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="configurations and mutants; none: all of them")
    names: list[str] = parser.parse_args().names
    if not is_installed():
        print(REMEDY, file=sys.stderr)
        return 2
    known = [*CONFIGURATIONS, *ENDLESS, *MUTANTS, *LIMITS]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"expected one of {', '.join(known)}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    print(f"{'':<36}{'states':>12}{'depth':>7}{'time':>10}")
    unexpected = [name for name in names or known if not _check(name)]
    return 1 if unexpected else 0


def _check(name: str) -> bool:
    """Search what *name* stands for, tell of it, and return whether it came to what is expected."""
    model = "company" if name.lower().startswith("company") else "protocol"
    if name in MUTANTS:
        result = search(MUTANTS[name], model=model, mutant=name)
    elif name in ENDLESS:
        result = search(ENDLESS[name], model=model, cycles=True)
    else:
        result = search((CONFIGURATIONS | LIMITS)[name], model=model)
    breaks = name in MUTANTS or name in LIMITS
    return _tell(name, result, expected=bool(result.violated) is breaks)


if __name__ == "__main__":
    sys.exit(main())

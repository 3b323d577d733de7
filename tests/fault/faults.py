"""What goes wrong, and when: drawn from a seed, so that the same seed brings the same faults at the same times.

Called by `chaos`. `draw` is a pure function; `stage` does to the servers and processes what a fault says.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import random
from collections.abc import Iterator

PLANNERS = ("planner-1", "planner-2")
WORKERS = ("worker-1", "worker-2")
MEMBERS = ("mongod-0", "mongod-1", "mongod-2")
BROKER = "broker"

_FIRST_SECONDS = 3.0
_MEAN_GAP_SECONDS = 2.0
_SETTLING_SECONDS = 3.0
_BROKER_SETTLING_SECONDS = 10.0
"""What something was wrong with is left alone for so long; a broker needs some seconds to start."""
_DRAWS = 5
"""So often is another fault drawn where the target has one already."""
_TWO_MEMBERS_CHANCE = 0.1
"""Of a fault of a second member at the same time: then nobody takes writes until one is back."""


class Kind(enum.StrEnum):
    """One way in which something goes wrong."""

    KILL = "kill"
    """SIGKILL to the process and all that it has started."""
    KILL_PARENT = "kill parent"
    """SIGKILL to a worker's parent process; its children are left to themselves."""
    KILL_CHILD = "kill child"
    """SIGKILL to a pool process of a worker."""
    TERM_CHILD = "terminate child"
    TERM = "terminate"
    """SIGTERM: an orderly stop."""
    QUIT = "quit"
    """SIGQUIT: a worker stops without waiting."""
    FREEZE = "freeze"
    """SIGSTOP to the process and all that it has started, then SIGCONT."""
    FREEZE_CHILD = "freeze child"
    STEP_DOWN = "step down"
    FAIL_POINT = "fail point"
    """Some of the package's statements fail, are delayed, or are applied without an answer."""
    CUT_MONGODB = "cut from mongodb"
    """Connections to all members end, and no new ones are made."""
    DROP_MONGODB = "drop connections to mongodb"
    SILENCE_MONGODB = "silence to mongodb"
    """Nothing passes, in one direction or both; connections stay."""
    CUT_BROKER = "cut from broker"
    SILENCE_BROKER = "silence to broker"
    FLUSH = "flush"
    """FLUSHALL, or all queues purged."""
    EMPTY = "restart empty"
    """The broker is killed and comes back with nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a certain time, for a while."""

    at: float
    """Seconds after the start."""
    kind: Kind
    target: str
    seconds: float
    """How long: until the process is started again, goes on, or is connected again."""
    detail: int
    """Decides what the kind leaves open: which child, which direction, which fail point."""

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.kind.value} {self.target} for {self.seconds:.1f} s"


@dataclasses.dataclass(frozen=True, slots=True)
class _Choice:
    weight: int
    kind: Kind
    targets: tuple[str, ...]
    shortest: float
    longest: float


_CHOICES = (
    _Choice(5, Kind.KILL, PLANNERS, 0.1, 6),
    _Choice(2, Kind.TERM, PLANNERS, 0.1, 3),
    _Choice(5, Kind.FREEZE, PLANNERS, 0.5, 9),
    _Choice(4, Kind.KILL, WORKERS, 0.1, 5),
    _Choice(2, Kind.KILL_PARENT, WORKERS, 0.1, 5),
    _Choice(5, Kind.KILL_CHILD, WORKERS, 0.1, 0.2),
    _Choice(2, Kind.TERM_CHILD, WORKERS, 0.1, 0.2),
    _Choice(3, Kind.TERM, WORKERS, 0.1, 3),
    _Choice(2, Kind.QUIT, WORKERS, 0.1, 3),
    _Choice(3, Kind.FREEZE, WORKERS, 0.5, 8),
    _Choice(4, Kind.FREEZE_CHILD, WORKERS, 0.5, 9),
    _Choice(4, Kind.KILL, MEMBERS, 0.5, 6),
    _Choice(2, Kind.TERM, MEMBERS, 0.5, 4),
    _Choice(4, Kind.FREEZE, MEMBERS, 0.5, 8),
    _Choice(4, Kind.STEP_DOWN, ("mongod",), 0.1, 0.2),
    _Choice(6, Kind.FAIL_POINT, ("mongod",), 0.5, 4),
    _Choice(3, Kind.CUT_MONGODB, PLANNERS + WORKERS, 0.5, 7),
    _Choice(3, Kind.DROP_MONGODB, PLANNERS + WORKERS, 0.1, 0.2),
    _Choice(5, Kind.SILENCE_MONGODB, PLANNERS + WORKERS, 0.5, 8),
    _Choice(2, Kind.CUT_BROKER, PLANNERS + WORKERS, 0.5, 6),
    _Choice(2, Kind.SILENCE_BROKER, PLANNERS + WORKERS, 0.5, 6),
    _Choice(2, Kind.FLUSH, (BROKER,), 0.1, 0.2),
    _Choice(2, Kind.EMPTY, (BROKER,), 0.2, 4),
    _Choice(2, Kind.FREEZE, (BROKER,), 0.5, 6),
)


def draw(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a run, by time. A longer run with the same seed begins with the same faults.

    Args:
        seed: Decides everything.
        seconds: Length of the run; the last fault begins before its end.
    """
    chance = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    free_at: dict[str, float] = {}
    at = _FIRST_SECONDS
    while at < seconds:
        faults += itertools.islice(_drawn(chance, at, free_at), 1)
        at += 0.2 + chance.expovariate(1 / _MEAN_GAP_SECONDS)
    return faults


def _drawn(chance: random.Random, at: float, free_at: dict[str, float]) -> Iterator[Fault]:
    """Yield faults of what nothing is wrong with at that time; the first one is had."""
    for _ in range(_DRAWS):
        choice = chance.choices(_CHOICES, weights=[choice.weight for choice in _CHOICES])[0]
        target = chance.choice(choice.targets)
        seconds = chance.uniform(choice.shortest, choice.longest)
        detail = chance.randrange(1 << 16)
        alone = target in MEMBERS and chance.random() >= _TWO_MEMBERS_CHANCE
        if all(free_at.get(one, 0) <= at for one in (MEMBERS if alone else (target,))):
            settling = _BROKER_SETTLING_SECONDS if target == BROKER else _SETTLING_SECONDS
            free_at[target] = at + seconds + settling
            yield Fault(round(at, 2), choice.kind, target, round(seconds, 2), detail)

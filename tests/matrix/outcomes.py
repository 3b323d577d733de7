"""The axes of the matrix, and what each of its cells must come to.

A cell is a pool, a broker, an outcome and a variant: whether the message names one record or several, and when it is
acknowledged; or a plain Celery task. What is expected depends on pool, outcome and company: neither the broker (but
where Celery itself fails on one) nor the time of the acknowledgement makes a difference to a record. `stage` plays the
cells, `report` shows them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence


class Pool(enum.StrEnum):
    """Celery's pools."""

    FORK = "prefork"
    SPAWN = "prefork (spawn)"
    THREADS = "threads"
    SOLO = "solo"
    GEVENT = "gevent"

    @property
    def option(self) -> str:
        """As the worker's command line has it."""
        return self.value.split()[0]

    @property
    def has_processes(self) -> bool:
        """Whether a handler runs in a process of its own."""
        return self in {Pool.FORK, Pool.SPAWN}


class Broker(enum.StrEnum):
    """Brokers and kinds of queues."""

    VALKEY = "Valkey"
    CLASSIC = "RabbitMQ"
    QUORUM = "RabbitMQ, quorum queue"


class Company(enum.StrEnum):
    """What a message is for."""

    ALONE = "alone"
    COMPANY = "company"
    PLAIN = "plain"


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """A way to send one outcome."""

    company: Company
    acks: str

    def __str__(self) -> str:
        return f"{self.company}/{self.acks}"


VARIANTS = tuple(Variant(company, acks) for company in Company for acks in ("early", "late"))
REACTIVE = tuple(variant for variant in VARIANTS if variant.company is not Company.PLAIN)


class Outcome(enum.StrEnum):
    """What becomes of a run, in a reader's words."""

    SUCCESS = "success"
    ERROR = "error, attempts left"
    EXHAUSTED = "error, attempts exhausted"
    RETRY = "`self.retry(countdown)`"
    AUTORETRY = "`autoretry_for`"
    IGNORE = "`Ignore`"
    REJECT = "`Reject`"
    DEFER = "deferred"
    SKIP = "document left the filter"
    SOFT_LIMIT = "soft time limit"
    HARD_LIMIT = "hard time limit"
    REVOKED = "revoked before its start"
    TERMINATED = "revoked with `terminate` while it runs"
    CHILD_KILLED = "SIGKILL of the pool process"
    MEMORY = "`MemoryError`"
    EXIT = "`sys.exit`"
    SEGV = "segmentation fault"
    WARM = "TERM to the worker (warm shutdown)"
    SOFT = "QUIT to the worker (soft shutdown)"
    COLD = "QUIT to the worker (cold shutdown)"
    CRASH = "SIGKILL of the whole worker"
    RECYCLED = "`worker_max_tasks_per_child`"
    LIMITED_BY_WORKER = "`--time-limit` of the worker"
    AUTOSCALED = "`--autoscale`"


QUICK = {
    Outcome.SUCCESS: "success",
    Outcome.ERROR: "error_once",
    Outcome.EXHAUSTED: "error_always",
    Outcome.RETRY: "retry",
    Outcome.AUTORETRY: "autoretry",
    Outcome.IGNORE: "ignore",
    Outcome.REJECT: "reject",
    Outcome.DEFER: "defer",
    Outcome.SKIP: "skip",
}
"""Outcomes that disturb nobody, and what a document says to have them: all of them travel in one message."""
DONE_BY_THEMSELVES = {Outcome.MEMORY: "memory", Outcome.EXIT: "exit", Outcome.SEGV: "segv"}
"""Outcomes by which a handler ends its process, or tries to."""
NOT_PLAIN = {
    Outcome.DEFER: "a plain task has no `ctx.defer_current`",
    Outcome.SKIP: "a plain task has no document that is checked",
}
"""Why there is nothing to compare with."""

PROCESSES_ONLY = {
    Outcome.CHILD_KILLED: "there are no pool processes: see SIGKILL of the whole worker",
    Outcome.RECYCLED: "there are no pool processes to replace",
    Outcome.LIMITED_BY_WORKER: "see the hard time limit of a task",
}


def impossible(pool: Pool, outcome: Outcome) -> str | None:
    """Return why there is no such cell, None if there is one."""
    if pool.has_processes:
        return None
    if outcome is Outcome.AUTOSCALED and pool is not Pool.GEVENT:
        return "Celery scales neither threads nor solo"
    return PROCESSES_ONLY.get(outcome)


Cell = tuple[Pool, Broker, Outcome, Variant]


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """What a record must show in the end; each field holds what is right, any of several."""

    status: str
    history: tuple[tuple[str, ...], ...]
    calls: tuple[int, ...]
    within_seconds: float
    """From the cause to the record's next state."""
    flower: tuple[tuple[str, ...], ...]
    """States through which its row may go, the last of which stays."""
    attempts: tuple[int, ...] = ()
    """What the record must count, where that is the point."""


_COMPLETED, _FAILED, _SKIPPED = "completed", "failed", "skipped"
_SUCCESS, _RETRY, _FAILURE, _REVOKED = "SUCCESS", "RETRY", "FAILURE", "REVOKED"
AT_ONCE_SECONDS = 2.0
SOFT_SECONDS = 3.0
"""`worker_soft_shutdown_timeout`, where there is one."""
LEASE_SECONDS = 4.0
BY_LEASE_SECONDS = 1.5 * LEASE_SECONDS + 2.0
"""1.5 times the lease (B-28), and how long this machine may take to notice."""

_RUNS_THROUGH = Expected(_COMPLETED, ((_COMPLETED,),), (1,), AT_ONCE_SECONDS, ((_SUCCESS,),))
_RETRIED = Expected(_COMPLETED, ((_FAILED, _COMPLETED),), (2,), AT_ONCE_SECONDS, ((_RETRY, _SUCCESS),))
_SAID_BY_NOBODY = ((_RETRY, _SUCCESS), (_SUCCESS,))
"""Where the process that would report an attempt's end has died with it, monitors see the next attempt only."""
_AGAIN_ALONE = Expected(_COMPLETED, ((_COMPLETED,),), (2,), AT_ONCE_SECONDS, _SAID_BY_NOBODY)
"""Lost in company: which of the records it was is not known, so that it costs none an attempt (B-28)."""


def expected(pool: Pool, broker: Broker, outcome: Outcome, company: Company) -> Expected:
    """Return what a record must show after *outcome* on *pool*.

    A message of several records is reported at its end: an attempt that is repeated before is not told any more.
    """
    if outcome is Outcome.COLD and _stops_badly(pool, broker):
        outcome = Outcome.SOFT
    right = _expected(pool, outcome, company)
    if company is Company.ALONE:
        return right
    shorter = tuple(row[1:] for row in right.flower if row[0] == _RETRY)
    return dataclasses.replace(right, flower=(*right.flower, *shorter))


def _stops_badly(pool: Pool, broker: Broker) -> bool:
    """Whether Celery's own cold shutdown fails: it speaks AMQP in a callback of gevent's loop, which must not wait."""
    return pool is Pool.GEVENT and broker is not Broker.VALKEY


def _expected(pool: Pool, outcome: Outcome, company: Company) -> Expected:
    match outcome:
        case Outcome.SUCCESS | Outcome.WARM | Outcome.RECYCLED | Outcome.AUTOSCALED:
            return _RUNS_THROUGH
        case Outcome.SOFT:
            return _soft(pool)
        case Outcome.ERROR | Outcome.RETRY | Outcome.AUTORETRY:
            return _RETRIED
        case Outcome.EXHAUSTED:
            return Expected(_FAILED, ((_FAILED, _FAILED),), (2,), AT_ONCE_SECONDS, ((_RETRY, _FAILURE),))
        case Outcome.IGNORE | Outcome.SKIP:
            return Expected(_COMPLETED, ((_SKIPPED,),), (1,), AT_ONCE_SECONDS, (("SKIPPED",),))
        case Outcome.REJECT:
            return Expected(_FAILED, ((_FAILED,),), (1,), AT_ONCE_SECONDS, ((_FAILURE,),))
        case Outcome.DEFER:
            return Expected(_COMPLETED, ((_COMPLETED,),), (2,), AT_ONCE_SECONDS, ((_RETRY, _SUCCESS),), (1,))
        case Outcome.SOFT_LIMIT | Outcome.LIMITED_BY_WORKER:
            return _RETRIED if pool.has_processes else _RUNS_THROUGH
        case Outcome.HARD_LIMIT:
            return _RETRIED if pool.has_processes or pool is Pool.GEVENT else _RUNS_THROUGH
        case Outcome.REVOKED:
            return Expected(_FAILED, ((_FAILED,),), (0,), AT_ONCE_SECONDS, ((_REVOKED,),))
        case Outcome.TERMINATED:
            return _terminated(pool)
        case Outcome.MEMORY | Outcome.EXIT:
            return dataclasses.replace(_RETRIED, flower=_SAID_BY_NOBODY)
        case Outcome.CHILD_KILLED | Outcome.SEGV | Outcome.CRASH:
            return _lost(pool, outcome, company)
        case Outcome.COLD:
            return _cold(pool)


def _terminated(pool: Pool) -> Expected:
    """Only a pool process and a greenlet can be ended from outside."""
    if pool.has_processes or pool is Pool.GEVENT:
        return Expected(_FAILED, ((_FAILED,),), (1,), AT_ONCE_SECONDS, ((_REVOKED,),))
    return _RUNS_THROUGH


def _lost(pool: Pool, outcome: Outcome, company: Company) -> Expected:
    """At once where the worker's parent process survives, else when the lease is over (B-28)."""
    noticed = pool.has_processes and outcome is not Outcome.CRASH
    seconds = AT_ONCE_SECONDS if noticed else BY_LEASE_SECONDS
    if company is Company.COMPANY:
        return dataclasses.replace(_AGAIN_ALONE, within_seconds=seconds)
    flower = ((_RETRY, _SUCCESS),) if noticed else _SAID_BY_NOBODY
    return dataclasses.replace(_RETRIED, within_seconds=seconds, flower=flower)


def _soft(pool: Pool) -> Expected:
    """Return what a soft shutdown comes to, which Celery cannot make on two pools.

    It waits in the only thread of solo, on top of the handler, and then stops as by a cold shutdown. In a callback of
    gevent's loop it must not wait and fails: runs go on until the process ends, and what they tell may not arrive.
    """
    match pool:
        case Pool.SOLO:
            return dataclasses.replace(_cold(pool), within_seconds=SOFT_SECONDS + AT_ONCE_SECONDS)
        case Pool.GEVENT:
            history = ((_COMPLETED,), (_FAILED, _COMPLETED))
            flower = ((_SUCCESS,), (_RETRY, _SUCCESS), ("STARTED",))
            return Expected(_COMPLETED, history, (1, 2), BY_LEASE_SECONDS, flower)
        case _:
            return _RUNS_THROUGH


def _cold(pool: Pool) -> Expected:
    """Given back at once with attempts as before (B-68); no thread can be stopped, so that its run may end first."""
    calls = (2,) if pool.has_processes else (1, 2)
    return Expected(_COMPLETED, ((_COMPLETED,),), calls, AT_ONCE_SECONDS, _SAID_BY_NOBODY, (1,))


def neighbour_expected() -> Expected:
    """Return what a record must show that was in a message with another: as if it had been alone."""
    return dataclasses.replace(_RUNS_THROUGH, calls=(1,), attempts=(1,))


@dataclasses.dataclass(slots=True)
class Seen:
    """What a cell has come to. A plain task has no record: its fields are empty."""

    status: str = ""
    attempts: int = 0
    history: tuple[str, ...] = ()
    calls: int = 0
    done: bool = False
    """A call of the handler has come to its end without an error."""
    overlaps: bool = False
    landed_seconds: float | None = None
    """From the cause to the record's next state; of a plain task: to the event."""
    done_seconds: float | None = None
    """From the cause to the end of the call that came to its end."""
    flower: tuple[str, ...] = ()
    flower_args: str = ""
    neighbours: tuple[str, ...] = ()
    """How the other records of the message differ from what is expected of them."""
    note: str = ""


def faults(pool: Pool, broker: Broker, outcome: Outcome, company: Company, seen: Seen) -> list[str]:
    """Return in words how a record's cell differs from what is expected; empty: it does not."""
    right = expected(pool, broker, outcome, company)
    found = list(seen.neighbours)
    if seen.note:
        found.append(seen.note)
    if seen.overlaps:
        found.append("two calls at the same time")
    found += differences(right, seen)
    if outcome.name not in seen.flower_args:
        found.append(f"Flower shows {seen.flower_args or 'no'} arguments")
    if seen.landed_seconds is not None and seen.landed_seconds > right.within_seconds:
        found.append(f"in the record after {seen.landed_seconds:.1f} s, expected {right.within_seconds:g} s")
    return found


def differences(right: Expected, seen: Seen) -> list[str]:
    """Return how a record and its row differ from what is right, but for times."""
    found = []
    if seen.status != right.status:
        found.append(f"record is {seen.status or 'missing'}, expected {right.status}")
    if seen.history not in right.history:
        found.append(f"history {arrows(seen.history)}, expected {arrows(right.history[0])}")
    if seen.calls not in right.calls:
        found.append(f"{seen.calls} calls, expected {' or '.join(map(str, right.calls))}")
    if right.attempts and seen.attempts not in right.attempts:
        found.append(f"{seen.attempts} attempts, expected {right.attempts[0]}")
    if seen.flower not in right.flower:
        found.append(f"Flower {arrows(seen.flower)}, expected {arrows(right.flower[0])}")
    return found


def arrows(states: Sequence[str]) -> str:
    """Return states in their order."""
    return " → ".join(states) or "nothing"


def findings(cells: Mapping[Cell, Seen]) -> list[str]:
    """Return in words every cell of a record that is not as expected."""
    return [
        f"{pool} | {broker} | {outcome} | {variant}: {fault}"
        for (pool, broker, outcome, variant), seen in cells.items()
        if variant.company is not Company.PLAIN
        for fault in faults(pool, broker, outcome, variant.company, seen)
    ]


# --- compared with plain Celery ----------------------------------------------------------------------

_WITHOUT_END = {"STARTED", "RECEIVED", "RETRY", ""}
_LATER_SECONDS = 4.0
"""A worker's restart takes seconds, and is not the same one for both where each cell ends its worker."""
_LEASE = (
    "with late acknowledgement RabbitMQ delivers again at once; a record waits for its lease to end, which alone shows "
    "that the worker is not merely cut off"
)
_FAILS_ON_GEVENT = "Celery's own shutdown fails here with an error of gevent before it tells of its runs"


def is_worse(seen: Seen, plain: Seen) -> bool:
    """Whether a plain task came off better: done, done sooner, with fewer calls, or seen to end in Flower."""
    if plain.done and not seen.done:
        return True
    if plain.done and (seen.calls > plain.calls or _later(seen) > 2 * _later(plain) + _LATER_SECONDS):
        return True
    return _last(plain.flower) not in _WITHOUT_END and _last(seen.flower) in _WITHOUT_END


def excuse(pool: Pool, broker: Broker, outcome: Outcome) -> str | None:
    """Return the sentence that says why a record may come off worse there; None: it may not."""
    if outcome is Outcome.SOFT and pool is Pool.GEVENT:
        return f"{_FAILS_ON_GEVENT}, and which runs end before the process does is chance"
    if outcome is Outcome.COLD and _stops_badly(pool, broker):
        return f"{_FAILS_ON_GEVENT}; {_LEASE}"
    lost = outcome is Outcome.CRASH or (outcome is Outcome.SEGV and not pool.has_processes)
    return _LEASE if lost and broker is not Broker.VALKEY else None


def comparisons(cells: Mapping[Cell, Seen]) -> list[str]:
    """Return every cell that comes off worse than plain Celery and has no sentence that says why."""
    return [
        f"{pool} | {broker} | {outcome} | {variant}: worse than plain Celery"
        for (pool, broker, outcome, variant), seen in cells.items()
        if variant.company is not Company.PLAIN
        and (plain := cells.get((pool, broker, outcome, Variant(Company.PLAIN, variant.acks)))) is not None
        and is_worse(seen, plain)
        and excuse(pool, broker, outcome) is None
    ]


def _later(seen: Seen) -> float:
    return seen.done_seconds or 0.0


def _last(flower: Sequence[str]) -> str:
    return flower[-1] if flower else ""

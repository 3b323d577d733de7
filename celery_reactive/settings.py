"""The package's settings: read once from Celery's configuration, then the environment, and checked.

Called by the composition root. Must never put a connection string into a message: `repr` masks it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from celery_reactive.core.cron import is_schedule, read_schedule
from celery_reactive.core.duration import parse_duration
from celery_reactive.core.suggest import closest, did_you_mean, listed, shown
from celery_reactive.errors import ConfigurationError

_PREFIX = "reactive_"
_URL_VARIABLE = "CELERY_REACTIVE_MONGODB_URL"
_USUAL_NAMESPACE = "CELERY_"
_DEFAULT_URL = "mongodb://localhost:27017"
_MIN_LEASE = timedelta(seconds=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every `reactive_*` setting, checked. Field docs give unit, default and reason."""

    mongodb_url: str = dataclasses.field(default=_DEFAULT_URL, repr=False)
    """Connection string; its database is the default database."""
    mongodb_client: Callable[[], Any] | None = None
    """Makes the client instead: a new one at each call, for it is called after a fork and closed after use."""
    database: str | None = None
    """Default database of tasks and of the globals collection; None: the connection string's, else `test`."""
    records_suffix: str = "_tasks"
    """Names the records collection of a watched one."""
    globals_collection: str = "_celery_reactive"
    """Leadership, positions, definitions, controls."""
    instance_id: str = ""
    """Names this process in locks and logs; empty: host and a random part, so that it is never shared."""
    visibility_timeout: timedelta = timedelta(seconds=60)
    """Lease of a run; renewed every fifth of it. Longer: a vanished worker is noticed later."""
    leader_ttl: timedelta = timedelta(seconds=30)
    """Leader's lock; renewed every third of it. Longer: a vanished planner is noticed later."""
    batch_size: int = 1000
    """Documents per planning batch."""
    max_in_flight: int = 2000
    """Most records that are sent and not claimed yet, per queue; the backlog stays in MongoDB."""
    chunk: int | str = "auto"
    """Records a message may name; `"auto"`: as many as load asks for, 1: always one."""
    cleanup_interval: timedelta | str = timedelta(hours=24)
    """How often orphaned records are removed; a duration or `"CRON 0 3 * * *"`, in UTC unless a time zone follows."""
    task_caller: Callable[..., Any] | str | None = None
    """Wraps every execution (B-37)."""
    task_filter: Callable[..., Any] | str | None = None
    """Holds a task's records back while it returns false (B-37)."""
    redact: tuple[str, ...] = ()
    """Names of fields whose values dashboard and command line do not show, besides the usual secrets (`password`,
    `token`, `api_key`, …); parts of names count."""
    metrics_enabled: bool = True
    """Whether this process counts for Prometheus, and answers it."""
    metrics_scrape_mode: str = "cluster"
    """`cluster`: any planner answers for all processes; `local`: each process for itself."""
    metrics_push_interval: timedelta = timedelta(seconds=60)
    """How often a process writes its counters for the others, in `cluster` mode; what was not written when it is killed
    is not counted."""
    metrics_read_preference: str = "secondaryPreferred"
    """Which members of the replica set are read for an answer: `secondaryPreferred` spares the primary."""
    metrics_port: int | None = None
    """Port on which a worker serves its own metrics, in `local` mode only."""
    metrics_host: str = "127.0.0.1"
    """Address on which planners and workers serve metrics; `0.0.0.0`: on all, for a Prometheus elsewhere."""

    @classmethod
    def load(
        cls,
        get: Callable[[str], Any],
        names: Iterable[str],
        environ: Mapping[str, str] = os.environ,
        *,
        namespace: str | None = None,
    ) -> Settings:
        """Read and check all settings.

        Args:
            get: Returns the value set for a key such as `reactive_database`, None if unset.
            names: All keys that are set, as they are written, to find those that nobody reads.
            environ: Fallback for the connection string.
            namespace: Celery's, under which keys may be written too: `CELERY` for `CELERY_REACTIVE_DATABASE`.

        Raises:
            ConfigurationError: Lists everything that is wrong, spelt as it is written; nothing was started.
        """
        known = [f"{_PREFIX}{field.name}" for field in dataclasses.fields(cls)]
        spelling = _Spelling(namespace, frozenset(map(str, names)))
        problems = spelling.unread(known)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            key = f"{_PREFIX}{field.name}"
            value = get(key)
            if value is None:
                continue
            try:
                values[field.name] = _CHECKS[field.name](spelling.written(key), value)
            except ConfigurationError as error:
                problems.append(str(error))
        if values.get("metrics_port") is not None and values.get("metrics_scrape_mode") != "local":
            port, mode = spelling.written(f"{_PREFIX}metrics_port"), spelling.written(f"{_PREFIX}metrics_scrape_mode")
            problems.append(f'{port}: workers serve their own metrics only with {mode} = "local", got "cluster"')
        if get(f"{_PREFIX}mongodb_url") is None:
            try:
                values["mongodb_url"] = _url(_URL_VARIABLE, environ.get(_URL_VARIABLE) or _DEFAULT_URL)
            except ConfigurationError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError("settings", problems)
        values.setdefault("instance_id", f"{socket.gethostname()}-{secrets.token_hex(4)}")
        return cls(**values)

    @property
    def heartbeat(self) -> timedelta:
        """Interval at which a run's lease is renewed (B-23)."""
        return self.visibility_timeout / 5

    @property
    def shown_url(self) -> str:
        """The connection string without user, password and options, for messages."""
        # Up to the last @: a password whose / or ? is not escaped ends there.
        match = re.match(r"^(mongodb(?:\+srv)?://)(?:.*@)?([^/?@]*)(/[^?]*)?", self.mongodb_url)
        return "".join(part or "" for part in match.groups()) if match else "(not a MongoDB connection string)"


class _Spelling:
    """How keys are written: `reactive_chunk`, and `CELERY_REACTIVE_CHUNK` under the namespace `CELERY`."""

    def __init__(self, namespace: str | None, names: frozenset[str]) -> None:
        self._namespace = f"{namespace.rstrip('_')}_" if namespace else ""
        self._names = names

    def written(self, key: str) -> str:
        """Return *key* as it is written where it is set."""
        spelt = self._in_namespace(key)
        return spelt if spelt in self._names else key

    def unread(self, known: list[str]) -> list[str]:
        """Say what is wrong with each key that is meant for this package and that nobody reads."""
        read = {*known, *map(self._in_namespace, known)}
        return [problem for name in sorted(self._names - read) if (problem := self._problem_of(name, known))]

    def _problem_of(self, name: str, known: list[str]) -> str | None:
        key = name.lower().removeprefix((self._namespace or _USUAL_NAMESPACE).lower())
        if key in known:
            return f"{name}: nobody reads this spelling; write {self._in_namespace(key)}"
        if not key.startswith(_PREFIX) or self._is_somebody_elses(name):
            return None
        match = closest(key.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in known])
        if match is None:
            return f"{name}: unknown setting"
        meant = f"{_PREFIX}{match}"
        return f"{name}: unknown setting; did you mean {meant if name == key else self._in_namespace(meant)!r}?"

    def _is_somebody_elses(self, name: str) -> bool:
        """Whether a namespace sets ours apart from *name*: Django's settings hold those of other packages too."""
        return bool(self._namespace) and name.upper().startswith(_PREFIX.upper()) and name != name.lower()

    def _in_namespace(self, key: str) -> str:
        """Return *key* as Celery looks for it under the namespace: in the case of that."""
        spelt = f"{self._namespace}{key}"
        return spelt.upper() if self._namespace.isupper() else spelt.lower()


def _duration(least: timedelta) -> Callable[[str, Any], timedelta]:
    def check(key: str, value: Any) -> timedelta:
        duration = parse_duration(value, name=key)
        if duration < least:
            raise ConfigurationError(key, [f"expected at least {least.total_seconds():g} s, got {shown(value)}"])
        return duration

    return check


def _integer(least: int, most: int | None = None) -> Callable[[str, Any], int]:
    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
            upper = f" and at most {most}" if most else ""
            raise ConfigurationError(key, [f"expected an integer of at least {least}{upper}, got {shown(value)}"])
        return value

    return check


def _text(pattern: str, expected: str) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ConfigurationError(key, [f"expected {expected}, got {shown(value)}"])
        return value

    return check


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if value not in choices:
            meant = did_you_mean(str(value), choices)
            raise ConfigurationError(key, [f"expected one of {listed(choices)}, got {shown(value)}{meant}"])
        return str(value)

    return check


def _url(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.match(r"^mongodb(\+srv)?://.", value):
        raise ConfigurationError(key, ['expected a connection string "mongodb://…" or "mongodb+srv://…"'])
    before_options = value.partition("://")[2].partition("?")[0]
    if re.search("[@/]", before_options.rpartition("@")[0]):
        # A driver would take a part of the password for a host, and show it.
        problem = "expected @ and / of user and password escaped in the connection string (urllib.parse.quote_plus)"
        raise ConfigurationError(key, [problem])
    return value


def _callable(key: str, value: Any) -> Any:
    if not callable(value) and not (isinstance(value, str) and value):
        raise ConfigurationError(key, [f"expected a callable or its import path, got {shown(value)}"])
    return value


def _client_factory(key: str, value: Any) -> Any:
    if not callable(value):
        raise ConfigurationError(key, [f"expected a callable that returns a MongoClient, got {shown(value)}"])
    return value


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(key, [f"expected True or False, got {shown(value)}"])
    return value


def _chunk(key: str, value: Any) -> int | str:
    if value == "auto":
        return "auto"
    return _integer(1, 1000)(key, value)


def _interval(key: str, value: Any) -> timedelta | str:
    if is_schedule(value):
        read_schedule(value, key)
        return str(value)
    return _duration(timedelta(seconds=1))(key, value)


def _names(key: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, (list, tuple, set, frozenset)) and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise ConfigurationError(key, [f"expected names of fields, got {shown(value)}"])


_NAME = r"[^\0$ ][^\0$]*"
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "mongodb_url": _url,
    "mongodb_client": _client_factory,
    "database": _text(r"[^\0/\\. \"$*<>:|?]{1,63}", "the name of a database"),
    "records_suffix": _text(r"[^\0$]+", "a non-empty ending of collection names"),
    "globals_collection": _text(_NAME, "the name of a collection"),
    "instance_id": _text(r".{1,200}", "a name of 1 to 200 characters"),
    "visibility_timeout": _duration(_MIN_LEASE),
    "leader_ttl": _duration(_MIN_LEASE),
    "batch_size": _integer(1, 10_000),
    "max_in_flight": _integer(1),
    "chunk": _chunk,
    "cleanup_interval": _interval,
    "task_caller": _callable,
    "task_filter": _callable,
    "redact": _names,
    "metrics_enabled": _boolean,
    "metrics_scrape_mode": _one_of("cluster", "local"),
    "metrics_push_interval": _duration(timedelta(seconds=1)),
    "metrics_read_preference": _one_of(
        "primary",
        "primaryPreferred",
        "secondary",
        "secondaryPreferred",
        "nearest",
    ),
    "metrics_port": _integer(1, 65535),
    "metrics_host": _text(r"[\w.:-]{1,255}", "a host name or an IP address"),
}

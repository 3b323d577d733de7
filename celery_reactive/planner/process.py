"""The planner process. Read this first in `planner/`.

It stands by until it leads, and then runs its stages, each in a thread of its own, until it is told
to stop or its term ends: *watch* follows the change stream and plans; *reconcile* looks at everything
once where that is needed, after *evolve* has reset what a new version of a handler asks for; *dispatch*
publishes what is due; *broker* notices that what was published has been lost; *rescue* ends runs whose worker
has vanished; *mend* plans again what a transaction held; *cleanup* removes records that nobody needs. The stages
share nothing but the database and a few events; each may fail and goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from celery_reactive.core.suggest import listed
from celery_reactive.core.task import DEFAULT_GROUP, ReactiveTask
from celery_reactive.errors import (
    ArgumentError,
    ConfigurationError,
    ReactiveError,
    StoreUnavailableError,
    TermEndedError,
)
from celery_reactive.events import PlannerStarted, PlannerStopped
from celery_reactive.planner import elect
from celery_reactive.planner.broker import ContentsWatch
from celery_reactive.planner.cleanup import Cleaner
from celery_reactive.planner.contents import contents_of
from celery_reactive.planner.dispatch import Dispatcher
from celery_reactive.planner.elect import Leadership
from celery_reactive.planner.evolve import Evolver
from celery_reactive.planner.patience import answered, persist
from celery_reactive.planner.plan import PlannedTask, Planning
from celery_reactive.planner.publish import Publisher
from celery_reactive.planner.recheck import Rechecker
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.planner.rescue import Rescuer
from celery_reactive.planner.watch import Watcher
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, indexes, instances, records, server
from celery_reactive.store.errors import time_limit

logger = logging.getLogger(__name__)

_MEND_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_GLANCE_SECONDS = 0.1
_UNTOLD_SECONDS = 5.0
"""After so long it is asked whether anybody wants a reconciliation, told or not: no stream may follow the globals."""
_LEAST_TERM_SECONDS = 1.0
_ANSWER_LIMIT = timedelta(seconds=5)
"""After so long people are told that a planner that starts waits for MongoDB."""
_PRESENCE_LIMIT = timedelta(seconds=1)
_FINISH_SECONDS = 6.0
"""A batch takes seconds at most where the database answers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Duty:
    """Something that one process of all has to do, and that planning does not need: the leader does it."""

    name: str
    begin: Callable[[int, threading.Event], Callable[[], None]]
    """Called with a term's number and the event of its end; returns the step that is repeated until then.

    A step waits by itself, on that event, for its next time.
    """


def check(runtime: Runtime, publisher: Publisher, *, group: str = DEFAULT_GROUP) -> list[ReactiveTask]:
    """Check server, broker and every task of a planner group before anything is started (B-3, B-4).

    Returns:
        The tasks that can be planned; a task that cannot is logged with the reason and left out.

    Raises:
        ConfigurationError: There is no task, none in the group, none can be planned, or the server is not fit.
        StoreUnavailableError: MongoDB does not answer.
        BrokerUnavailableError: The broker does not answer.
    """
    if not len(runtime.registry):
        raise ConfigurationError(
            "no reactive task",
            ["expected at least one task declared with @reactive_task; is its module imported by the app?"],
        )
    mine = [task for task in runtime.registry if task.group == group]
    if not mine:
        groups = listed(sorted({task.group for task in runtime.registry}))
        raise ArgumentError(f"group {group!r}", [f"expected a planner group that has tasks, one of {groups}"])
    with time_limit(_ANSWER_LIMIT):
        server.check(runtime.connection.database(), shown_url=runtime.settings.shown_url)
    publisher.check()
    fit, problems = [], []
    for task in mine:
        try:
            _check_task(runtime, task)
            fit.append(task)
        except ConfigurationError as error:
            problems.append(str(error))
            logger.error(  # noqa: TRY400 -- the message says it all
                "task refused: %s",
                error,
                extra={"event": "task_refused", "task": task.name},
            )
    if not fit:
        raise ConfigurationError("every task was refused", problems)
    return fit


def _check_task(runtime: Runtime, task: ReactiveTask) -> None:
    suffix = runtime.settings.records_suffix
    if task.collection.endswith(suffix):
        raise ConfigurationError(
            task.name,
            [f"expected a collection to watch, got {task.collection!r}, a records collection (ending {suffix!r})"],
        )
    server.check_collection(runtime.connection.database(task.database), task.collection)
    server.check_definition(runtime.connection.source(task), task)
    indexes.prepare(runtime.connection.records(task))


def run(
    runtime: Runtime,
    publisher: Publisher,
    stop: threading.Event,
    *,
    group: str = DEFAULT_GROUP,
    duties: Sequence[Duty] = (),
) -> None:
    """Run a planner until *stop* is set; a clean hand-over then.

    Args:
        runtime: The app's parts.
        publisher: Publishes to the broker.
        stop: Ends the planner: the batch in hand is finished, the position stored, the lock released (B-68).
        group: The planner group.
        duties: What else the leader does beside planning.

    Raises:
        ConfigurationError: Nothing was started.
        BrokerUnavailableError: The broker does not answer at the start; nothing was started. Later it is waited for.
        StoreUnavailableError: No client can be made of the connection string; nothing was started.
    """
    runtime.connection.database()
    subject = f"MongoDB at {runtime.settings.shown_url}"
    try:
        tasks = answered(lambda: check(runtime, publisher, group=group), subject, stop)
        if tasks is not None:
            _stand(runtime, publisher, tasks, group, stop, duties)
    finally:
        publisher.close()
        runtime.connection.close()


def _stand(
    runtime: Runtime,
    publisher: Publisher,
    tasks: Sequence[ReactiveTask],
    group: str,
    stop: threading.Event,
    duties: Sequence[Duty],
) -> None:
    """Stand for leadership, and lead when elected, until *stop* is set."""
    runtime.emit(PlannerStarted(runtime.settings.instance_id, len(tasks), group))
    try:
        with _announced(runtime, group):
            while (leadership := elect.campaign(runtime, group, stop)) is not None:
                with leadership:
                    _lead_patiently(runtime, tasks, publisher, leadership, group, stop, duties)
    finally:
        runtime.emit(PlannerStopped(runtime.settings.instance_id, group))


@contextmanager
def _announced(runtime: Runtime, group: str) -> Iterator[None]:
    """Keep this planner's document among the live processes inside the block."""
    name, facts = runtime.settings.instance_id, {"group": group}
    ended = threading.Event()

    def announce() -> None:
        while not ended.is_set():
            with suppress(ReactiveError), time_limit(_PRESENCE_LIMIT):
                instances.announce(runtime.connection.globals(), instances.Kind.PLANNER, name, facts)
                instances.forget_the_gone(runtime.connection.globals())
            ended.wait(instances.HEARTBEAT.total_seconds())

    thread = threading.Thread(target=announce, name="reactive-presence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(ReactiveError), time_limit(_PRESENCE_LIMIT):
            instances.leave(runtime.connection.globals(), instances.Kind.PLANNER, name)


def _lead_patiently(
    runtime: Runtime,
    tasks: Sequence[ReactiveTask],
    publisher: Publisher,
    leadership: Leadership,
    group: str,
    stop: threading.Event,
    duties: Sequence[Duty],
) -> None:
    """Lead; a database that is away at the very start ends the term, and the planner stands for the next."""
    try:
        _lead(runtime, tasks, publisher, leadership, group, stop, duties)
    except TermEndedError:
        leadership.lose()
    except StoreUnavailableError as error:
        logger.warning("MongoDB does not answer, giving up the term: %s", error, extra={"event": "term_given_up"})
        stop.wait(_LEAST_TERM_SECONDS)


def _lead(
    runtime: Runtime,
    tasks: Sequence[ReactiveTask],
    publisher: Publisher,
    leadership: Leadership,
    group: str,
    stop: threading.Event,
    duties: Sequence[Duty],
) -> None:
    """Run the stages until *stop* is set or the term ends."""
    planned = _define(runtime, tasks, leadership.term)
    ending = threading.Event()
    dispatcher = Dispatcher(runtime, planned, publisher, ended=ending)
    databases = sorted({_database_of(runtime, task) for task in planned})
    stages = [("dispatch", dispatcher.step), ("rescue", _rescue(runtime, planned, ending))]
    stages += _broker(runtime, planned, publisher, dispatcher, group, ending)
    stages += [(duty.name, duty.begin(leadership.term, ending)) for duty in duties]
    watchers: list[Watcher] = []
    needs = {database: threading.Event() for database in databases}

    def want_reconciliation() -> None:
        # A request is told by the stream of the globals' database, whichever its task watches.
        for needed in needs.values():
            needed.set()

    want_reconciliation()
    rechecker = Rechecker(runtime, planned, on_wanted=want_reconciliation, ended=ending)
    if rechecker.is_needed:
        stages.append(("recheck", rechecker.step))
    for database in databases:
        own = [task for task in planned if _database_of(runtime, task) == database]
        planning = Planning(runtime, own)
        cleaner = Cleaner(runtime, planning, group=group, term=leadership.term, ended=ending)
        watcher = Watcher(
            runtime,
            planning,
            database,
            group=group,
            term=leadership.term,
            on_planned=dispatcher.kick,
            on_deleted=cleaner.note_deleted,
            on_reconcile=want_reconciliation,
        )
        watchers.append(watcher)
        evolver = Evolver(runtime, own, term=leadership.term, ended=ending)
        reconciler = Reconciler(runtime, planning, group=group, term=leadership.term, ended=ending)
        stages += [
            (f"watch {database}", watcher.step),
            (
                f"reconcile {database}",
                _reconcile(evolver, reconciler, watcher, needs[database], dispatcher, cleaner, ending),
            ),
            (f"mend {database}", _mend(planning, dispatcher, ending)),
            (f"cleanup {database}", cleaner.step),
        ]
    threads = [
        threading.Thread(
            target=persist,
            args=(step, ending),
            kwargs={"on_term_ended": leadership.lose},
            name=f"reactive-{name}",
            daemon=True,
        )
        for name, step in stages
    ]
    for thread in threads:
        thread.start()
    while not stop.wait(_GLANCE_SECONDS) and not leadership.ended.is_set():
        pass
    ending.set()
    dispatcher.kick()
    if _have_ended(threads):
        for watcher in watchers:
            _finish(watcher)


def _have_ended(threads: Sequence[threading.Thread]) -> bool:
    """Wait for the stages to finish what they have in hand; a database that is away holds up no stop (B-68)."""
    deadline = time.monotonic() + _FINISH_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [thread.name for thread in threads if thread.is_alive()]
    if late:
        logger.warning(
            "stopping without waiting any longer; what is in hand is planned again",
            extra={"event": "stages_left", "stages": late},
        )
    return not late


def _database_of(runtime: Runtime, task: PlannedTask) -> str:
    return task.definition.database or runtime.connection.default_database


def _finish(watcher: Watcher) -> None:
    try:
        watcher.finish()
    except TermEndedError:
        logger.info("position not stored, a newer leader plans", extra={"event": "term_ended"})
    except Exception:
        logger.exception("position not stored; what was planned since is planned again")


def _define(runtime: Runtime, tasks: Sequence[ReactiveTask], term: int) -> list[PlannedTask]:
    """Store the leader's definitions and return the tasks as they are to be planned."""
    planned = []
    known = definitions.read_all(runtime.connection.globals(), [task.name for task in tasks])
    for task in tasks:
        indexes.drop_former(runtime.connection.records(task))
        is_new = known[task.name].generation == 0
        collated = server.has_collation(runtime.connection.database(task.database), task.collection)
        stored = definitions.define(
            runtime.connection.globals(),
            task,
            namespace=runtime.connection.namespace(task),
            collated=collated,
            term=term,
            # Records that have outlived their definition would refuse whatever a generation before theirs sees.
            after=records.newest_generation(runtime.connection.records(task), task.name) if is_new else 0,
        )
        planned.append(PlannedTask(task, stored.generation, collated, stored.lineage))
    return planned


def _rescue(runtime: Runtime, tasks: Sequence[PlannedTask], ending: threading.Event) -> Callable[[], None]:
    rescuer = Rescuer(runtime, tasks)

    def step() -> None:
        ending.wait(runtime.settings.heartbeat.total_seconds())
        if not ending.is_set():
            rescuer.look()

    return step


def _broker(
    runtime: Runtime,
    tasks: Sequence[PlannedTask],
    publisher: Publisher,
    dispatcher: Dispatcher,
    group: str,
    ending: threading.Event,
) -> list[tuple[str, Callable[[], None]]]:
    """Return the stage that notices lost messages, where the broker can be asked what it holds."""
    routes = {task.definition.name: publisher.queue_of(task.definition) for task in tasks}
    queues = {task: queue for task, queue in routes.items() if queue is not None}
    canary = f"celery-reactive.{runtime.connection.globals().full_name}.{group}"
    contents = contents_of(publisher.connect, queues, canary)
    if contents is None:
        return []
    watch = ContentsWatch(
        runtime,
        tasks,
        contents,
        most_a_message=dispatcher.most_a_message,
        on_lost=dispatcher.kick,
        ended=ending,
    )
    return [("broker", watch.step)]


def _reconcile(
    evolver: Evolver,
    reconciler: Reconciler,
    watcher: Watcher,
    needed: threading.Event,
    dispatcher: Dispatcher,
    cleaner: Cleaner,
    ending: threading.Event,
) -> Callable[[], None]:
    looked_at = time.monotonic()

    def step() -> None:
        nonlocal looked_at
        wanted = watcher.ready.wait(_LOOK_SECONDS) and (
            needed.wait(_LOOK_SECONDS) or time.monotonic() - looked_at >= _UNTOLD_SECONDS
        )
        if not wanted or ending.is_set():
            return
        needed.clear()
        looked_at = time.monotonic()
        try:
            if evolver.evolve():
                dispatcher.kick()
            if reconciler.reconcile_needed():
                dispatcher.kick()
                cleaner.want_all()
        except BaseException:
            needed.set()
            raise

    return step


def _mend(planning: Planning, dispatcher: Dispatcher, ending: threading.Event) -> Callable[[], None]:
    def step() -> None:
        ending.wait(_MEND_SECONDS)
        if not ending.is_set() and planning.retry_locked():
            dispatcher.kick()

    return step

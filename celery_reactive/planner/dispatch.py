"""Dispatching: mark what is due as sent, then publish a message for it (B-22).

Called by `process`, in a thread of its own. The mark is the intent and comes first: a planner that
dies in between leaves records whose deadline passes, and they are sent again. A message is a wake-up
and carries no authority; what is known not to have been published is cleared when the broker answers.

A round looks at tasks that something has happened to, or whose next record is due by now, so that its work is in
proportion to what it sends. The tasks of a queue share what may be with the broker (`window`); messages go out in
batches over all tasks, the more urgent tasks first (B-58); `publish` knows how.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from celery_reactive.core.limits import Limits
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.events import DispatchFailed, LoopGuarded, RecordsDispatched
from celery_reactive.planner.patience import Complaint
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.publish import BrokerUnavailableError, Message, MessagesRefusedError, Publisher
from celery_reactive.planner.window import MOST_A_MESSAGE, Window, records_of_work
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, instances, limiters, records
from celery_reactive.store.definitions import Controls
from celery_reactive.store.instances import WorkerFacts
from celery_reactive.store.limiters import Room

logger = logging.getLogger(__name__)

_ROUND_SIZE = 500
"""Records of one task looked at and marked together, and messages published together."""
_ROUNDS_SIZE = 4 * _ROUND_SIZE
"""Of all tasks: memory stays flat however many there are."""
_LEAST_ROUND_SIZE = 50
_FIRST_DEADLINE = timedelta(seconds=60)
_LONGEST_DEADLINE = timedelta(minutes=15)
_POLL_SECONDS, _POLL_A_TASK_SECONDS, _LONGEST_POLL_SECONDS = 0.5, 0.05, 5.0
"""What nothing has told of is found after so long; the more tasks, the later, so that an idle planner asks little."""
_BROKER_WAIT_SECONDS = 1.0
_REFUSED_WAIT_SECONDS = 5.0
"""For a task whose messages were refused; those of others go out meanwhile."""
_HELD_WAIT_SECONDS = 0.1
_LEAST_WAIT_SECONDS = 0.005
_AT_ONCE = 0.0
_WORKERS_SECONDS = 5.0
_FIRST_SAMPLE_SECONDS, _SAMPLE_SECONDS = 0.05, 0.5
_SAMPLE_SIZE = 32
_ROUNDS_FROM_A_BOUND = 10
_USUAL_SLOTS = 4
"""Of a queue of whose workers nothing is known."""


class _Flow:
    """What the dispatcher remembers of one task."""

    def __init__(self, task: ReactiveTask, queue: str | None) -> None:
        self.task = task
        self.queue = queue
        """Its name; None where only a router of the user's knows."""
        self.look_at = _AT_ONCE
        """When there may be something to send, on the monotonic clock."""
        self.overdue_at = 0.0
        """When to look again for what is overdue while others are due, on the monotonic clock."""
        self.is_backlogged = False
        """There is more due than one round takes."""
        self.bound: datetime | None = None
        """Under a backlog: what was due before that has been sent, but for what is due again."""
        self.rounds_from_bound = 0
        self.messages = 1
        """Into which what is due is put now, where their size is not fixed."""
        self.sent_keys: deque[RecordKey] = deque(maxlen=_SAMPLE_SIZE)
        self.limits = Limits()
        """In force when it was last looked at."""
        self.run_time: timedelta | None = None
        self.sampled_at = 0.0


class Dispatcher:
    """Sends what is due, for the leader of one term."""

    def __init__(
        self,
        runtime: Runtime,
        tasks: Sequence[PlannedTask],
        publisher: Publisher,
        *,
        ended: threading.Event,
    ) -> None:
        self._runtime = runtime
        self._publisher = publisher
        self._ended = ended
        urgent_first = sorted(tasks, key=lambda task: task.definition.priority, reverse=True)
        self._flows = {
            task.definition.name: _Flow(task.definition, publisher.queue_name(task.definition)) for task in urgent_first
        }
        self._windows = {flow.queue: Window(runtime.settings.max_in_flight) for flow in self._flows.values()}
        self._workers = _Workers(runtime)
        self._poll_seconds = min(max(_POLL_SECONDS, _POLL_A_TASK_SECONDS * len(tasks)), _LONGEST_POLL_SECONDS)
        self._kicked = threading.Event()
        self._lock = threading.Lock()
        self._asked_for: set[str] = set()
        """Tasks to look at now; others' threads say so."""
        self._complaint = Complaint("the broker")
        self._filter_complaint = Complaint("reactive_task_filter")
        self._unpublished: list[Message] = []
        self._refused_at: dict[str, float] = {}
        """When the broker last refused messages of a task, by the monotonic clock."""

    def most_a_message(self, task: ReactiveTask) -> int:
        """Return how many records of *task* one message names at most, also one that was sent a while ago."""
        if task.batch is not None:
            return task.batch.size
        if self._publisher.has_time_limit(task):
            return 1
        size = task.chunk or self._runtime.settings.chunk
        return MOST_A_MESSAGE if isinstance(size, str) else size

    def kick(self, tasks: Collection[str] | None = None) -> None:
        """Look now: something may have become due.

        Args:
            tasks: Names of those of which; one that is not this dispatcher's is ignored. None: of any.
        """
        with self._lock:
            self._asked_for.update(self._flows if tasks is None else self._flows.keys() & tasks)
        self._kicked.set()

    def step(self) -> None:
        """Send what is due, then wait until something is, or for a kick.

        Raises:
            StoreUnavailableError: MongoDB is away; what was marked is sent again after its deadline.
        """
        self._kicked.clear()
        with self._lock:
            for name in self._asked_for:
                self._flows[name].look_at = _AT_ONCE
            self._asked_for.clear()
        try:
            self._round()
        except BrokerUnavailableError as error:
            self._complaint.away(error)
            self._runtime.emit(DispatchFailed(str(error)))
            self._ended.wait(_BROKER_WAIT_SECONDS)
            return
        soonest = min((flow.look_at for flow in self._flows.values()), default=time.monotonic() + self._poll_seconds)
        wait = soonest - time.monotonic()
        if wait > 0:
            self._kicked.wait(max(wait, _LEAST_WAIT_SECONDS))

    # --- a round ---------------------------------------------------------------------------------

    def _round(self) -> None:
        self._clear_unpublished()
        flows = self._flows_with_something_due()
        if not flows:
            return
        controls = definitions.read_all(self._runtime.connection.globals(), [flow.task.name for flow in flows])
        free = [flow for flow in flows if not self._is_held(flow, controls[flow.task.name])]
        self._obey(free, controls)
        left = self._left(free)
        free = [flow for flow in free if left[flow.task.name] > 0]
        limit = max(_LEAST_ROUND_SIZE, min(_ROUND_SIZE, _ROUNDS_SIZE // max(1, len(free))))
        found: dict[str, list[Due]] = {}
        try:
            for flow in free:
                most = min(max(limit, flow.task.batch.size if flow.task.batch else 0), self._room_for(flow))
                most = int(min(most, left[flow.task.name]))
                # A limiter may leave less than a batch.
                found[flow.task.name] = self._find_due(flow, limit=_in_batches(flow.task, most) or most) if most else []
        finally:
            # What was found goes out although the database went away meanwhile.
            for batch in self._batches(found):
                self._publish(batch)
        for flow in free:
            # One that is held back, or has more, is looked at again in any case.
            if flow.look_at == _AT_ONCE and not flow.is_backlogged:
                self._look_when_due(flow)

    def _flows_with_something_due(self) -> list[_Flow]:
        """Return the tasks to look at: those something has happened to, and those whose next record is due by now."""
        now = time.monotonic()
        for flow in self._flows.values():
            if flow.look_at != _AT_ONCE and flow.look_at <= now:
                self._look_when_due(flow)
        return [flow for flow in self._flows.values() if flow.look_at == _AT_ONCE]

    def _look_when_due(self, flow: _Flow) -> None:
        """Find out when the next record of a task is due."""
        now = time.monotonic()
        wait = records.seconds_until_next_wake(self._runtime.connection.records(flow.task), flow.task.name)
        is_due = wait is not None and wait <= 0
        flow.look_at = (
            _AT_ONCE if is_due else now + min(self._poll_seconds if wait is None else wait, self._poll_seconds)
        )

    def _is_held(self, flow: _Flow, controls: Controls) -> bool:
        """Whether nothing of a task may be sent now, whatever is due; it is looked at again later then."""
        wait = 0.0
        if controls.paused:
            wait = self._poll_seconds
        elif controls.is_throttled:
            wait = max(controls.seconds_throttled, _LEAST_WAIT_SECONDS)
        elif self._is_held_by_filter(flow.task.name):
            wait = _POLL_SECONDS
        elif flow.task.name in self._refused_at:
            wait = self._refused_at[flow.task.name] + _REFUSED_WAIT_SECONDS - time.monotonic()
        if wait > 0:
            flow.look_at = time.monotonic() + min(wait, self._poll_seconds)
        return wait > 0

    def _is_held_by_filter(self, task: str) -> bool:
        """Ask `reactive_task_filter` (B-37); one that raises holds back, as nobody knows what it would have said."""
        allows = self._runtime.task_filter
        if allows is None:
            return False
        try:
            held = not allows(task)
        except Exception as error:  # noqa: BLE001 -- the user's code may raise anything
            self._filter_complaint.away(error)
            return True
        self._filter_complaint.back()
        return held

    def _obey(self, flows: list[_Flow], controls: Mapping[str, Controls]) -> None:
        """Take over limits and priorities in force, and put the most urgent tasks first (B-58)."""
        for flow in flows:
            flow.limits = controls[flow.task.name].limits_of(flow.task)
            self._publisher.prioritize(flow.task.name, controls[flow.task.name].priority_of(flow.task))
        flows.sort(key=lambda flow: controls[flow.task.name].priority_of(flow.task), reverse=True)

    def _left(self, flows: Iterable[_Flow]) -> dict[str, float]:
        """Return how many records of each task its limiter lets be sent; where none, it is looked at again later."""
        rooms = limiters.room(self._runtime.connection.globals(), {flow.task.name: flow.limits for flow in flows})
        return {flow.task.name: self._left_of(flow, rooms[flow.task.name]) for flow in flows}

    def _left_of(self, flow: _Flow, room: Room) -> float:
        if not flow.limits.is_any:
            return room.records
        left = room.records - self._in_flight(flow)
        if left <= 0 and flow.limits.concurrency is not None:
            # Who waits is woken, so it must look once more after it has said that it waits.
            room = limiters.await_room(self._runtime.connection.globals(), flow.task.name, flow.limits)
            left = room.records - self._in_flight(flow)
        if left <= 0:
            wait = _HELD_WAIT_SECONDS if room.records else room.seconds
            flow.look_at = time.monotonic() + min(wait, self._poll_seconds)
        return left

    def _in_flight(self, flow: _Flow) -> int:
        return records.count_in_flight(self._runtime.connection.records(flow.task), flow.task.name)

    def _find_due(self, flow: _Flow, *, limit: int) -> list[Due]:
        """Return what of a task is due, longest due first."""
        if flow.rounds_from_bound >= _ROUNDS_FROM_A_BOUND:
            # What is due again has a time of its own, which may lie before it.
            flow.bound, flow.rounds_from_bound = None, 0
        target, bound = self._runtime.connection.records(flow.task), flow.bound
        now = time.monotonic()
        overdue = bound is None and now >= flow.overdue_at
        due = records.find_due(
            target,
            flow.task.name,
            limit=limit,
            overdue=overdue,
            after=bound,
            loop_guard=flow.task.loop_guard,
        )
        if overdue:
            flow.overdue_at = now + _POLL_SECONDS
        if len(due) < limit:
            flow.is_backlogged, flow.bound = False, None
            if not due and bound is not None:
                return self._find_due(flow, limit=limit)
            return self._without_unfilled(flow, self._without_looped(flow, due))
        flow.is_backlogged = True
        flow.rounds_from_bound += 1
        return self._without_looped(flow, due)

    def _without_looped(self, flow: _Flow, due: list[Due]) -> list[Due]:
        """Take out what its own runs have made due too often in a row (B-64)."""
        limit = flow.task.loop_guard
        if limit is None or not any(one.looped for one in due):
            return due
        target = self._runtime.connection.records(flow.task)
        for one in due:
            if one.looped and records.guard(target, one.key, loop_guard=limit):
                self._runtime.emit(LoopGuarded(flow.task.name, str(one.key), limit))
        return [one for one in due if not one.looped]

    def _without_unfilled(self, flow: _Flow, due: list[Due]) -> list[Due]:
        """Hold back what does not fill a batch and may still wait for company (B-60); it is looked at again then."""
        batch = flow.task.batch
        in_company = [one for one in due if not one.alone]
        if batch is None or not (unfilled := len(in_company) % batch.size):
            return due
        held = in_company[-unfilled:]
        longest = max(one.waited for one in held)
        if longest >= batch.wait:
            return due
        # What fills it may become due without anybody telling.
        wait = min((batch.wait - longest).total_seconds(), self._poll_seconds)
        flow.look_at = time.monotonic() + wait
        return [one for one in due if one.alone] + in_company[:-unfilled]

    def _batches(self, found: Mapping[str, list[Due]]) -> Iterator[list[Message]]:
        """Mark what may be sent, task by task, and yield the messages that are to be published for it."""
        granted = self._granted({name: due for name, due in found.items() if due})
        batch: list[Message] = []
        try:
            for name, number in granted.items():
                if number and not self._ended.is_set():
                    batch += self._mark(self._flows[name], found[name][:number])
                if sum(len(message.due) for message in batch) >= _ROUND_SIZE:
                    yield batch
                    batch = []
        except StoreUnavailableError:
            # What has been marked counts as sent.
            yield batch
            raise
        yield batch

    def _mark(self, flow: _Flow, due: Sequence[Due]) -> list[Message]:
        records.mark_sent(
            self._runtime.connection.records(flow.task),
            [one.key for one in due],
            first_deadline=_FIRST_DEADLINE,
            longest_deadline=_LONGEST_DEADLINE,
        )
        size = self._fixed_size(flow) or math.ceil(len(due) / flow.messages)
        messages = [Message(flow.task, named) for named in chunks(due, size)]
        self._windows[flow.queue].sent(flow.task.name, [len(message.due) for message in messages])
        if flow.is_backlogged:
            flow.bound = max((one.due_at for one in due if one.due_at and not one.again), default=flow.bound)
        flow.sent_keys.extend(one.key for one in due[-_SAMPLE_SIZE:])
        return messages

    # --- how much --------------------------------------------------------------------------------

    def _granted(self, found: Mapping[str, list[Due]]) -> dict[str, int]:
        """Return how many of the records found may be sent, by task; a full queue is looked at again later."""
        granted: dict[str, int] = {}
        for queue, window in self._windows.items():
            demands = {name: len(due) for name, due in found.items() if self._flows[name].queue == queue}
            if demands:
                granted |= self._shares(queue, window, demands)
        return {name: granted[name] for name in found}

    def _room_for(self, flow: _Flow) -> int:
        """Return how many records of a task may be sent at most; where none, it is looked at again later."""
        window, name = self._windows[flow.queue], flow.task.name
        if flow.is_backlogged:
            self._sample(flow)
        room = self._room_known(flow, window)
        if not room:
            self._count(flow.queue, window)
            self._sample(flow)
            room = self._room_known(flow, window)
        if not room:
            flow.look_at = time.monotonic() + window.seconds_until_room(time.monotonic())
        return room if window.is_counted(name) else _ROUNDS_SIZE

    def _room_known(self, flow: _Flow, window: Window) -> int:
        if self._fixed_size(flow) is not None:
            return self._whole(flow, window, self._room(flow.queue, window, {flow.task.name: 1}))
        messages = self._room_for_messages(flow.queue, window)
        if not window.has_messages(flow.task.name):
            messages = max(messages, 1)
        return messages * records_of_work(flow.run_time)

    def _whole(self, flow: _Flow, window: Window, room: int) -> int:
        """Return how many records of a task may go where there is *room* for fewer than are due: full batches.

        A task that has nothing with the broker may send a message in any case: what others have there may stay for
        long, as nobody takes it, or other workers would.
        """
        whole = _in_batches(flow.task, room)
        return whole if whole or window.has_messages(flow.task.name) else self._usual_size(flow)

    def _shares(self, queue: str | None, window: Window, demands: Mapping[str, int]) -> dict[str, int]:
        for name, due in demands.items():
            if due > 1:
                self._sample(self._flows[name])
        if not all(window.is_counted(name) for name, flow in self._flows.items() if flow.queue == queue):
            self._count(queue, window)
        room = self._room(queue, window, demands)
        if room < sum(demands.values()):
            self._count(queue, window)
            room = self._room(queue, window, demands)
        shares = {
            name: share if share == demands[name] else min(self._whole(self._flows[name], window, share), demands[name])
            for name, share in window.share(demands, room).items()
        }
        shares = self._in_messages(queue, window, shares)
        for name, share in shares.items():
            if share < demands[name]:
                self._flows[name].look_at = time.monotonic() + window.seconds_until_room(time.monotonic())
        return shares

    def _in_messages(self, queue: str | None, window: Window, shares: Mapping[str, int]) -> dict[str, int]:
        """Return how many of *shares* fit into the messages that there is room for, where those grow with a backlog."""
        growing = {
            name: shares[name] for name in shares if shares[name] and self._fixed_size(self._flows[name]) is None
        }
        if not growing:
            return dict(shares)
        most = {name: records_of_work(self._flows[name].run_time) for name in growing}
        if sum(growing.values()) > self._room_for_messages(queue, window):
            self._count(queue, window)
        messages = window.share_messages(growing, self._room_for_messages(queue, window))
        for name, number in messages.items():
            self._flows[name].messages = max(number, 1)
        return {name: min(share, messages.get(name, share) * most.get(name, 1)) for name, share in shares.items()}

    def _room_for_messages(self, queue: str | None, window: Window) -> int:
        tasks = [name for name, flow in self._flows.items() if flow.queue == queue and self._fixed_size(flow) is None]
        return window.room_for_messages(tasks, slots=self._workers.slots(queue), now=time.monotonic())

    def _room(self, queue: str | None, window: Window, demands: Mapping[str, int]) -> int:
        # As many as it names under a backlog: what is with the broker must not shrink with what is left to send.
        a_message = max(self._usual_size(self._flows[name]) for name in demands)
        return window.room(slots=self._workers.slots(queue), a_message=a_message, now=time.monotonic())

    def _count(self, queue: str | None, window: Window) -> None:
        for name, flow in self._flows.items():
            if flow.queue == queue:
                counted = records.count_in_flight(self._runtime.connection.records(flow.task), name)
                window.counted(name, counted, at=time.monotonic())

    def _usual_size(self, flow: _Flow) -> int:
        """Return how many records a message of a task names under a backlog."""
        return self._fixed_size(flow) or records_of_work(flow.run_time)

    def _fixed_size(self, flow: _Flow) -> int | None:
        """Return how many records a message of a task names; None: that is found by what is due."""
        if flow.task.batch is not None:
            return flow.task.batch.size
        if self._publisher.has_time_limit(flow.task) or self._workers.are_limited(flow.queue):
            return 1
        size, most = flow.task.chunk or self._runtime.settings.chunk, flow.limits.concurrency
        if most is not None:
            # The records of a message run one after the other, and each would keep a place that it does not use yet.
            return 1
        return None if isinstance(size, str) else size

    def _sample(self, flow: _Flow) -> None:
        """Learn how long runs of a task take from what was sent a moment ago, where the size of its messages grows."""
        now = time.monotonic()
        if self._fixed_size(flow) is not None:
            return
        every = _FIRST_SAMPLE_SECONDS if flow.run_time is None else _SAMPLE_SECONDS
        if not flow.sent_keys or now - flow.sampled_at < every:
            return
        flow.sampled_at = now
        took = records.run_times(self._runtime.connection.records(flow.task), flow.sent_keys)
        if took:
            flow.run_time = sum(took, timedelta(0)) / len(took)

    # --- publishing ------------------------------------------------------------------------------

    def _publish(self, batch: Sequence[Message]) -> int:
        """Publish messages; return how many records they name.

        Raises:
            BrokerUnavailableError: What is in doubt has been noted, to be sent again.
        """
        if not batch:
            return 0
        try:
            self._publisher.publish_all(batch)
        except BrokerUnavailableError as error:
            self._unpublished += error.messages
            self._tell_published(batch, but=error.messages)
            raise
        except MessagesRefusedError as error:
            self._unpublished += error.messages
            self._refused_at |= dict.fromkeys(error.tasks, time.monotonic())
            self._runtime.emit(DispatchFailed(str(error), "refused"))
            sent = self._tell_published(batch, but=error.messages)
        else:
            sent = self._tell_published(batch)
        self._complaint.back()
        return sent

    def _tell_published(self, batch: Iterable[Message], *, but: Iterable[Message] = ()) -> int:
        left = {id(message) for message in but}
        sent: dict[str, list[Message]] = {}
        for message in batch:
            if id(message) not in left:
                sent.setdefault(message.task.name, []).append(message)
        for of_task in sent.values():
            self._runtime.emit(self._dispatched(of_task))
        return sum(len(message.due) for of_task in sent.values() for message in of_task)

    def _dispatched(self, messages: Sequence[Message]) -> RecordsDispatched:
        """Return what is told of messages of one task that were published."""
        task, due = messages[0].task, [one for message in messages for one in message.due]
        again = sum(one.again for one in due)
        return RecordsDispatched(task.name, len(due), len(messages), self._flows[task.name].queue, again)

    def _clear_unpublished(self) -> None:
        """Let what was not published be sent again, once the broker answers."""
        if not self._unpublished:
            return
        self._publisher.check()
        for name, task in {message.task.name: message.task for message in self._unpublished}.items():
            keys = [one.key for message in self._unpublished if message.task.name == name for one in message.due]
            records.mark_unsent(self._runtime.connection.records(task), keys)
            self._unpublished = [message for message in self._unpublished if message.task.name != name]


class _Workers:
    """The live workers, read every few seconds: how much they take at once."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: list[WorkerFacts] = []
        self._read_at = -_WORKERS_SECONDS

    def slots(self, queue: str | None) -> int:
        """Return how many messages the workers of *queue* run at once; of all workers where the queue is not known."""
        return sum(worker.slots for worker in self._of(queue)) or _USUAL_SLOTS

    def are_limited(self, queue: str | None) -> bool:
        """Whether the command line of any of them limits the time of a message (B-30)."""
        return any(worker.limited for worker in self._of(queue))

    def _of(self, queue: str | None) -> list[WorkerFacts]:
        now = time.monotonic()
        if now - self._read_at >= _WORKERS_SECONDS:
            self._read_at = now
            self._known = list(instances.live_workers(self._runtime.connection.globals()).values())
        return [worker for worker in self._known if queue is None or queue in worker.queues]


def _in_batches(task: ReactiveTask, number: int) -> int:
    """Return so much of *number* as fills batches; all of it where the task has none."""
    return number if task.batch is None else number - number % task.batch.size


def chunks(due: Iterable[Due], size: int) -> Iterator[list[Due]]:
    """Group *due* into messages of up to *size* records; one that must travel alone gets its own."""
    company: list[Due] = []
    for one in due:
        if one.alone:
            yield [one]
            continue
        company.append(one)
        if len(company) == size:
            yield company
            company = []
    if company:
        yield company

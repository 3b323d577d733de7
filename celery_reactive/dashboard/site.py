"""What all answers of one dashboard share: the app's parts, options, templates, and how a failure is told."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from celery_reactive.core.record import id_to_text
from celery_reactive.core.redaction import Redaction
from celery_reactive.core.task import ReactiveTask
from celery_reactive.dashboard import actions, wording
from celery_reactive.dashboard.access import USER, Action, Permission, RefusedError
from celery_reactive.dashboard.actions import Done, Hands
from celery_reactive.dashboard.guard import BODY, PERMISSION, is_api
from celery_reactive.dashboard.options import Options
from celery_reactive.dashboard.parameters import Fields
from celery_reactive.dashboard.recent import Recent
from celery_reactive.dashboard.selecting import key_text
from celery_reactive.dashboard.wording import ENOUGH
from celery_reactive.errors import (
    ConfigurationError,
    ReactiveError,
    StatementFailedError,
    StoreBusyError,
    StoreUnavailableError,
    UnknownTaskError,
)
from celery_reactive.management.error_groups import ErrorGroups, group_errors
from celery_reactive.management.listing import count_tasks
from celery_reactive.management.planners import Planners, read_planners
from celery_reactive.management.schedule import ScheduleEntry
from celery_reactive.management.selection import TaskFilters
from celery_reactive.management.status import Status, read_status
from celery_reactive.runtime import Runtime
from celery_reactive.store import activity, queries
from celery_reactive.store.errors import time_limit

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Response]

HERE = Path(__file__).parent
_RETRY_AFTER = {"retry-after": "5"}
_ACTING = "celery_reactive.acting"
"""Where the scope says that something is being changed for the request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a dashboard finds what it shows; asked at each request, so that it can be made before the app's tasks."""

    runtime: Callable[[], Runtime]
    queue_of: Callable[[ReactiveTask], str | None]
    """Returns the queue that a task's messages go to; None where only the message would tell."""
    metrics: Callable[[], bytes]
    """Returns the metrics in Prometheus' text format."""
    schedule: Callable[[], Sequence[ScheduleEntry]]
    """Returns the entries of Celery beat's schedule."""
    send_entry: Callable[[str], str]
    """Sends the task of an entry once, now; returns the id of the message. Raises `ConfigurationError`."""


class Site:
    """What the answers of one dashboard share."""

    def __init__(self, source: Source, options: Options) -> None:
        self.source = source
        self.options = options
        self.recent = Recent()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(options=options, wording=wording, id_to_text=id_to_text, key_text=key_text)
        self._templates.filters["redacted"] = self._masked

    def _masked(self, text: str) -> str:
        return self.redaction.text(text)

    @functools.cached_property
    def redaction(self) -> Redaction:
        """What is not shown: by the setting, and by the option of this dashboard.

        Raises:
            RefusedError: The app's settings or tasks are wrong.
        """
        return Redaction((*self.runtime.settings.redact, *self.options.redact))

    @property
    def runtime(self) -> Runtime:
        """The app's parts.

        Raises:
            RefusedError: The app's settings or tasks are wrong; the log says how.
        """
        try:
            return self.source.runtime()
        except ConfigurationError as error:
            logger.exception("the dashboard cannot be served, the app is not fit")
            raise RefusedError(503, "the app's settings or tasks are wrong; the server's log says how") from error

    def in_time(self, endpoint: Endpoint) -> Endpoint:
        """Return *endpoint* with one deadline for all of its statements: where MongoDB hangs, a page must not.

        Raises:
            StoreBusyError: From the endpoint that is returned, when the deadline has passed.
        """
        deadline = timedelta(seconds=self.options.deadline_seconds)

        @functools.wraps(endpoint)
        def answer(request: Request) -> Response:
            with time_limit(deadline):
                return endpoint(request)

        return answer

    def status(self) -> Status:
        """Return the state of the system, as it was a moment ago; counts up to `ENOUGH` where all take too long."""
        runtime, group = self.runtime, self.options.group
        counted = self.recent.get("counted", lambda: read_status(runtime, group=group, enough=ENOUGH))
        if all(number < ENOUGH for task in counted.tasks for number in task.counts.values()):
            return counted
        return self.recent.soon("status", lambda: read_status(runtime, group=group)) or counted

    def guarded(self) -> dict[str, int]:
        """Return how many records of which tasks the loop guard has paused, as it was a moment ago."""
        return self.recent.get("guarded", self._count_guarded)

    def _count_guarded(self) -> dict[str, int]:
        records = self.runtime.connection.records
        counts = {task.name: queries.count_guarded(records(task), task.name) for task in self.runtime.registry}
        return {name: count for name, count in counts.items() if count}

    def planners(self) -> Planners:
        """Return who leads and led, and the processes, as they were a moment ago."""
        runtime, group = self.runtime, self.options.group
        return self.recent.get("planners", lambda: read_planners(runtime, group=group))

    def total(self, filters: TaskFilters, counted: int) -> int | None:
        """Return how many records *filters* select: *counted* if that is all, else None until all are counted."""
        if counted < ENOUGH:
            return counted
        runtime = self.runtime
        return self.recent.soon(("total", repr(filters)), lambda: count_tasks(runtime, filters))

    def estimated_total(self) -> int:
        """Return about how many records there are altogether."""
        connection = self.runtime.connection
        places = {connection.namespace(task): connection.records(task) for task in self.runtime.registry}
        return sum(activity.estimated(records) for records in places.values())

    def grouped_errors(self, task: str | None) -> ErrorGroups:
        """Return the errors in groups, as they were a moment ago."""
        runtime = self.runtime
        masked = self.redaction.text
        return self.recent.get(("errors", task), lambda: group_errors(runtime, task=task, masked=masked))

    def perform(self, request: Request, action: Action, fields: Fields) -> Done:
        """Do what *request* may do and asks for, and forget what is out of date by that.

        Raises:
            RefusedError: The fields do not say what on.
            ReactiveError: What management raises.
        """
        by = f"{_who(request) or 'somebody'} (dashboard)"
        request.scope[_ACTING] = True
        try:
            done = actions.perform(Hands(self.runtime, by, self.source.send_entry), action, fields)
            logger.info("done by hand", extra={"action": action.value, "by": by, "done": done.sentence})
            return done
        finally:
            self.recent.forget()

    def page(self, request: Request, template: str, *, code: int = 200, **context: Any) -> Response:
        """Return a page; of one that is shown inside of another only that part."""
        permission: Permission = request.scope.get(PERMISSION, frozenset())
        known = {
            "request": request,
            "path": lambda path, **query: path_of(request, path, **query),
            "here": request.url.path,
            "query": request.url.query,
            "may": lambda action: Action(action) in permission,
            "is_read_only": not permission,
            "has_entered": PERMISSION in request.scope,
            "is_part": "hx-request" in request.headers and "hx-boosted" not in request.headers,
        }
        return HTMLResponse(self._templates.get_template(template).render(**known, **context), code)

    def refused_by(self, request: Request, error: ReactiveError) -> RefusedError:
        """Return how a failure of management is told to whoever asked."""
        match error:
            case UnknownTaskError():
                return RefusedError(404, str(error))
            case StoreBusyError():
                late = f"MongoDB has not answered within {self.options.deadline_seconds:g} s"
                why = "it hangs, or what is asked for takes longer: narrower filters help"
                return RefusedError(503, f"{late}{_doubt(request)}; {why}", _RETRY_AFTER)
            case StoreUnavailableError():
                # Its message names hosts, which are nobody's business here.
                reason = f"MongoDB does not answer{_doubt(request)}; the server's log says more"
                return RefusedError(503, reason, _RETRY_AFTER)
            case ConfigurationError() | StatementFailedError():
                return RefusedError(400, str(error))
            case _:
                return RefusedError(503, str(error), _RETRY_AFTER)

    def refusal(self, request: Request, refused: RefusedError) -> Response:
        """Return the answer to a request that is refused."""
        if is_api(request):
            return JSONResponse({"reason": refused.reason}, refused.status, refused.headers)
        answer = self.page(request, "refused.html", code=refused.status, refused=refused)
        answer.headers.update(refused.headers)
        return answer


def path_of(request: Request, path: str, **query: Any) -> str:
    """Return the address of a page of this dashboard, wherever it is mounted; what is None is left out of *query*."""
    pairs = [(name, value) for name, value in query.items() if value is not None]
    root = request.scope.get("root_path", "").rstrip("/")
    return f"{root}{path}" + (f"?{urlencode(pairs, doseq=True)}" if pairs else "")


def permission_of(request: Request) -> Permission:
    """Return what the guard found that *request* may do."""
    permission: Permission = request.scope[PERMISSION]
    return permission


def body_of(request: Request) -> bytes:
    """Return the body that the guard has read."""
    body: bytes = request.scope[BODY]
    return body


def _who(request: Request) -> str | None:
    """Return who asks: by the dashboard's credentials, or by those of the application that it is mounted in."""
    user = request.scope.get(USER) or getattr(request.scope.get("user"), "display_name", None)
    return str(user) if user else None


def _doubt(request: Request) -> str:
    """Return what is not known of an answer that did not come."""
    return "; it may have been done, look before you ask again" if _ACTING in request.scope else ""

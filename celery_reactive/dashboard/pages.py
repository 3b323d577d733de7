"""The pages, for people. Each reads what it shows by calls of management, and leaves the look to its template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from celery_reactive.core.doc_id import other_reading
from celery_reactive.core.error_template import template_of
from celery_reactive.core.record import RecordKey, id_to_text
from celery_reactive.core.states import RecordState
from celery_reactive.core.suggest import did_you_mean, listed
from celery_reactive.dashboard import actions, plain, selecting
from celery_reactive.dashboard.access import Action, RefusedError
from celery_reactive.dashboard.parameters import Parameters, doc_id_of, required
from celery_reactive.dashboard.selecting import FILTERS, PAGING, Listing, Target
from celery_reactive.dashboard.site import Site, body_of, path_of, permission_of
from celery_reactive.dashboard.wording import ENOUGH
from celery_reactive.errors import StatementFailedError
from celery_reactive.management import listing, operations, reconciling
from celery_reactive.management.error_groups import MOST_RECORDS
from celery_reactive.management.explain import explain
from celery_reactive.management.status import read_planning_failures
from celery_reactive.store import activity, definitions, queries

SPANS = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
}
"""How far back charts may go."""
DEFAULT_SPAN = "1h"
_MOST_CHARACTERS = 20_000
"""Of a snapshot shown."""
_MOST_CHANGES = 100
_MOST_FAILURES = 100
_MOST_OPERATIONS = 100


class Pages:
    """The endpoints of pages."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @property
    def routes(self) -> list[Route]:
        """Where each page is."""
        places = {
            "/": self.overview,
            "/records": self.records,
            "/record": self.record,
            "/errors": self.errors,
            "/planner": self.planner,
            "/operations": self.operations,
            "/schedule": self.schedule,
            "/find": self.find,
            "/confirm/{action}": self.confirm,
        }
        acting = Route("/actions/{action}", self._site.in_time(self.act), methods=["POST"])
        return [*(Route(path, self._site.in_time(page)) for path, page in places.items()), acting]

    def overview(self, request: Request) -> Response:
        """Show all tasks: what waits, runs and has failed, and charts of what was run lately."""
        asked = Parameters.of_query(request.scope["query_string"], ("span", "task"), drop_empty=True)
        span, task = asked.text("span") or DEFAULT_SPAN, asked.text("task")
        if span not in SPANS:
            raise RefusedError(400, f"span: expected one of {listed(SPANS)}{did_you_mean(span, SPANS)}")
        if task is not None:
            self._site.runtime.registry.get(task)
        status = self._site.status()
        return self._page(
            request,
            "overview.html",
            status=status,
            guarded=self._site.guarded(),
            reconciliations=status.reconciliations,
            span=span,
            spans=SPANS,
            task=task,
        )

    def records(self, request: Request) -> Response:
        """List records; every filter stands in the URL."""
        asked = Parameters.of_query(request.scope["query_string"], (*FILTERS, *PAGING), drop_empty=True)
        page = Listing.read(asked)
        meant = page.filters.meant()
        found = listing.get_tasks(
            self._site.runtime,
            meant,
            limit=page.limit,
            skip=page.skip,
            after=page.after,
            sort=page.order,
            enough=ENOUGH,
        )
        return self._page(
            request,
            "records.html",
            listing=page,
            other_id=other_reading(meant["doc_id"]) if "doc_id" in meant else None,
            found=found,
            states=list(RecordState),
            tasks=sorted(task.name for task in self._site.runtime.registry),
            selected=self._site.total(meant, found.total),
            total=self._site.estimated_total(),
            sortable=listing.SORTABLE,
            limits=(25, 50, 100, selecting.MOST_LIMIT),
        )

    def record(self, request: Request) -> Response:
        """Show one record: why it runs or not, what it saw, what has changed since, what became of it."""
        asked = Parameters.of_query(request.scope["query_string"], ("task", "doc_id"))
        runtime = self._site.runtime
        task = runtime.registry.get(required(asked, "task"))
        doc_id = doc_id_of(required(asked, "doc_id"))
        explanation = explain(runtime, task.name, doc_id, queue=self._site.source.queue_of(task))
        record = explanation.record
        return self._page(
            request,
            "record.html",
            task=task,
            key=RecordKey(task.name, doc_id),
            explanation=explanation,
            record=record,
            snapshot=None if record is None else self._shown(record.last_observed_values),
            changes=None if record is None else self._changes(task.name, doc_id, record.last_observed_values),
            history=[] if record is None else list(reversed(record.execution_history)),
            most_changes=_MOST_CHANGES,
            error_template=None if record is None else template_of(self._site.redaction.text(record.last_error or "")),
        )

    def _shown(self, values: Any) -> tuple[str, int]:
        """Return the beginning of values as JSON, and how many characters there are in all."""
        text = json.dumps(plain.user_value(self._site.redaction.value(values)), indent=2, ensure_ascii=False)
        return text[:_MOST_CHARACTERS], len(text)

    def _changes(self, name: str, doc_id: Any, seen: Any) -> list[tuple[str, str, str]] | None:
        """Return the watched paths whose values are others in the document now, None if there is no document."""
        runtime = self._site.runtime
        task = runtime.registry.get(name)
        stored = definitions.read(runtime.connection.globals(), name).applied_to(task)
        try:
            values = activity.watched_values(runtime.connection.source(task), stored.projection, doc_id)
        except StatementFailedError:
            # The explanation says what of the definition fails on the document.
            return []
        if values is None:
            return None
        redacted = self._site.redaction.value
        before, after = dict(_paths(redacted(seen))), dict(_paths(redacted(values)))
        different = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        return [(path, before.get(path, ""), after.get(path, "")) for path in different[:_MOST_CHANGES]]

    def errors(self, request: Request) -> Response:
        """Show errors in groups: what says the same but for ids and numbers."""
        asked = Parameters.of_query(request.scope["query_string"], ("task",), drop_empty=True)
        task = asked.text("task")
        runtime = self._site.runtime
        found = self._site.grouped_errors(task)
        tasks = sorted(each.name for each in runtime.registry)
        return self._page(request, "errors.html", found=found, task=task, tasks=tasks, most=MOST_RECORDS)

    def planner(self, request: Request) -> Response:
        """Show who leads, how far the changes are planned, what is under way, and what could not be planned."""
        Parameters.of_query(request.scope["query_string"], ())
        runtime = self._site.runtime
        status = self._site.status()
        return self._page(
            request,
            "planner.html",
            status=status,
            reconciliations=status.reconciliations,
            failures=read_planning_failures(runtime, limit=_MOST_FAILURES),
            planners=self._site.planners(),
        )

    def operations(self, request: Request) -> Response:
        """Show bulk work of the last week: how far it has come, by whom it was asked for, what it came to."""
        Parameters.of_query(request.scope["query_string"], ())
        found = operations.find(self._site.runtime, limit=_MOST_OPERATIONS)
        under_way = reconciling.under_way(self._site.runtime, group=self._site.options.group)
        return self._page(
            request, "operations.html", reconciliations=under_way, operations=found, most=_MOST_OPERATIONS
        )

    def schedule(self, request: Request) -> Response:
        """Show the entries of Celery beat's schedule, which a leading planner with `--beat` runs."""
        Parameters.of_query(request.scope["query_string"], ())
        entries = sorted(self._site.source.schedule(), key=lambda entry: entry.due_in)
        return self._page(request, "schedule.html", entries=entries)

    def find(self, request: Request) -> Response:
        """Lead from what was typed into the search field to the records of that document."""
        asked = Parameters.of_query(request.scope["query_string"], ("doc_id",), drop_empty=True)
        text = asked.text("doc_id")
        if text is None:
            return RedirectResponse(path_of(request, "/records"), 303)
        doc_id = doc_id_of(text)
        other = other_reading(doc_id)
        if other is not None and not listing.count_tasks(self._site.runtime, {"doc_id": doc_id}):
            as_text = doc_id_of(other)
            if listing.count_tasks(self._site.runtime, {"doc_id": as_text}):
                doc_id = as_text
        return RedirectResponse(path_of(request, "/records", doc_id=id_to_text(doc_id)), 303)

    def confirm(self, request: Request) -> Response:
        """Show what an action would do, and ask."""
        action = _action_of(request)
        actions.refuse_without(permission_of(request), action)
        asked = Parameters.of_query(request.scope["query_string"], actions.fields_of(action), drop_empty=True)
        if action in actions.BULK:
            target = Target.read(asked)
            preview = actions.preview(self._site.runtime, target)
            return self._page(request, "confirm.html", action=action, fields=target.pairs(), preview=preview)
        if action is Action.CANCEL:
            operation = operations.get(self._site.runtime, required(asked, "operation"))
            fields = [("operation", operation.id)]
            return self._page(request, "confirm.html", action=action, fields=fields, preview=None, of=operation.action)
        if action is Action.SEND:
            fields = [("entry", entry := required(asked, "entry"))]
            return self._page(request, "confirm.html", action=action, fields=fields, preview=None, of=entry)
        task = self._site.runtime.registry.get(required(asked, "task")).name
        fields = [("task", task)]
        if action in (Action.TRIGGER, Action.RESUME) and (doc_id := asked.text("doc_id")) is not None:
            fields.append(("doc_id", id_to_text(doc_id_of(doc_id))))
        return self._page(request, "confirm.html", action=action, fields=fields, preview=None, of=task)

    def act(self, request: Request) -> Response:
        """Do what was confirmed."""
        action = _action_of(request)
        actions.refuse_without(permission_of(request), action)
        fields = Parameters.of_query(body_of(request), actions.fields_of(action), drop_empty=True)
        done = self._site.perform(request, action, fields)
        return self._page(request, "done.html", done=done)

    def _page(self, request: Request, template: str, **context: Any) -> Response:
        """Return a page that knows the server's time."""
        now = queries.server_time(self._site.runtime.connection.globals())
        return self._site.page(request, template, now=now, **context)


def _action_of(request: Request) -> Action:
    name = request.path_params["action"]
    try:
        return Action(name)
    except ValueError:
        raise RefusedError(404, f"expected one of {listed(Action)}{did_you_mean(name, Action)}") from None


def _paths(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each value inside *values* that holds no others, and the value as text."""
    inner: Mapping[str, Any] | None = None
    match values:
        case Mapping() if values:
            inner = values
        case list() if values:
            inner = {str(number): value for number, value in enumerate(values)}
        case _:
            yield path or "(whole)", id_to_text(values)
    for name, value in (inner or {}).items():
        yield from _paths(value, f"{path}.{name}" if path else name)

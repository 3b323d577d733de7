"""The JSON API, for programs: what the pages show and do, by the same calls of management.

Its document is at `/openapi.json` (`openapi`). Answers that are no success are `{"reason": …}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from celery_reactive.core.suggest import did_you_mean, listed
from celery_reactive.dashboard import actions, openapi, plain
from celery_reactive.dashboard.access import Action, RefusedError
from celery_reactive.dashboard.pages import DEFAULT_SPAN, SPANS
from celery_reactive.dashboard.parameters import Body, Parameters, doc_id_of, required
from celery_reactive.dashboard.selecting import FILTERS, PAGING, Listing, Target
from celery_reactive.dashboard.site import Site, body_of, permission_of
from celery_reactive.management import listing, operations
from celery_reactive.management.activity import read_activity
from celery_reactive.management.explain import explain
from celery_reactive.management.status import read_planning_failures

_MOST_FAILURES = 1000


class Api:
    """The endpoints of the API."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @property
    def routes(self) -> list[Route]:
        """Where each endpoint is."""
        telling = {
            "status": self.status,
            "activity": self.activity,
            "records": self.records,
            "record": self.record,
            "errors": self.errors,
            "failures": self.failures,
            "operations": self.operations,
            "planner": self.planner,
            "schedule": self.schedule,
        }
        doing = {"preview": self.preview, **{action.value: self._doing(action) for action in Action}}
        in_time, base = self._site.in_time, openapi.BASE
        return [
            Route("/openapi.json", self.document),
            *(Route(f"{base}/{name}", in_time(endpoint)) for name, endpoint in telling.items()),
            *(Route(f"{base}/{name}", in_time(endpoint), methods=["POST"]) for name, endpoint in doing.items()),
        ]

    def document(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return JSONResponse(openapi.document(root=request.scope.get("root_path", "")))

    def status(self, request: Request) -> Response:
        """Return the state of the whole system."""
        _asked(request, ())
        return JSONResponse(plain.status(self._site.status(), self._site.redaction))

    def activity(self, request: Request) -> Response:
        """Return what was run lately, in steps of time."""
        asked = _asked(request, ("span", "task"))
        span, task = asked.text("span") or DEFAULT_SPAN, asked.text("task")
        if span not in SPANS:
            raise RefusedError(400, f"span: expected one of {listed(SPANS)}{did_you_mean(span, SPANS)}")
        runtime = self._site.runtime
        found = self._site.recent.get(
            ("activity", span, task), lambda: read_activity(runtime, span=SPANS[span], task=task)
        )
        return JSONResponse(plain.activity(found))

    def records(self, request: Request) -> Response:
        """Return a page of records."""
        page = Listing.read(_asked(request, (*FILTERS, *PAGING)))
        found = listing.get_tasks(
            self._site.runtime,
            page.filters.meant(),
            limit=page.limit,
            skip=page.skip,
            after=page.after,
            sort=page.order,
        )
        return JSONResponse(plain.page(found, self._site.redaction))

    def record(self, request: Request) -> Response:
        """Return one record and why it ran, will run or will not."""
        asked = _asked(request, ("task", "doc_id"))
        runtime = self._site.runtime
        task = runtime.registry.get(required(asked, "task"))
        doc_id = doc_id_of(required(asked, "doc_id"))
        found = explain(runtime, task.name, doc_id, queue=self._site.source.queue_of(task))
        record = None if found.record is None else plain.record(found.record, self._site.redaction)
        return JSONResponse({"record": record, "explanation": plain.explanation(found, self._site.redaction)})

    def errors(self, request: Request) -> Response:
        """Return errors in groups."""
        task = _asked(request, ("task",)).text("task")
        found = self._site.grouped_errors(task)
        return JSONResponse(plain.errors(found, self._site.redaction))

    def failures(self, request: Request) -> Response:
        """Return the documents that could not be planned."""
        asked = _asked(request, ("task", "limit"))
        limit = asked.number("limit", default=100, least=1, most=_MOST_FAILURES)
        found = read_planning_failures(self._site.runtime, task=asked.text("task"), limit=limit)
        return JSONResponse({"items": [plain.failure(one, self._site.redaction) for one in found]})

    def operations(self, request: Request) -> Response:
        """Return bulk work of the last week, the newest first."""
        asked = _asked(request, ("limit",))
        limit = asked.number("limit", default=50, least=1, most=operations.MAX_LISTED)
        found = operations.find(self._site.runtime, limit=limit)
        return JSONResponse({"items": [plain.operation(one, self._site.redaction) for one in found]})

    def planner(self, request: Request) -> Response:
        """Return who leads and led, the processes, and how far back the oplog reaches."""
        _asked(request, ())
        return JSONResponse(plain.planners(self._site.planners()))

    def schedule(self, request: Request) -> Response:
        """Return the entries of Celery beat's schedule."""
        _asked(request, ())
        return JSONResponse({"items": [plain.schedule_entry(one) for one in self._site.source.schedule()]})

    def preview(self, request: Request) -> Response:
        """Return what `retry` or `discard` with the same body would touch; nothing is changed."""
        _asked(request, ())
        target = Target.read(Body(body_of(request), actions.fields_of(Action.RETRY)))
        found = actions.preview(self._site.runtime, target)
        sample = [plain.record(one, self._site.redaction) for one in found.sample]
        return JSONResponse({"count": found.count, "sample": sample})

    def _doing(self, action: Action) -> Any:
        def act(request: Request) -> Response:
            actions.refuse_without(permission_of(request), action)
            _asked(request, ())
            fields = Body(body_of(request), actions.fields_of(action))
            return JSONResponse(plain.done(self._site.perform(request, action, fields)))

        return act


def _asked(request: Request, known: Sequence[str]) -> Parameters:
    return Parameters.of_query(request.scope["query_string"], known)

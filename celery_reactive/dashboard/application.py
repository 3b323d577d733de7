"""Puts the dashboard together: guard, pages, API, static files, answers to failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from celery_reactive.dashboard.access import Access, RefusedError
from celery_reactive.dashboard.api import Api
from celery_reactive.dashboard.guard import Guard
from celery_reactive.dashboard.options import Options
from celery_reactive.dashboard.pages import Pages
from celery_reactive.dashboard.site import HERE, Site, Source
from celery_reactive.errors import ReactiveError
from celery_reactive.metrics.expose import CONTENT_TYPE

logger = logging.getLogger(__name__)

_SERVER_ERROR = 500
"""Statuses from here on are failures of ours; below, the request is wrong."""


def make_application(source: Source, options: Mapping[str, Any]) -> ASGIApp:
    """Return the dashboard as an ASGI application.

    Args:
        source: Where it finds what it shows; asked at the first request.
        options: As `Options` lists them.

    Raises:
        ArgumentError: An option is wrong.
    """
    checked = Options.read(options)
    site = Site(source, checked)
    access = Access(
        users=checked.users,
        tokens=checked.tokens,
        authorize=checked.authorize,
        read_only=checked.read_only,
    )
    static = Mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    inner = Starlette(
        routes=[*Pages(site).routes, *Api(site).routes, Route("/metrics", _metrics(site)), static],
        exception_handlers=_answers(site),
    )
    return Guard(inner, access, site.refusal)


def _metrics(site: Site) -> Callable[[Request], Response]:
    """Return what answers Prometheus, for whoever may look at the dashboard (B-55)."""

    def answer(_request: Request) -> Response:
        return Response(site.recent.get("metrics", site.source.metrics), headers={"content-type": CONTENT_TYPE})

    return answer


def _answers(site: Site) -> dict[Any, Any]:
    """Return how each kind of failure is answered."""

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)  # noqa: S101 -- registered so below
        return site.refusal(request, error)

    def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, ReactiveError)  # noqa: S101 -- registered so below
        refused = site.refused_by(request, error)
        path, said = request.url.path, site.redaction.text(str(error))
        level = logging.WARNING if refused.status >= _SERVER_ERROR else logging.INFO
        logger.log(level, "the dashboard could not answer %s: %s", path, said, extra={"path": path, "error": said})
        refused.reason = site.redaction.text(refused.reason)
        return site.refusal(request, refused)

    def not_there(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 -- registered so below
        return site.refusal(request, RefusedError(error.status_code, error.detail, error.headers))

    def broken(request: Request, _: Exception) -> Response:
        return site.refusal(request, RefusedError(500, "the dashboard failed; the server's log says how"))

    return {RefusedError: refused, ReactiveError: failed, HTTPException: not_there, Exception: broken}

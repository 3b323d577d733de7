"""What every request passes before a page sees it: who asks, from where, how much; and what every answer carries.

Wraps the application of pages and API. Must let nothing through that changes anything unless the browser says that it
comes from this very site, or a program says it in a way that no page of another site can.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_reactive.dashboard.access import Access, RefusedError
from celery_reactive.errors import ConfigurationError

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024
"""Of a request's body."""
PERMISSION, BODY = "celery_reactive.permission", "celery_reactive.body"
"""Where pages find in the scope what the request may do, and its body."""
API = "/api/"

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

RefusalPage = Callable[[Request, RefusedError], Response]


class Guard:
    """An ASGI application that lets through what may pass."""

    def __init__(self, inner: ASGIApp, access: Access, refusal_page: RefusalPage) -> None:
        self._inner = inner
        self._access = access
        self._refusal_page = refusal_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass the server's start and stop on."""
        match scope["type"]:
            case "http":
                # Scripts and styles may be kept and asked after; what pages show is nobody's to keep.
                cache = "no-cache" if "/static/" in scope["path"] else "no-store"
                await self._answer(scope, receive, _with_headers(send, cache))
            case "lifespan":
                await self._inner(scope, receive, send)
            case _:
                await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            scope[PERMISSION] = await self._access.permission(request)
            if request.method not in _SAFE:
                _refuse_other_sites(request)
                scope[BODY] = await _body(request)
        except RefusedError as refused:
            await self._refusal(request, refused)(scope, receive, send)
        except ConfigurationError:
            logger.exception("authorize() of the dashboard has not decided")
            undecided = RefusedError(503, "this dashboard's authorize() is wrong; the server's log says how")
            await self._refusal(request, undecided)(scope, receive, send)
        except ClientDisconnect:
            return
        else:
            await self._inner(scope, receive, send)

    def _refusal(self, request: Request, refused: RefusedError) -> Response:
        if is_api(request):
            return JSONResponse({"reason": refused.reason}, refused.status, refused.headers)
        return self._refusal_page(request, refused)


def is_api(request: Request) -> bool:
    """Whether a program asks, rather than a person."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path.startswith(API) or path in {"/openapi.json", "/metrics"}


def _refuse_other_sites(request: Request) -> None:
    """Refuse a request that a page of another site may have caused, in the name of whoever looks at that page."""
    expected = _JSON if is_api(request) else _FORM
    got = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if got != expected:
        raise RefusedError(415, f"expected the content type {expected}")
    fetched_from = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if fetched_from is not None:
        is_own = fetched_from == "same-origin"
    elif origin is not None:
        is_own = urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower() != ""
    else:
        # No browser: those send an origin with each request of this content type, after asking.
        is_own = expected == _JSON
    if not is_own:
        raise RefusedError(403, "expected a request of this site's own: it seems to come from another one")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise RefusedError(413, f"expected at most {MOST_BYTES} bytes")
    return bytes(body)


def _with_headers(send: Send, cache: str) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", cache)
        await send(message)

    return sending

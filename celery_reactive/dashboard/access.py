"""Who may do what: credentials, the user's own `authorize`, and nothing but this machine where there is neither.

Called by the guard before anything else of a request is looked at, for every request, static files too.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.errors import ConfigurationError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_LOOPBACK_CLIENTS = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
_PORT = re.compile(r":\d*$")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Action(StrEnum):
    """What can be done by hand; each is allowed by itself."""

    RETRY = "retry"
    DISCARD = "discard"
    TRIGGER = "trigger"
    PAUSE = "pause"
    RESUME = "resume"
    THROTTLE = "throttle"
    RECONCILE = "reconcile"
    LIMIT = "limit"
    CANCEL = "cancel"
    SEND = "send"


USER = "celery_reactive.user"
"""Where the scope says who asks, if that is known."""

Permission = frozenset[Action]
"""Actions that are allowed to somebody who may look; who may not look has no permission, None."""

ALL: Permission = frozenset(Action)
READ_ONLY: Permission = frozenset()

Authorize = Callable[[Request], Any]
"""Returns `"all"` or True, `"read-only"`, names of actions, or None or False for nothing; also as an awaitable."""


class RefusedError(Exception):
    """The request is not answered.

    Attributes:
        status: HTTP status.
        reason: Why, for the person who asks.
        headers: Of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class Access:
    """Decides what a request may do."""

    def __init__(
        self,
        *,
        users: Mapping[str, str],
        tokens: Mapping[str, str | None],
        authorize: Authorize | None,
        read_only: bool,
    ) -> None:
        """Take the credentials and the user's own decision.

        Args:
            users: Passwords by name, for basic authentication.
            tokens: Names by bearer token; None: it has none.
            authorize: The user's decision, asked after the credentials; None: who comes this far may do all.
            read_only: Whether nobody may change anything.
        """
        self._users = {name.encode(): password.encode() for name, password in users.items()}
        self._tokens = {token.encode(): name for token, name in tokens.items()}
        self._authorize = authorize
        self._read_only = read_only

    @property
    def is_protected(self) -> bool:
        """Whether somebody decides: credentials or `authorize`. Without, only this machine is answered."""
        return bool(self._users or self._tokens or self._authorize)

    async def permission(self, request: Request) -> Permission:
        """Return what *request* may do.

        Raises:
            RefusedError: It may not even look.
        """
        if not self.is_protected:
            _refuse_strangers(request)
        if self._users or self._tokens:
            self._check_credentials(request)
        granted = ALL if self._authorize is None else _permission_of(await _asked(self._authorize, request))
        if granted is None:
            raise RefusedError(403, "you may not look at this dashboard: its authorize() says so")
        return READ_ONLY if self._read_only else granted

    def _check_credentials(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (token := self._token(given.strip().encode())) is not None:
            request.scope[USER] = self._tokens[token]
            return
        if scheme.lower() == "basic" and (user := self._user(given.strip())) is not None:
            request.scope[USER] = user
            return
        challenge = 'Basic realm="celery-reactive", charset="UTF-8"' if self._users else "Bearer"
        raise RefusedError(401, "expected a user and password, or a bearer token", {"www-authenticate": challenge})

    def _token(self, given: bytes) -> bytes | None:
        """Return the token that is given, None if it is none."""
        # All are compared, so that the time tells nothing of which there are.
        same = [token for token in self._tokens if hmac.compare_digest(given, token)]
        return same[0] if same else None

    def _user(self, given: str) -> str | None:
        """Return whose name and password are given, None if they are nobody's."""
        try:
            name, _, password = base64.b64decode(given, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        known = self._users.get(name)
        # Compared in any case, so that the time tells nothing of which names there are.
        is_known = hmac.compare_digest(password, known or b"\0") and known is not None
        return name.decode() if is_known else None


def _refuse_strangers(request: Request) -> None:
    """Refuse whoever does not come from this machine, under its own name: a page elsewhere may rename its host."""
    client = request.client.host if request.client else None
    host = _PORT.sub("", request.headers.get("host", "")).lower()
    is_forwarded = any(header in request.headers for header in _FORWARDED)
    if client not in _LOOPBACK_CLIENTS or host not in _LOOPBACK_NAMES or is_forwarded:
        raise RefusedError(
            403,
            "without credentials this dashboard answers only this machine, at localhost; "
            "to open it give dashboard() users=, tokens= or authorize=",
        )


async def _asked(authorize: Authorize, request: Request) -> Any:
    if inspect.iscoroutinefunction(authorize):
        return await authorize(request)
    # It may wait, for a database of users perhaps.
    answer = await run_in_threadpool(authorize, request)
    return await answer if isinstance(answer, Awaitable) else answer


def _permission_of(answer: Any) -> Permission | None:
    match answer:
        case True | "all":
            return ALL
        case "read-only":
            return READ_ONLY
        case None | False:
            return None
        case set() | frozenset() | list() | tuple():
            return frozenset(_action(name) for name in answer)
        case _:
            expected = f"expected 'all', 'read-only', names of actions or None, got {shown(answer)}"
            raise ConfigurationError("authorize", [expected])


def _action(name: Any) -> Action:
    try:
        return Action(name)
    except ValueError:
        problem = f"expected some of {listed(Action)}, got {shown(name)}{did_you_mean(str(name), Action)}"
        raise ConfigurationError("authorize", [problem]) from None

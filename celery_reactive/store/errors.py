"""Translation of the driver's errors into this package's; the original stays as `__cause__`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import ParamSpec, TypeVar

import pymongo
from bson.errors import BSONError
from pymongo.client_session import ClientSession
from pymongo.errors import (
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WaitQueueTimeoutError,
    WTimeoutError,
)

from celery_reactive.errors import StatementFailedError, StoreBusyError, StoreUnavailableError

P = ParamSpec("P")
R = TypeVar("R")

_LOCKED = frozenset({24, 50, 112, 251, 262})
"""LockTimeout, MaxTimeMSExpired, WriteConflict, NoSuchTransaction, ExceededTimeLimit."""
_TRANSIENT = frozenset({6, 7, 43, 63, 64, 89, 91, 133, 134, 149, 175, 189, 202, 215, 234, 237, 246, 9001, 10107})
_UNAUTHORIZED = 13
_REFUSED_COMMAND = re.compile(r'not authorized on (\S+) to execute command \{ (\w+): (?:"([^"]*)")?')
_DRIVER_DETAILS = re.compile(r" \(configured timeouts:[^)]*\)|, Timeout: .*$", re.DOTALL)
_TRANSIENT_SHUTDOWN = frozenset({11600, 11601, 11602, 13388, 13435, 13436})


def translated(statement: Callable[P, R]) -> Callable[P, R]:
    """Make *statement* raise this package's errors instead of the driver's."""

    @functools.wraps(statement)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with translating():
            return statement(*args, **kwargs)

    return call


@contextmanager
def translating() -> Iterator[None]:
    """Raise this package's errors instead of the driver's inside the block.

    Raises:
        StoreBusyError: A lock or a time limit stopped the statement.
        StoreUnavailableError: MongoDB did not answer; the statement may have been applied.
        StatementFailedError: MongoDB refused the statement; repeating it does not help.
    """
    try:
        yield
    except PyMongoError as error:
        raise translate(error) from error
    except (BSONError, OverflowError, UnicodeEncodeError) as error:
        raise StatementFailedError(str(error), code=None) from error


def translate(error: PyMongoError) -> StoreUnavailableError | StatementFailedError:
    """Return this package's error for the driver's *error*."""
    code = getattr(error, "code", None)
    if isinstance(error, ExecutionTimeout) or code in _LOCKED or (error.timeout and not _is_lost(error)):
        return StoreBusyError(_said(error))
    if _is_lost(error) or code in _TRANSIENT or code in _TRANSIENT_SHUTDOWN:
        return StoreUnavailableError(_said(error))
    if isinstance(error, OperationFailure) and code == _UNAUTHORIZED:
        return StatementFailedError(_missing_right(error), code=code)
    if isinstance(error, OperationFailure | DocumentTooLarge):
        return StatementFailedError(_said(error), code=code)
    return StoreUnavailableError(_said(error))


def _said(error: PyMongoError) -> str:
    """Return what the server said; the driver would add its whole answer, or all that it knows of all servers."""
    details = getattr(error, "details", None)
    if isinstance(details, Mapping) and details.get("errmsg"):
        return str(details["errmsg"])
    return _DRIVER_DETAILS.sub("", str(error))


def _missing_right(error: OperationFailure) -> str:
    """Return what the user may not do and what to do about it; the server shows the whole statement."""
    said = _said(error)
    refused = _REFUSED_COMMAND.match(said)
    if refused is None:
        return said
    database, command, collection = refused.groups()
    where = f"{database}.{collection}" if collection else database
    return (
        f"not authorized: expected the right to run {command} on {where}, which the user of the connection string "
        f"does not have; grant it the role readWrite on {database}"
    )


def _is_lost(error: PyMongoError) -> bool:
    return isinstance(error, ConnectionFailure | WTimeoutError | WaitQueueTimeoutError) or (
        error.has_error_label("RetryableWriteError") or error.has_error_label("TransientTransactionError")
    )


@contextmanager
def time_limit(limit: timedelta) -> Iterator[None]:
    """Limit the statements of the block, on the server and on the wire, to *limit* altogether.

    The server stops a statement at about the moment at which the driver stops waiting for it, so that either may be
    first. Both mean the same here; a server that is frozen is found by the next statement without a limit.

    Raises:
        StoreBusyError: The limit has passed. What was asked may have been done.
    """
    try:
        with pymongo.timeout(limit.total_seconds()):
            yield
    except StoreUnavailableError as error:
        if isinstance(error.__cause__, NetworkTimeout):
            raise StoreBusyError(str(error)) from error.__cause__
        raise


@contextmanager
def driver_errors_within(session: ClientSession | None) -> Iterator[None]:
    """Let the driver's error through inside a caller's transaction: the driver repeats it by the error's label."""
    try:
        yield
    except StoreUnavailableError as error:
        if session is not None and session.in_transaction and isinstance(error.__cause__, PyMongoError):
            raise error.__cause__ from None
        raise

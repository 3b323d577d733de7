"""What a test of reactive tasks needs: planner and worker in this process, rest to wait for, time that need not pass.

For test suites, those of users and ours; `pytest_celery_reactive` makes fixtures of it. The semantics are the real
ones: a real MongoDB, the planner and the worker that run in production, real messages. A test writes documents, waits
until everything is at rest, and looks.

`inline` runs planner and worker; `configured` gives an app other settings for a while; `pace` makes them quick;
`waiting` waits for anything, `rest` for all tasks; `errors` says what went wrong; `due` ends a wait.

Nothing of the package may import this.
"""

from __future__ import annotations

from celery_reactive.testing.configured import configured
from celery_reactive.testing.due import make_due
from celery_reactive.testing.errors import assert_no_errors
from celery_reactive.testing.inline import run_inline
from celery_reactive.testing.pace import fast
from celery_reactive.testing.rest import wait_until_idle
from celery_reactive.testing.waiting import wait_until

__all__ = [
    "assert_no_errors",
    "configured",
    "fast",
    "make_due",
    "run_inline",
    "wait_until",
    "wait_until_idle",
]

"""Delivers each event to the partner's webhook, at least once, no faster than the partner wants it.

`celery -A webhooks worker` and `celery-reactive -A webhooks planner` start from here.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from celery import Celery
from celery.exceptions import Reject
from signing import signed

from celery_reactive import RetryPolicy, TaskContext, reactive_task

app = Celery("webhooks")
app.conf.webhook_url = os.environ.get("WEBHOOK_URL", "http://127.0.0.1:8000/")
app.conf.webhook_secret = os.environ.get("WEBHOOK_SECRET", "for trying things out only")

PAUSE = timedelta(seconds=30)
"""Where the partner asks for a pause and does not say how long."""
LONGEST_PAUSE = timedelta(hours=1)
"""More is not believed: a slip in a header must not stop deliveries for a year."""


@reactive_task(
    collection="events",
    watch_projection={"_id": 1},
    debounce=0,
    retry_policy=RetryPolicy.exponential(min="5s", max="1h", max_duration="3d", jitter=0.2),
    max_concurrency=10,
)
@app.task(time_limit=60)
def deliver(ctx: TaskContext) -> None:
    """Send an event, and do what the answer asks for."""
    event = ctx.get_document()
    answer = _post(event)
    if _wants_a_pause(answer):
        pause = _pause(answer.headers.get("Retry-After", ""))
        ctx.throttle_all(pause)  # no worker knocks meanwhile
        ctx.defer_current(pause)  # this event comes back then, no attempt spent
    elif answer.is_client_error:
        raise Reject(f"{answer.status_code}: {answer.text[:200]}")  # never as it is: no further attempt
    else:
        answer.raise_for_status()  # a 5xx is a failed attempt, and so is a partner who cannot be reached


def _post(event: dict[str, Any]) -> httpx.Response:
    body = json.dumps({"type": event["type"], "timestamp": event["at"].isoformat(), "data": event["data"]}).encode()
    headers = signed(str(event["_id"]), body, app.conf.webhook_secret.encode())
    return httpx.post(app.conf.webhook_url, content=body, headers=headers, timeout=20)


def _wants_a_pause(answer: httpx.Response) -> bool:
    return answer.status_code == 429 or (answer.status_code == 503 and "Retry-After" in answer.headers)


def _pause(retry_after: str) -> timedelta:
    """Return the pause that a `Retry-After` asks for: a number of seconds or a date."""
    if retry_after.isdecimal():
        return timedelta(seconds=min(int(retry_after), LONGEST_PAUSE.total_seconds()))
    try:
        pause = parsedate_to_datetime(retry_after) - datetime.now(UTC)
    except (TypeError, ValueError):
        return PAUSE
    return min(max(pause, timedelta(seconds=1)), LONGEST_PAUSE)

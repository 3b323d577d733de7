"""Brings all customers to the newest shape, slowly, while the application goes on writing.

`celery -A migration worker` and `celery-reactive -A migration planner` start from here. Must never overwrite what
somebody else has written meanwhile.
"""

from collections.abc import Callable, Sequence

from celery import Celery
from shapes import STEPS, Customer, current

from celery_reactive import Evolution, TaskContext, reactive_task


def declare(app: Celery, steps: Sequence[Callable[[Customer], Customer]] = STEPS) -> None:
    """Declare the migration: one step more, and all customers are looked at once more."""

    @reactive_task(
        collection="customers",
        watch_projection={"_id": 1},
        debounce=0,
        rate_limit="200/s",
        priority=0,
        evolution=Evolution(handler_version=len(steps), on_handler_version_change="reprocess_all"),
    )
    @app.task(name="migrate", shared=False, time_limit=60)
    def migrate(ctx: TaskContext) -> None:
        old = ctx.get_document()
        new = current(old, steps)
        if new == old:
            return
        unchanged = {"_id": ctx.doc_id, "$expr": {"$eq": ["$$ROOT", {"$literal": old}]}}
        customers = ctx.client.get_default_database().customers
        if not customers.replace_one(unchanged, new).matched_count:
            ctx.defer_current("1s")


app = Celery("migration")
declare(app)

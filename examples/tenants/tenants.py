"""One declaration for all tenants: each has a database of its own, and so a task, limits and a pause of its own.

`celery -A tenants worker`, and `celery-reactive -A tenants planner --group GROUP` for each group, start from here.
Which tenants there are is read once, when a process starts.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery

from celery_reactive import TaskContext, reactive_task

TENANTS = Path(__file__).with_name("tenants.toml")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the options of each tenant, by its name."""
    return tomllib.loads(path.read_text())


def declare(app: Celery, tenants: Mapping[str, Mapping[str, Any]]) -> None:
    """Declare a task for each tenant; a wrong option in the file is an error that names tenant and option."""
    for tenant, options in tenants.items():
        _declare_for(app, tenant, options)


def _declare_for(app: Celery, tenant: str, options: Mapping[str, Any]) -> None:
    name = f"invoice.{tenant}"

    @reactive_task(
        task=name,
        collection="orders",
        filter={"status": "paid"},
        watch_projection={"amount": 1},
        debounce="200ms",
        **options,
    )
    @app.task(name=name, shared=False)
    def invoice(ctx: TaskContext) -> None:
        """Keep the invoice of a paid order as the order is."""
        order = ctx.get_document()
        invoices = ctx.client[options["database"]].invoices
        invoices.update_one({"_id": order["_id"]}, {"$set": {"amount": order["amount"]}}, upsert=True)
        print(f"{tenant}: invoice over {order['amount']}")


app = Celery("tenants")
declare(app, read(TENANTS))

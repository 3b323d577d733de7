"""Tests of tenants beside each other, to copy: `pip install -r requirements.txt`, then `pytest`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from celery import Celery
from pymongo.database import Database
from tenants import TENANTS, declare, read
from tenants import app as shipped

from celery_reactive import ConfigurationError, Reactive
from celery_reactive.testing import assert_no_errors, configured, fast, run_inline, wait_until, wait_until_idle

Deployed = Callable[..., AbstractContextManager[Celery]]


@pytest.fixture
def databases(reactive_database: Database[Any]) -> Iterator[Mapping[str, Database[Any]]]:
    """A database of the test's own for each tenant."""
    client = reactive_database.client
    databases = {tenant: client[f"{reactive_database.name}_{tenant}"] for tenant in ("acme", "globex")}
    yield databases
    for database in databases.values():
        client.drop_database(database)


@pytest.fixture
def deployed(databases: Mapping[str, Database[Any]], reactive_database_url: str) -> Deployed:
    """A deployment with options for some tenants: planners and a worker run inside the block."""

    @contextmanager
    def deploy(**tenants: Mapping[str, Any]) -> Iterator[Celery]:
        app = Celery("tenants", set_as_current=False)
        declare(app, {name: {"database": databases[name].name, **options} for name, options in tenants.items()})
        with configured(app, reactive_mongodb_url=reactive_database_url), fast(), run_inline(app):
            yield app

    return deploy


def test_each_tenant_has_its_own(deployed: Deployed, databases: Mapping[str, Database[Any]]) -> None:
    """Orders, invoices and records stay in the tenant's database, whichever group of planners plans them."""
    with deployed(acme={"group": "large"}, globex={"group": "small"}) as app:
        order(databases["acme"], 1, 2)
        order(databases["globex"], 3)
        wait_until_idle(app)
        assert (invoiced(databases["acme"]), invoiced(databases["globex"])) == ([1, 2], [3])
        assert databases["globex"].orders_tasks.distinct("task") == ["invoice.globex"]
        assert_no_errors(app)


def test_limits_count_for_each_tenant(deployed: Deployed, databases: Mapping[str, Database[Any]]) -> None:
    """A tenant that has used up its rate holds nobody else up, and its orders wait."""
    with deployed(acme={}, globex={"rate_limit": "2/m"}) as app:
        order(databases["globex"], *range(5))
        order(databases["acme"], *range(5))
        wait_until_idle(app, only="invoice.acme")
        assert len(invoiced(databases["acme"])) == 5
        wait_until(lambda: len(invoiced(databases["globex"])) == 2)
        assert Reactive.of(app).count_tasks(task="invoice.globex", status="pending") == 3

        Reactive.of(app).limit("invoice.globex", rate="unlimited")
        wait_until_idle(app)
        assert len(invoiced(databases["globex"])) == 5
        assert_no_errors(app)


def test_a_tenant_can_be_paused(deployed: Deployed, databases: Mapping[str, Database[Any]]) -> None:
    """For maintenance of its database, say; it catches up afterwards."""
    with deployed(acme={}, globex={}) as app:
        Reactive.of(app).pause("invoice.globex")
        order(databases["globex"], 1)
        order(databases["acme"], 1)
        wait_until_idle(app, only="invoice.acme")
        assert (invoiced(databases["acme"]), invoiced(databases["globex"])) == ([1], [])
        Reactive.of(app).resume("invoice.globex")
        wait_until_idle(app)
        assert invoiced(databases["globex"]) == [1]


def test_a_tenant_is_added_by_a_restart(deployed: Deployed, databases: Mapping[str, Database[Any]]) -> None:
    """What it has ordered before is invoiced too, and one that was left out for a while catches up."""
    order(databases["globex"], 1)
    with deployed(acme={}) as app:
        wait_until_idle(app)
        assert invoiced(databases["globex"]) == []
    with deployed(acme={}, globex={}) as app:
        wait_until_idle(app)
        assert invoiced(databases["globex"]) == [1]
    with deployed(acme={}):
        order(databases["globex"], 2)
    with deployed(acme={}, globex={}) as app:
        wait_until_idle(app)
        assert invoiced(databases["globex"]) == [1, 2]


def test_the_file_is_sound() -> None:
    """A task for each tenant, and databases that are not shared."""
    tenants = read(TENANTS)
    assert {task for task in shipped.tasks if task.startswith("invoice.")} == {f"invoice.{name}" for name in tenants}
    assert len({options["database"] for options in tenants.values()}) == len(tenants)


def test_a_mistake_in_the_file_is_told() -> None:
    """By the tenant's name, and what may have been meant."""
    with pytest.raises(ConfigurationError, match=r"invoice\.acme.*did you mean 'rate_limit'"):
        declare(Celery("tenants", set_as_current=False), {"acme": {"database": "a", "rate_limt": "5/s"}})


def order(database: Database[Any], *amounts: int) -> None:
    """Write paid orders to a tenant's database."""
    database.orders.insert_many({"status": "paid", "amount": amount} for amount in amounts)


def invoiced(database: Database[Any]) -> list[int]:
    """Return the amounts that a tenant has invoices over."""
    return sorted(invoice["amount"] for invoice in database.invoices.find())

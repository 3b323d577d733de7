"""The shapes that a customer has had, and the steps between them: pure functions, each from one shape to the next.

The application reads customers through `current`, whatever their shape, so that it can be deployed before the migration
and run beside it. A shape is told by `schema`, the number of steps taken; the first documents have none.
"""

from collections.abc import Callable, Sequence
from typing import Any

Customer = dict[str, Any]


def split_name(customer: Customer) -> Customer:
    """Step 1: `"Ada King"` becomes `{"first": "Ada", "last": "King"}`."""
    first, _, last = customer["name"].rpartition(" ")
    return {**customer, "name": {"first": first, "last": last}}


def lower_email(customer: Customer) -> Customer:
    """Step 2: addresses are compared in lower case, so they are kept in it."""
    return {**customer, "email": customer["email"].lower()}


STEPS = (split_name, lower_email)
"""To change the shape, append a step. None is ever changed or removed while there may be documents before it."""


def current(customer: Customer, steps: Sequence[Callable[[Customer], Customer]] = STEPS) -> Customer:
    """Return a customer in the newest shape: those that have it, and newer ones, as they are."""
    for number, step in enumerate(steps[customer.get("schema", 0) :], customer.get("schema", 0) + 1):
        customer = {**step(customer), "schema": number}
    return customer

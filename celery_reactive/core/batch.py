"""How many documents a batch handler gets at once, and how long they may wait for company (B-60).

Made by users, as a number, a typed object or a dict; read by the planner, which waits, and by the worker.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from datetime import timedelta
from typing import Self

from celery_reactive.core.duration import Duration
from celery_reactive.core.options import Options, read_integer
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError

_LARGEST = 1000
"""What one statement of the server reads and writes well, and what one lease can be renewed for."""


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Batch:
    """How documents are gathered for one call of a handler.

    Attributes:
        size: Most documents of a call, from 1 to 1000.
        wait: How long a document that is due may wait for the batch to fill; zero: what is due goes at once.
    """

    size: int
    wait: timedelta

    def __init__(self, size: int, wait: Duration = timedelta(0)) -> None:
        """Make the option.

        Raises:
            ConfigurationError: A value is wrong; both are looked at.
        """
        self._read({"size": size, "wait": wait})

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Return the option that *raw* means: a size, `(size, wait)`, a Batch, or a dict.

        Raises:
            ConfigurationError: It is none of these, or a part of it is unknown, missing or wrong.
        """
        if isinstance(raw, cls):
            return raw
        match raw:
            case int():
                raw = {"size": raw}
            case [size, wait]:
                raw = {"size": size, "wait": wait}
            case Mapping():
                pass
            case _:
                raise ConfigurationError("batch", [f"expected a size, (size, wait) or a dict, got {shown(raw)}"])
        made = cls.__new__(cls)
        made._read(raw)  # noqa: SLF001 -- a constructor's own business
        return made

    def _read(self, raw: object) -> None:
        options = Options("batch", raw, ("size", "wait"), camel_case_allowed=True)
        whole = functools.partial(read_integer, at_least=1, at_most=_LARGEST)
        size = options.require("size", whole, 1, expected="how many documents the handler gets at most")
        wait = options.read("wait", options.duration, timedelta(0))
        options.check()
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "wait", wait)

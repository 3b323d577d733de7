"""Leads a process's connections through the test's network instead of straight to the servers.

Python imports this before anything else where this folder is on PYTHONPATH. ROUTES, in JSON, says which port of this
machine is reached through which link (`tests.fault.network`). The members of a replica set name one another by their
own ports, so that no connection string could do it.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

_routes = {int(port): int(link) for port, link in json.loads(os.environ.get("ROUTES", "{}")).items()}
_straight = socket.socket.connect


def _connect(self: socket.socket, address: Any) -> None:
    if isinstance(address, tuple) and address[1] in _routes:
        address = (address[0], _routes[address[1]], *address[2:])
    _straight(self, address)


socket.socket.connect = _connect  # type: ignore[assignment, method-assign]

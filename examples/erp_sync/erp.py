"""The ERP: a web server with a database of its own. It stands for what is not yours, and knows nothing of MongoDB.

`PUT /orders/ID` stores an order's state and answers with the order's number, the same each time; `GET /orders` lists.
"""

import json
import sqlite3
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

TABLE = """
CREATE TABLE IF NOT EXISTS orders (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, status TEXT, amount INTEGER, version INTEGER
)
"""
PUT = """
INSERT INTO orders (id, status, amount, version) VALUES (:id, :status, :amount, :version)
ON CONFLICT (id) DO UPDATE SET status = :status, amount = :amount, version = :version WHERE version < :version
RETURNING number
"""


class Erp(HTTPServer):
    """Listens until it is shut down; one request at a time."""

    def __init__(self, path: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.database = sqlite3.connect(path, check_same_thread=False)
        self.database.row_factory = sqlite3.Row
        self.database.execute(TABLE)
        self.closed_for_stocktaking = False

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def orders(self) -> list[dict[str, Any]]:
        """Return all orders, by number."""
        return [dict(row) for row in self.database.execute("SELECT * FROM orders ORDER BY number")]

    def put(self, order: dict[str, Any]) -> int | None:
        """Store an order's state and return its number, None where there is a newer state."""
        with self.database:
            row = self.database.execute(PUT, order).fetchone()
        return row and int(row["number"])


class _Request(BaseHTTPRequestHandler):
    server: Erp

    def do_PUT(self) -> None:
        """Store an order."""
        state = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.closed_for_stocktaking:
            self._answer(503, {"error": "closed for stocktaking"})
        elif number := self.server.put({**state, "id": self.path.removeprefix("/orders/")}):
            self._answer(200, {"number": f"SO-{number:05}"})
        else:
            self._answer(409, {"error": "there is a newer state"})

    def do_GET(self) -> None:
        """List the orders."""
        self._answer(200, self.server.orders())

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value, indent=1).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """Say each answer in a line."""
        print(format % args, flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), Erp(sys.argv[1], port=8000) as erp:
        print("listening at", erp.url, flush=True)
        erp.serve_forever()

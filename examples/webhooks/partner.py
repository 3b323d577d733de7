"""The partner: a web server that takes webhooks, each once. Run alone, it takes one in two seconds and says so.

It stands for what is not yours. Of it, copy `signing.verified` and the habit of remembering ids.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from signing import ForgedError, verified

Answer = tuple[int, dict[str, str]]


class Partner(ThreadingHTTPServer):
    """Listens until it is shut down."""

    def __init__(self, secret: str, answer: Callable[[], Answer], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.secret = secret.encode()
        self.answer = answer
        """What the next message is answered: one of 2xx takes it."""
        self.taken: dict[str, Any] = {}
        """What was taken, by id."""
        self.knocks: list[str] = []
        """Ids of all messages, in order."""

    @property
    def url(self) -> str:
        """Where to send webhooks to."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Request(BaseHTTPRequestHandler):
    server: Partner

    def do_POST(self) -> None:
        """Take a message whose signature is right, once."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            message_id = verified(headers, body, self.server.secret)
        except ForgedError as error:
            self.send_error(401, str(error))
            return
        status, more = self.server.answer()
        self.server.knocks.append(message_id)
        if status < 300:
            self.server.taken.setdefault(message_id, json.loads(body))
        self.send_response(status)
        for name, value in {**more, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """Say each answer in a line."""
        print(format % args, flush=True)


def one_in_two_seconds() -> Callable[[], Answer]:
    """Return what answers like a partner who has a limit."""
    last = 0.0

    def answer() -> Answer:
        nonlocal last
        if time.monotonic() < last + 2:
            return 429, {"Retry-After": "2"}
        last = time.monotonic()
        return 204, {}

    return answer


if __name__ == "__main__":
    secret = os.environ.get("WEBHOOK_SECRET", "for trying things out only")
    with suppress(KeyboardInterrupt), Partner(secret, one_in_two_seconds(), 8000) as partner:
        print("listening at", partner.url, flush=True)
        partner.serve_forever()

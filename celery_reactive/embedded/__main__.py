"""`python -m celery_reactive.embedded`: a MongoDB and a Valkey for trying things out, until SIGINT, SIGTERM or SIGHUP.

Called by people who follow the quickstart. Prints what to paste into other terminals, so that an app without any
settings finds the two; keeps nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys

from celery_reactive.embedded.mongo import MongoServer
from celery_reactive.embedded.process import EmbeddedServerError
from celery_reactive.embedded.valkey import ValkeyServer

DATABASE = "quickstart"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run both servers, and say where they are.

    Raises:
        SystemExit: There is no program to start, and nothing runs; the message says what to install.
    """
    argparse.ArgumentParser(
        prog="python -m celery_reactive.embedded",
        description="Start a MongoDB and a Valkey for trying things out, until Ctrl-C; they keep nothing. "
        "Paste the two lines that are printed into your other terminals.",
    ).parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        _serve()
    except EmbeddedServerError as error:
        sys.exit(f"Error: {error}")


def _serve() -> None:
    with MongoServer() as mongo, ValkeyServer() as valkey:
        sys.stdout.write(f"export CELERY_REACTIVE_MONGODB_URL='{mongo.url_of(DATABASE)}'\n")
        sys.stdout.write(f"export CELERY_BROKER_URL='{valkey.url_of(0)}'\n")
        sys.stdout.flush()
        signal.sigwait(ENDING)


if __name__ == "__main__":
    main()

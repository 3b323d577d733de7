"""The examples of Django, FastAPI and Flask do what their READMEs say, by the commands these give."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.database import Database

from tests.acceptance.project import Process, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
PORT = "8000"
"""What the READMEs write; each test takes a free one instead."""


class Shop:
    """A copy of an example, and what its README lets a user start in it."""

    def __init__(self, example: str, folder: Path, servers: dict[str, str]) -> None:
        self.folder = folder / example
        shutil.copytree(EXAMPLES / example, self.folder, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"))
        self._logs = folder
        self.environment = {**servers, "PYTHONPATH": "", "PYTHONUNBUFFERED": "1"}
        self._port = _free_port()
        self._processes: list[Process] = []
        self._commands = re.findall(r"^\$ (.*?)(?: +#.*)?$", (self.folder / "README.md").read_text(), re.MULTILINE)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", follow_redirects=True)

    def be_eager(self) -> None:
        """Let Django's settings say so."""
        with (self.folder / "shop" / "settings.py").open("a") as settings:
            settings.write("CELERY_TASK_ALWAYS_EAGER = True\n")

    def run(self, command: str) -> str:
        """Run a command of the README to its end, found by a part of it; return what it prints."""
        arguments, environment = self._command(command)
        return self.call(arguments, environment)

    def call(self, arguments: list[str], environment: dict[str, str]) -> str:
        """Run a program in the example's folder to its end; return what it prints."""
        done = subprocess.run(
            arguments,
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, command: str, **environment: str) -> Process:
        """Start a command of the README, found by a part of it."""
        arguments, own = self._command(command)
        process = Process(f"../{command}", arguments, self.folder, {**own, **environment})
        self._processes.append(process)
        return process

    def start_all(self, *commands: str) -> None:
        """Start commands of the README, and wait until the web server answers."""
        for command in commands:
            self.start(command)
        self.wait_until(self._answers)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds."""
        wait_until(condition, logs=self.logs)

    def logs(self) -> str:
        """What the processes have printed, for a failed test."""
        return "\n".join(f"--- {process.log.name}\n{process.text()[-3000:]}" for process in self._processes)

    def stop(self) -> None:
        """End all processes."""
        self.http.close()
        for process in reversed(self._processes):
            process.kill()

    def _command(self, part: str) -> tuple[list[str], dict[str, str]]:
        """Return the arguments of the command, and the environment, with the variables that it begins with."""
        (line,) = [line for line in self._commands if f" {part}" in line]
        words = [word.replace(PORT, str(self._port)) for word in shlex.split(line)]
        variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
        program, *arguments = words[len(variables) :]
        environment = dict(variable.split("=", 1) for variable in variables)
        return [_installed(program), *arguments], {**self.environment, **environment}

    def _answers(self) -> bool:
        try:
            self.http.get("/")
        except httpx.TransportError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _installed(program: str) -> str:
    """Return the program of this environment, whatever is on PATH."""
    return sys.executable if program == "python" else str(Path(sys.executable).with_name(program))


@pytest.fixture
def start_shop(tmp_path: Path, mongodb_url: str, broker_url: str) -> Iterator[Callable[[str], Shop]]:
    """Copy an example by its name; its processes end with the test."""
    shops: list[Shop] = []

    def copy(example: str) -> Shop:
        shops.append(Shop(example, tmp_path, {"MONGODB_URL": mongodb_url, "BROKER_URL": broker_url}))
        return shops[-1]

    yield copy
    for shop in shops:
        shop.stop()


def test_the_django_shop_invoices_what_is_paid(start_shop: Callable[[str], Shop]) -> None:
    """B-1, B-17: views write, tasks follow, the admin shows it."""
    shop = start_shop("django_shop")
    shop.run("manage.py migrate")
    shop.run("manage.py createsuperuser")
    shop.start_all("shop planner", "shop worker", "manage.py runserver")

    placed = shop.http.post("/orders/", json={"customer": "Grace", "amount": 42}).json()["id"]
    order = f"/orders/{placed}/"
    assert shop.http.get(order).json()["invoice"] is None
    shop.http.post(f"{order}pay/").raise_for_status()
    shop.wait_until(lambda: shop.http.get(order).json()["invoice"] == {"customer": "Grace", "amount": 42})

    shop.wait_until(lambda: "orders.tasks.confirm" in _completed(_admin(shop)))
    assert _completed(_admin(shop)) == {"orders.tasks.confirm", "orders.tasks.write_invoice"}
    assert "Thank you, Grace!" in shop.logs()


def _admin(shop: Shop) -> str:
    """Return the admin's page of records, as its index leads there."""
    path = "/admin/orders/reactiverecord/"
    if path not in (index := shop.http.get("/admin/").text):
        form = {"csrfmiddlewaretoken": shop.http.cookies["csrftoken"], "username": "ada", "password": "shop"}
        index = shop.http.post("/admin/login/?next=/admin/", data=form).text
    assert path in index
    return shop.http.get(path).text


def _completed(page: str) -> set[str]:
    """Return the tasks that a page of records shows as completed."""
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    return {row[0] for row in rows if len(row) > 2 and row[2] == "completed"}


def test_django_closes_its_connections_around_each_record(
    start_shop: Callable[[str], Shop],
    database: Database[Any],
) -> None:
    """B-40: Celery's signals fire per record, and Django's support hangs on them."""
    shop = start_shop("django_shop")
    (shop.folder / "watched.py").write_text(
        "from django.db.backends.signals import connection_created\n"
        "from shop.settings import *\n"
        "CELERY_WORKER_CONCURRENCY = 1\n"
        "connection_created.connect(lambda **_: print('connection opened'), weak=False)\n",
    )
    shop.run("manage.py migrate")
    shop.start("shop planner")
    worker = shop.start("shop worker", DJANGO_SETTINGS_MODULE="watched")

    def opened_after_an_invoice() -> int:
        paid = {"customer": "Grace", "amount": 42, "status": "paid", "confirmed": True}
        record = {"t": "orders.tasks.write_invoice", "d": database.orders.insert_one(paid).inserted_id}
        shop.wait_until(lambda: database.orders_tasks.find_one({"_id": record, "status": "completed"}))
        return worker.text().count("connection opened")

    first = opened_after_an_invoice()
    assert first >= 1
    assert opened_after_an_invoice() > first


NOTE = """

@reactive_task(collection="notes")
@shared_task
def note(order):
    Invoice.objects.create(order=order)
"""
CALLS = """
from django.db import transaction
from orders.models import Invoice
from orders.tasks import note

def noted():
    return list(Invoice.objects.values_list("order", flat=True))

note.delay("now")
with transaction.atomic():
    note.delay_on_commit("on commit")
    print("in the transaction:", noted())
print("after it:", noted())
"""


def test_an_eager_call_of_a_reactive_task_runs_the_function_as_django_would(start_shop: Callable[[str], Shop]) -> None:
    """B-40: unmanaged, with the arguments given; `delay_on_commit` waits for the commit."""
    shop = start_shop("django_shop")
    shop.be_eager()
    with (shop.folder / "orders" / "tasks.py").open("a") as tasks:
        tasks.write(NOTE)
    shop.run("manage.py migrate")
    printed = shop.call([sys.executable, "manage.py", "shell", "-c", CALLS], shop.environment)
    assert printed.splitlines()[-2:] == ["in the transaction: ['now']", "after it: ['now', 'on commit']"]


def test_a_planner_refuses_djangos_eager_mode(start_shop: Callable[[str], Shop]) -> None:
    """B-40: `CELERY_TASK_ALWAYS_EAGER` is read where a planner starts."""
    shop = start_shop("django_shop")
    shop.be_eager()
    planner = shop.start("shop planner")
    assert planner.wait(30) == 1
    assert "task_always_eager: expected False" in planner.text()


def test_the_fastapi_shop_reserves_what_is_ordered(start_shop: Callable[[str], Shop], database: Database[Any]) -> None:
    """B-1, B-14: a coroutine runs for an order, and again when its lines change."""
    shop = start_shop("fastapi_shop")
    shop.start_all("shop.celery_app planner", "shop.celery_app worker", "shop.api:api")

    placed = shop.http.post("/orders", json={"lines": [_line("tea", 2), _line("milk", 1)]}).json()["id"]
    shop.wait_until(lambda: _reserved(database, placed) == {"tea": 2, "milk": 1})
    shop.http.put(f"/orders/{placed}/lines", json=[_line("tea", 3)]).raise_for_status()
    shop.wait_until(lambda: _reserved(database, placed) == {"tea": 3})

    ended = {"task": "shop.tasks.reserve", "status": "completed", "attempts": 1, "last_error": None}
    shop.wait_until(lambda: shop.http.get(f"/orders/{placed}/runs").json() == [ended])
    assert shop.http.get("/orders/no-id/runs").status_code == 404


def _line(item: str, quantity: int) -> dict[str, object]:
    return {"item": item, "quantity": quantity}


def _reserved(database: Database[Any], order: str) -> dict[str, int]:
    """Return what is reserved for an order, by item."""
    reserved = {item["_id"]: item["reserved"].get(order) for item in database.stock.find()}
    return {item: quantity for item, quantity in reserved.items() if quantity}


def test_the_flask_shop_confirms_in_the_applications_context(start_shop: Callable[[str], Shop]) -> None:
    """B-1: the task class of Flask's documentation keeps its `__call__`."""
    shop = start_shop("flask_shop")
    shop.start_all("make_celery planner", "make_celery worker", "--app shop")

    order = shop.http.post("/", data={"item": "tea"})
    assert "not confirmed yet" in order.text
    assert "The corner shop" in shop.http.post(f"{order.url}/pay").text
    shop.wait_until(lambda: "thanks you for your tea" in shop.http.get(order.url).text)
    shop.wait_until(lambda: _cells(shop.http.get(order.url).text) == ["shop.tasks.confirm", "completed", "1", ""])
    assert "confirmed " in shop.logs()


def _cells(page: str) -> list[str]:
    return re.findall(r"<td>(.*?)</td>", page)

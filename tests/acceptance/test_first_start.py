"""A first start on a collection that is being written to all the time: what was there, and what comes, is handled.

FIRST_START_DOCUMENTS makes it as large as wanted.
"""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

from pymongo import MongoClient

from tests.acceptance.project import Project, wait_until

DOCUMENTS = int(os.environ.get("FIRST_START_DOCUMENTS", "600"))
WRITERS = 8
TASKS = """
import os
from celery import Celery
from celery_reactive import reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.broker_connection_retry_on_startup = True


@reactive_task(collection="items", filter={"on": True}, watch_projection={"v": 1}, debounce=0)
@app.task
def mirror(ctx):
    newer = {"$gt": [ctx.fence, "$fence"]}
    seen = {"v": {"$cond": [newer, ctx.get_document()["v"], "$v"]}, "fence": {"$max": [ctx.fence, "$fence"]}}
    ctx.client.get_default_database().seen.update_one({"_id": ctx.doc_id}, [{"$set": seen}], upsert=True)
"""


def test_a_first_start_amid_writers_loses_no_final_state(project: Project) -> None:
    """B-10, B-48: scan and stream work side by side; every document's last value is the last that was handled."""
    (project.folder / "proj.py").write_text(TASKS)
    items = project.database.items
    items.insert_many([{"_id": number, "on": number % 5 != 0, "v": 0} for number in range(DOCUMENTS)])
    ended = threading.Event()

    def write(seed: int) -> int:
        """Change documents, take some out of the filter and back in, delete and insert some, until told to end."""
        randomly, written = random.Random(seed), 0
        with MongoClient(project.environment["MONGODB_URL"]) as client:
            own = client[project.database.name].items
            while not ended.is_set():
                doc_id = randomly.randrange(DOCUMENTS)
                written += 1
                match randomly.randrange(10):
                    case 0:
                        own.update_one({"_id": doc_id}, {"$set": {"on": randomly.random() < 0.5}})
                    case 1:
                        own.delete_one({"_id": doc_id})
                    case 2:
                        own.replace_one({"_id": doc_id}, {"on": True, "v": seed + WRITERS * written}, upsert=True)
                    case _:
                        own.update_one({"_id": doc_id}, {"$set": {"v": seed + WRITERS * written}})
                ended.wait(0.002)
        return written

    def is_reconciled() -> bool:
        stored = project.database["_celery_reactive"].find_one({"_id": {"k": "task", "t": "proj.mirror"}}) or {}
        return bool(stored.get("reconciledGen"))

    with ThreadPoolExecutor(WRITERS) as writers:
        writing = [writers.submit(write, seed) for seed in range(WRITERS)]
        try:
            project.worker("--concurrency", "2")
            project.planner("planner")
            project.wait_until(is_reconciled, timeout=600)
        finally:
            ended.set()
    assert sum(one.result() for one in writing) > DOCUMENTS / 10
    final = {item["_id"]: item["v"] for item in items.find({"on": True})}

    def handled() -> dict[int, int]:
        return {seen["_id"]: seen["v"] for seen in project.database.seen.find({"_id": {"$in": list(final)}})}

    def missing() -> str:
        seen = handled()
        wrong = [doc_id for doc_id, value in final.items() if seen.get(doc_id) != value]
        stories = [f"{doc_id}: {final[doc_id]}, handled {seen.get(doc_id)}, {record(doc_id)}" for doc_id in wrong[:5]]
        return "\n".join([f"{len(wrong)} of {len(final)} not handled", *stories, project.logs()])

    def record(doc_id: int) -> object:
        return project.database.items_tasks.find_one({"_id.d": doc_id})

    wait_until(lambda: handled() == final, logs=missing, timeout=60 + DOCUMENTS / 15)

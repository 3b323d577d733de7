"""Tasks of a project that is watched by OpenTelemetry (TRACING=otel) or by Sentry (TRACING=sentry).

Spans and events go to files of this folder, a line each.
"""

import json
import os
from pathlib import Path

from celery import Celery
from celery.exceptions import Ignore
from celery.signals import celeryd_init, worker_init, worker_process_init, worker_process_shutdown

from celery_reactive import reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_leader_ttl = "3s"
app.conf.broker_connection_retry_on_startup = True


def append(file, document):
    with Path(file).open("a") as lines:
        lines.write(json.dumps(document) + "\n")


if os.environ["TRACING"] == "otel":
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class FileExporter(SpanExporter):
        def export(self, spans):
            for span in spans:
                append("spans", json.loads(span.to_json()))
            return SpanExportResult.SUCCESS

    app.conf.reactive_task_caller = "celery_reactive.opentelemetry.traced"

    @(worker_init if os.environ["POOL"] == "threads" else worker_process_init).connect
    def start_tracing(**_):
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(FileExporter()))
        trace.set_tracer_provider(provider)
        CeleryInstrumentor().instrument()

    @worker_process_shutdown.connect
    def send_the_last_spans(**_):
        trace.get_tracer_provider().shutdown()


if os.environ["TRACING"] == "sentry":
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class FileTransport(Transport):
        def capture_envelope(self, envelope):
            for item in envelope.items:
                if item.type in ("event", "transaction"):
                    append(f"{item.type}s", item.payload.json)

    @celeryd_init.connect
    def start_sentry(**_):
        sentry_sdk.init(
            dsn="http://key@localhost/1",
            transport=FileTransport,
            integrations=[CeleryIntegration()],
            traces_sample_rate=1.0,
        )


def reactive(name, max_attempts):
    return reactive_task(
        task=name,
        collection="jobs",
        filter={"for": name},
        watch_projection={"v": 1},
        debounce=0,
        retry_policy={"type": "fixed", "interval": "1h", "max_attempts": max_attempts},
    )


def do(ctx):
    match ctx.get_document()["do"]:
        case "fail":
            raise ValueError(f"broken: {ctx.doc_id}")
        case "ignore":
            raise Ignore("not today")
        case "defer":
            ctx.defer_current("1h")
        case "move on":
            ctx.client.get_default_database().jobs.update_one(
                {"_id": ctx.doc_id}, {"$inc": {"v": 1}, "$set": {"do": ""}}
            )
            ctx.get_document()


@reactive("once", max_attempts=1)
@app.task
def once(ctx):
    do(ctx)


@reactive("twice", max_attempts=2)
@app.task
def twice(ctx):
    do(ctx)


@reactive("asked", max_attempts=2)
@app.task(bind=True)
def asked(self, ctx):
    raise self.retry(countdown=3600, exc=KeyError("asked"))


@reactive("coroutine", max_attempts=1)
@app.task
async def coroutine(ctx):
    do(ctx)


@app.task
def plain():
    raise RuntimeError("plain")

"""The Celery tasks: one call each. A message has the id of a row; the row has the work."""

import functools
import threading
from typing import Any

import structlog
from celery import signals

from models_registry import logs
from models_registry.persistence import broker, outbox
from workers import (
    context,
    exporter,
    inspector,
    maintenance,
    predictor,
    runner,
    sampler,
    webhooks,
    worker_registration,
)
from workers.celery_app import WORKER_ID, app, settings

log = structlog.get_logger()


@functools.cache
def _context() -> context.Context:
    """Return this process's context; made in the forked child, at its first task."""
    taken = app.amqp.queues.consume_from
    built = context.build(
        settings,
        worker_id=WORKER_ID,
        health=worker_registration.health,
        device_pool=worker_registration.device_pool,
        job_queues=tuple(name for name in broker.JOB_QUEUES if name in taken),
    )
    threading.Thread(target=_forward_shutdown, args=(built,), daemon=True).start()
    return built


def _forward_shutdown(built: context.Context) -> None:
    worker_registration.shutting_down.wait()
    built.shutting_down.set()


@signals.worker_process_init.connect
def sweep_scratch(**_: Any) -> None:
    """Remove what killed processes have left, when a worker starts."""
    # What a killed process has left may be somebody's pictures, and the next task hours away.
    maintenance.sweep_scratch(settings)


@signals.worker_process_shutdown.connect
def _close_tracer(**_: Any) -> None:
    if _context.cache_info().currsize:
        _context().tracer.close()


def _send(task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
    app.send_task(task, kwargs=payload, queue=queue, priority=broker.redis_priority(priority))


@app.task(name="jobs.run")
def run_job(job_id: str, dispatch_seq: int) -> None:
    """Work on the job whose turn it is; the message says that there is work."""
    with logs.bind(announced_job_id=job_id, dispatch_seq=dispatch_seq):
        maintenance.tidy(_context())
        done = runner.run_next(_context(), job_id)
        if done is not None:
            maintenance.advance_search_of(_context(), done, _send)


@app.task(name="models.inspect")
def inspect_model(version_id: str) -> None:
    """Inspect an uploaded model."""
    with logs.bind(version_id=version_id):
        maintenance.tidy(_context())
        inspector.inspect(_context(), "models", version_id)


@app.task(name="datasets.inspect")
def inspect_dataset(version_id: str) -> None:
    """Inspect an uploaded data set."""
    with logs.bind(version_id=version_id):
        maintenance.tidy(_context())
        inspector.inspect(_context(), "datasets", version_id)


@app.task(name="models.export")
def export_model(export_id: str) -> None:
    """Write a model in another form, and compare it with the original."""
    with logs.bind(export_id=export_id):
        maintenance.tidy(_context())
        exporter.make(_context(), export_id)


@app.task(name="models.predict")
def predict(prediction_id: str) -> None:
    """Answer pictures that somebody tries a model with."""
    with logs.bind(prediction_id=prediction_id):
        # The whole disk is tidied before longer tasks: somebody waits for this one.
        maintenance.sweep_scratch(_context().settings)
        predictor.answer(_context(), prediction_id)


@app.task(name="datasets.sample")
def sample_dataset(version_id: str) -> None:
    """Make a few small pictures of each class of a data set."""
    with logs.bind(version_id=version_id):
        # The whole disk is tidied before longer tasks: somebody waits for this one.
        maintenance.sweep_scratch(_context().settings)
        sampler.make(_context(), version_id)


@app.task(name="networks.try")
def try_network(digest: str) -> None:
    """Build a network of another library without weights, and record what it shows."""
    with logs.bind(network_trial=digest):
        maintenance.tidy(_context())
        inspector.try_network(_context(), digest)


@app.task(name="studies.advance")
def advance_search(study_id: str) -> None:
    """Make the first trials of a search; later ones are made when trials end, or by the sweep."""
    with logs.bind(study_id=study_id):
        maintenance.advance_search(_context(), study_id)
        outbox.relay(_context().sessions, _send)


@app.task(name="webhooks.deliver")
def deliver_webhook(delivery_id: str) -> None:
    """Send a webhook, if it is due and nobody else sends it."""
    with logs.bind(delivery_id=delivery_id):
        webhooks.deliver(_context(), delivery_id)


@app.task(name="maintenance.sweep")
def sweep() -> None:
    """Publish the outbox, reap leases, enforce deadlines, publish lost messages again."""
    maintenance.sweep(_context(), _send)


@app.task(name="maintenance.retain")
def retain(project_id: str) -> None:
    """Mark and sweep what one project's retention does not keep."""
    maintenance.retain(_context(), project_id)


@app.task(name="maintenance.collect")
def collect() -> None:
    """Expire uploads and idempotency keys, delete bytes that nothing refers to."""
    maintenance.collect(_context())

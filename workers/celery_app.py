"""The Celery application: broker, acknowledgement, prefetch, queues, beat, process signals.

Each setting has its reason. The database owns every job's state; a message only names a job.
"""

import logging
import os
from pathlib import Path
from typing import Any

from celery import Celery, signals
from kombu.entity import Exchange, Queue

from models_registry import ids, logs, tracing
from models_registry.persistence import broker
from models_registry.settings import Settings
from workers import broker_transport, isolation, liveness, parent_death, worker_registration

settings = Settings()
tracing.check(settings)


def _queue(name: str) -> Queue:
    # Spelt out as the API's producer makes it; kombu's default would share one exchange, and
    # every message would reach every queue.
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]  # kombu


broker_transport.register()
app = Celery("retort", broker=settings.broker_url, include=["workers.tasks"])
app.conf.update(
    # Results and states live in the database.
    result_backend=None,
    task_ignore_result=True,
    # Maintenance publishes lost messages again, and a lease tells of a lost worker; late
    # acknowledgement would only run long jobs twice.
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    # A busy worker must not hoard messages that an idle one could take.
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    # One supervisor per slot; it never imports torch, so forking it is safe. `workers.__main__`
    # says how many slots a worker of jobs has.
    worker_concurrency=1,
    worker_pool="prefork",
    # Cancel, pause and deadlines travel through the database.
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    task_send_sent_event=False,
    task_time_limit=None,
    task_soft_time_limit=None,
    # The lease decides whether a job may go on, not the link to the broker.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # On SIGTERM the supervisor itself writes a checkpoint and hands the job back.
    worker_soft_shutdown_timeout=0,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_pool_acquire_timeout=5,
    broker_transport_options={**broker.TRANSPORT_OPTIONS, "socket_timeout": 30},
    # No pickle on the wire.
    task_serializer="json",
    accept_content=["json"],
    # A misspelt queue is an error, not a queue that nobody reads.
    task_create_missing_queues=False,
    task_queues=[_queue(name) for name in broker.QUEUES],
    task_default_queue="maintenance",
    worker_hijack_root_logger=False,
    beat_schedule={
        "sweep": {
            "task": "maintenance.sweep",
            "schedule": settings.sweep_seconds,
            # A sweep that has waited for its turn is replaced by the next one.
            "options": {"expires": settings.sweep_seconds * 4},
        },
        "collect": {"task": "maintenance.collect", "schedule": 3600.0},
    },
    # Beat keeps its clock in memory: every task is idempotent, so no state is worth a file.
    beat_scheduler="celery.beat:Scheduler",
)

# Made before the pool forks, so that the supervisor claims under the announced name.
WORKER_ID = ids.new("wrk")
_MAIN_PROCESS = os.getpid()
_alive: list[Path] = []


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logs.set_up(level=settings.log_level, as_json=settings.log_json)
    # A line for every sweep, every few seconds, would hide the other lines.
    for chatty in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@signals.worker_init.connect
def _protect(**_: Any) -> None:
    isolation.protect_process()


@signals.worker_ready.connect
def _announce(sender: Any, **_: Any) -> None:
    queues = sorted(str(name) for name in sender.app.amqp.queues.consume_from)
    worker_registration.start(
        settings,
        worker_id=WORKER_ID,
        queues=queues,
        slots=sender.controller.concurrency if set(queues) & set(broker.JOB_QUEUES) else 1,
        consumer=sender,
        beat=sender.controller.beat,  # None without --beat
    )
    _alive.append(liveness.keep(sender.timer, settings.data_dir))


@signals.worker_shutting_down.connect
def _shut_down(**_: Any) -> None:
    worker_registration.shutting_down.set()


@signals.worker_shutdown.connect
def _leave(**_: Any) -> None:
    worker_registration.stop()
    for path in _alive:
        path.unlink(missing_ok=True)


@signals.worker_process_init.connect
@signals.beat_embedded_init.connect
def _begin_child(**_: Any) -> None:
    # When a worker is killed, its supervisor, engine and beat end too.
    parent_death.die_with_parent(_MAIN_PROCESS)

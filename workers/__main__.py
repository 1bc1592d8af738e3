"""Starts a Celery worker: `python -m workers --queues any,cuda`.

The options of `celery worker` are passed on. Those that turn off the messages between workers, for
which Celery has no settings, are added, and for a worker of jobs the number of its slots.
"""

import sys

from workers import engine_launcher, worker_slots
from workers.celery_app import app, settings
from workers.isolation import Isolation

# They would cost broker traffic and keys, and nothing reads them.
_SILENT = ("--without-gossip", "--without-mingle", "--without-heartbeat")


if __name__ == "__main__":
    given = sys.argv[1:]
    try:
        Isolation.of(settings).check_user()
        slots = worker_slots.slots_of(given, settings.worker_slots)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if slots > 1:
        engine_launcher.share_cores(slots)
        given += ["--concurrency", str(slots)]
    app.worker_main(["worker", *_SILENT, *given])

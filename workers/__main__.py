"""Starts a Celery worker: `python -m workers --queues any,cuda`.

The options of `celery worker` are passed on. Those that turn off the messages between workers, for
which Celery has no settings, are added.
"""

import sys

from workers.celery_app import app, settings
from workers.isolation import Isolation

# They would cost broker traffic and keys, and nothing reads them.
_SILENT = ("--without-gossip", "--without-mingle", "--without-heartbeat")

if __name__ == "__main__":
    try:
        Isolation.of(settings).check_user()
    except ValueError as error:
        sys.exit(f"error: {error}")
    app.worker_main(["worker", *_SILENT, *sys.argv[1:]])

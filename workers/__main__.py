"""Starts a Celery worker: `python -m workers --queues any,cuda`.

The options of `celery worker` are passed on. Those that turn off the messages between workers, for
which Celery has no settings, are added, and for a worker of jobs the number of its slots.
"""

import argparse
import sys
from collections.abc import Sequence

from models_registry.persistence import broker
from workers import engine_launcher
from workers.celery_app import app, settings
from workers.isolation import Isolation

# They would cost broker traffic and keys, and nothing reads them.
_SILENT = ("--without-gossip", "--without-mingle", "--without-heartbeat")
_MAINTENANCE = "maintenance"


def slots_of(arguments: Sequence[str], wanted: int) -> int:
    """Return how many slots a worker with these arguments of `celery worker` has.

    Only workers of jobs have more than one. Raises: ValueError where its arguments contradict that.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-Q", "--queues", default=",".join(broker.QUEUES))
    parser.add_argument("-c", "--concurrency", type=int)
    parser.add_argument("-P", "--pool", default="prefork")
    given, _ = parser.parse_known_args(arguments)
    queues = set(given.queues.split(","))
    if not queues & set(broker.JOB_QUEUES):
        return 1
    if given.concurrency not in (None, wanted) or given.pool != "prefork":
        raise ValueError(
            f"a worker of jobs has the slots of RETORT_WORKER_SLOTS ({wanted}), each a process: "
            "leave out --concurrency and --pool"
        )
    if wanted > 1 and _MAINTENANCE in queues:
        raise ValueError(
            f"RETORT_WORKER_SLOTS is {wanted}, and --queues names {_MAINTENANCE}: start another "
            "worker for that queue, because one process alone knows whether leases were polled"
        )
    return wanted


if __name__ == "__main__":
    given = sys.argv[1:]
    try:
        Isolation.of(settings).check_user()
        slots = slots_of(given, settings.worker_slots)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if slots > 1:
        engine_launcher.share_cores(slots)
        given += ["--concurrency", str(slots)]
    app.worker_main(["worker", *_SILENT, *given])

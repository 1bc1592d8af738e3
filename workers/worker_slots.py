"""How many slots a worker has, by its command line and the settings."""

import argparse
from collections.abc import Sequence

from models_registry.persistence import broker

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

"""What workers and maintenance count for `/metrics`, which they do not have."""

import time

from models_registry.jobs import leases
from models_registry.persistence import counters
from models_registry.persistence.counters import Counter
from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import maintenance, runner
from workers.attempt import Attempt
from workers.context import Context
from workers.engine_process import EngineGuard


def count(context: Context, counter: Counter) -> int:
    with context.readers() as session:
        found = counters.read(session)
    return found[counter].value if counter in found else 0


@SQLITE_ONLY
def test_a_write_that_the_fence_refuses(context: Context) -> None:
    job_id = scenes.submit(context, scenes.project(context))
    with context.sessions.begin() as session:
        held = leases.claim(session, job_id=job_id, worker_id="wrk_1", lease_seconds=60)
    assert held is not None
    stale = leases.Lease(job_id, held.attempt, held.fence - 1)
    attempt = Attempt(context, stale, held_since=time.monotonic(), on_silence=lambda: None)
    run = runner._Run(context, [attempt], EngineGuard())
    run._for_each_open(lambda one: one.persist(lambda s: leases.prove(s, one.lease)))
    assert attempt.is_over
    assert count(context, Counter.STALE_WRITES) == 1


@SQLITE_ONLY
def test_a_sweep(context: Context) -> None:
    maintenance.sweep(context, lambda *_: None)
    assert count(context, Counter.SWEEPS) == 1

"""Periodic tasks: each may run twice, late, or in several processes at the same time."""

import functools
import time
from datetime import timedelta

import structlog

from models_registry.access import idempotency
from models_registry.artifacts import inspections, uploads
from models_registry.federations import federations
from models_registry.jobs import logs, network_trials, submission, sweeps
from models_registry.persistence import database, outbox
from workers import inspector, staging
from workers.context import Context

log = structlog.get_logger()

# A longer gap than this between two sweeps means that the reaper itself did not run.
_GAP_FACTOR = 6


class _PollingTime:
    """For how long this process has polled the leases without a gap."""

    def __init__(self) -> None:
        self._since = self._last = time.monotonic()

    def seconds(self, sweep_seconds: float) -> float:
        """Return for how long there was no gap; a gap that ends now resets it to 0."""
        now = time.monotonic()
        if now - self._last > sweep_seconds * _GAP_FACTOR:
            self._since = now
        return now - self._since

    def record(self) -> None:
        """Record that the database has answered: an unreachable one cannot be polled."""
        self._last = time.monotonic()


@functools.cache
def _polling_time() -> _PollingTime:
    return _PollingTime()


def sweep(context: Context, send: outbox.Send) -> dict[str, int]:
    """Do the work of every few seconds, and return how much of each kind was needed.

    `send` publishes one message to the broker.
    """
    settings = context.settings
    polled = timedelta(seconds=_polling_time().seconds(settings.sweep_seconds))
    done: dict[str, int] = {}
    with context.sessions.begin() as session:
        done["leases_ended"] = sweeps.reap(
            session,
            polling_since=database.now(session) - polled,
            lease_seconds=settings.lease_seconds,
            kill_grace_seconds=settings.kill_grace_seconds,
        )
    _polling_time().record()
    with context.sessions.begin() as session:
        done["deadlines"] = sweeps.enforce_deadlines(session)
    with context.sessions.begin() as session:
        done["dependents_settled"] = submission.settle_left_waiting(session)
    after = settings.republish_after_seconds
    with context.sessions.begin() as session:
        done["jobs_republished"] = sweeps.republish(session, after_seconds=after)
        done["inspections_republished"] = inspections.republish(session, after_seconds=after)
        done["trials_republished"] = network_trials.republish(session, after_seconds=after)
    done["relayed"] = outbox.relay(context.sessions, send)
    _log(done, "sweep_done")
    return done


def collect(context: Context) -> dict[str, int]:
    """Do the work of every hour, and return how much of each kind was needed."""
    done: dict[str, int] = {}
    done["uploads_expired"] = _expire_uploads(context)
    with context.sessions.begin() as session:
        done["keys_forgotten"] = idempotency.forget(session)
        done["log_slices_forgotten"] = logs.forget(session)
        done["messages_forgotten"] = outbox.sweep(session)
        done["replies_released"] = federations.release(session)
    done["blobs_swept"] = sweeps.sweep_bytes(
        context.sessions, context.storage, grace=sweeps.ORPHAN_GRACE
    )
    _log(done, "collection_done")
    return done


def _expire_uploads(context: Context) -> int:
    """Close idle uploads, batch by batch; the call after the last closing drops the bytes."""
    total = 0
    while True:
        with context.sessions.begin() as session:
            closed = uploads.expire(session, context.storage)
        if closed == 0:
            return total
        total += closed


def tidy(context: Context) -> dict[str, int]:
    """Free disk space on this machine; each worker does so before a task."""
    cache, limit = context.settings.cache_dir, context.settings.worker_cache_bytes
    folders = (context.settings.scratch_dir, inspector.builtin_folder(cache))
    done = {
        "scratch_removed": sum(staging.sweep_scratch(folder) for folder in folders),
        "cache_bytes_dropped": staging.trim(cache, limit_bytes=limit),
    }
    _log(done, "disk_tidied")
    return done


def _log(done: dict[str, int], event: str) -> None:
    needed = {name: count for name, count in done.items() if count}
    if needed:
        log.info(event, **needed)

"""Periodic tasks: each may run twice, late, or in several processes at the same time."""

import functools
import time
from datetime import timedelta

import structlog

from models_registry import errors
from models_registry.access import idempotency
from models_registry.artifacts import inspections, uploads
from models_registry.federations import federations
from models_registry.jobs import network_trials, sweeps
from models_registry.persistence import database, outbox, task_leases
from models_registry.retention import blobs, erasures
from models_registry.retention import sweep as retention
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
        done["messages_forgotten"] = outbox.sweep(session)
        done["replies_released"] = federations.release(session)
    with task_leases.held(context.sessions, "collect") as lease:
        if lease is not None:  # or another process does it just now
            done |= _retain(context, lease)
    _log(done, "collection_done")
    return done


def retain(context: Context, project_id: str) -> dict[str, int]:
    """Delete what one project's retention does not keep, because somebody has asked for it."""
    grace = timedelta(seconds=context.settings.retention_grace_seconds)
    done: dict[str, int] = {}
    with task_leases.held(context.sessions, "collect") as lease:
        if lease is None:
            log.info("retention_busy", project_id=project_id)  # the sweep of all comes there too
            return done
        swept = retention.sweep_project(lease, project_id=project_id, grace=grace)
        done = {f"{kind}_deleted": deleted.entries for kind, deleted in swept.items()}
    _log(done, "retention_done")
    return done


def _retain(context: Context, lease: task_leases.TaskLease) -> dict[str, int]:
    """Delete what retention does not keep, and bytes that nothing needs."""
    grace = timedelta(seconds=context.settings.retention_grace_seconds)
    try:
        swept = retention.sweep(lease, grace=grace)
    except errors.StaleFence as error:
        log.warning("retention_taken_over", reason=error.message)
        return {}
    done = {f"{kind}_deleted": deleted.entries for kind, deleted in swept.items()}
    done["erased_blobs_deleted"] = erasures.finish(context.sessions, context.storage)
    done["blobs_swept"] = blobs.sweep(context.sessions, context.storage, grace=grace)
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

"""What runs by the clock: every function may run twice, late, or in several places at once."""

import functools
import time
from datetime import timedelta

import structlog

from models_registry.access import idempotency
from models_registry.artifacts import inspections, uploads
from models_registry.jobs import sweeps
from models_registry.persistence import database, outbox
from workers import inspector, staging
from workers.context import Context

log = structlog.get_logger()

# Longer silence than this between two sweeps means that the reaper itself was away.
_GAP_FACTOR = 6


class _Watch:
    """For how long this process has looked at the leases without a gap."""

    def __init__(self) -> None:
        self._since = self._last = time.monotonic()

    def seconds(self, sweep_seconds: float) -> float:
        """Return for how long there was no gap; none counts that ends now."""
        now = time.monotonic()
        if now - self._last > sweep_seconds * _GAP_FACTOR:
            self._since = now
        return now - self._since

    def looked(self) -> None:
        """Note that the database has answered: one that was away could not be looked at."""
        self._last = time.monotonic()


@functools.cache
def _watch() -> _Watch:
    return _Watch()


def sweep(context: Context, send: outbox.Send) -> dict[str, int]:
    """Do what must be done every few seconds, and return how often each was needed.

    `send` publishes one message to the broker.
    """
    settings = context.settings
    watched = timedelta(seconds=_watch().seconds(settings.sweep_seconds))
    done: dict[str, int] = {}
    with context.sessions.begin() as session:
        done["leases_ended"] = sweeps.reap(
            session,
            polling_since=database.now(session) - watched,
            lease_seconds=settings.lease_seconds,
            kill_grace_seconds=settings.kill_grace_seconds,
        )
    _watch().looked()
    with context.sessions.begin() as session:
        done["deadlines"] = sweeps.enforce_deadlines(session)
    after = settings.republish_after_seconds
    with context.sessions.begin() as session:
        done["jobs_republished"] = sweeps.republish(session, after_seconds=after)
        done["inspections_republished"] = inspections.republish(session, after_seconds=after)
    done["relayed"] = outbox.relay(context.sessions, send)
    _log(done, "sweep_done")
    return done


def collect(context: Context) -> dict[str, int]:
    """Do what must be done every hour, and return how often each was needed."""
    done: dict[str, int] = {}
    done["uploads_expired"] = _expire_uploads(context)
    with context.sessions.begin() as session:
        done["keys_forgotten"] = idempotency.forget(session)
        done["messages_forgotten"] = outbox.sweep(session)
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
    """Free this machine's disk, which each worker does before it fills it again."""
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

"""Periodic tasks: each may run twice, late, or in several processes at the same time."""

import functools
import time
from datetime import timedelta

import sqlalchemy.exc
import structlog

from models_registry import errors
from models_registry.access import idempotency
from models_registry.access.quotas import QuotaLimits
from models_registry.artifacts import dataset_samples, exports, inspections, predictions, uploads
from models_registry.federations import federations
from models_registry.jobs import network_trials, submission, sweeps
from models_registry.persistence import counters, database, outbox, task_leases
from models_registry.persistence.counters import Counter
from models_registry.retention import blobs, erasures
from models_registry.retention import sweep as retention
from models_registry.settings import Settings
from models_registry.studies import searches
from models_registry.webhooks import deliveries
from workers import inspector, search_sampler, staging
from workers.context import Context

log = structlog.get_logger()

# Another process may have changed what was asked for; the next sweep goes on.
_ROUNDS = 5
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
        done["exports_republished"] = exports.republish(session, after_seconds=after)
        done["predictions_forgotten"] = predictions.sweep(session)
        done["samples_forgotten"] = dataset_samples.sweep(session)
        done["trials_republished"] = network_trials.republish(session, after_seconds=after)
        done["webhooks_republished"] = deliveries.republish(session, after_seconds=after)
    done["searches_failed"] = _advance_searches(context)
    with context.sessions.begin() as session:
        counters.add(session, Counter.SWEEPS)
    done["relayed"] = outbox.relay(context.sessions, send, tracer=context.tracer)
    _log(done, "sweep_done")
    return done


def _advance_searches(context: Context) -> int:
    """Let every search do what its results allow; return how many could not."""
    with context.readers() as session:
        study_ids = searches.active(session)
    return sum(not advance_search(context, study_id) for study_id in study_ids)


def advance_search_of(context: Context, job_id: str, send: outbox.Send) -> None:
    """After a job, let its search make the next trials at once, if it belongs to one."""
    with context.readers() as session:
        study_id = searches.active_of_job(session, job_id)
    if study_id is not None:
        advance_search(context, study_id)
        outbox.relay(context.sessions, send)


def advance_search(context: Context, study_id: str) -> bool:
    """Do what the results of a search allow, and make the trials that it wants now.

    Return whether that was possible; if not, the study says why, and the next sweep tries again.
    """
    try:
        _advance(context, study_id)
    except sqlalchemy.exc.SQLAlchemyError:
        raise  # of the database, which no study could be told of
    except Exception as error:  # one study's fault must not hold up all others, nor the broker
        log.exception("search_not_advanced", study_id=study_id)
        message = f"The search could not go on, and is tried again: {type(error).__name__}: {error}"
        with context.sessions.begin() as session:
            searches.tell(session, study_id, message)
        return False
    return True


def _advance(context: Context, study_id: str) -> None:
    # Values are chosen between two transactions: SQLite has one writer, and PostgreSQL locks rows.
    answer = None
    limits = QuotaLimits.of_service(context.settings)
    for _ in range(_ROUNDS):
        with context.sessions.begin() as session:
            question = searches.advance(session, study_id, answer, limits=limits)
        if question is None:
            return
        answer = search_sampler.propose(question)


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
    done["webhooks_forgotten"] = _forget_webhooks(context)
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
    done["erased_blobs_deleted"] = erasures.finish(context.sessions, context.storage, grace=grace)
    done["blobs_swept"] = blobs.sweep(context.sessions, context.storage, grace=grace)
    return done


def _forget_webhooks(context: Context) -> int:
    """Delete old deliveries, batch by batch."""
    total = 0
    while True:
        with context.sessions.begin() as session:
            some = deliveries.forget(session)
        if some == 0:
            return total
        total += some


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
    done = {
        "scratch_removed": sweep_scratch(context.settings),
        "cache_bytes_dropped": staging.trim(cache, limit_bytes=limit),
    }
    _log(done, "disk_tidied")
    return done


def sweep_scratch(settings: Settings) -> int:
    """Remove what killed processes have left on this machine; return how many folders."""
    folders = (settings.scratch_dir, inspector.builtin_folder(settings.cache_dir))
    return sum(staging.sweep_scratch(folder) for folder in folders)


def _log(done: dict[str, int], event: str) -> None:
    needed = {name: count for name, count in done.items() if count}
    if needed:
        log.info(event, **needed)

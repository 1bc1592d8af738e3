"""Worker processes: registration, heartbeats and state."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.persistence import database, paging, tables

SILENT_AFTER = timedelta(seconds=60)  # four missed heartbeats of the default setting
FORGOTTEN_AFTER = timedelta(hours=24)


def announce(
    session: Session,
    *,
    worker_id: str,
    name: str,
    queues: list[str],
    devices: list[dict[str, Any]],
    memory_bytes: int,
    versions: dict[str, str],
    isolation: dict[str, Any] | None = None,
    offered_devices: int = 1,
    slots: int = 1,
    total_devices: int = 1,
) -> tables.WorkerRow:
    """Register a worker process, or update its registration.

    `isolation` has, by measure, whether it `is_active` and a `detail`; None while that is unknown.
    `offered_devices` is how many a job may use at most, `slots` how many jobs run side by side, on
    `total_devices` in all.
    """
    now = database.now(session)
    row = session.get(tables.WorkerRow, worker_id)
    if row is None:
        row = tables.WorkerRow(id=worker_id, started_at=now)
        session.add(row)
    row.name, row.queues, row.devices = name, queues, devices
    row.memory_bytes, row.versions, row.last_seen_at = memory_bytes, versions, now
    row.isolation, row.offered_devices = isolation, offered_devices
    row.slots, row.total_devices = slots, total_devices
    session.flush()
    return row


# Any: JSON, with code, message, since and retry_at.
def seen(
    session: Session,
    *,
    worker_id: str,
    fault: dict[str, Any] | None = None,
    gpu_utilisation: float | None = None,
) -> None:
    """Record a heartbeat of a worker; one that counted as lost is online again.

    `fault` is why it takes no jobs for now; `gpu_utilisation`, 0 to 1, is None without a card.
    """
    row = tables.WorkerRow
    session.execute(
        sa.update(row)
        .where(row.id == worker_id)
        .values(last_seen_at=database.now(session), fault=fault, gpu_utilisation=gpu_utilisation)
    )


def stopped(session: Session, *, worker_id: str) -> None:
    """Record that a worker has shut down on purpose."""
    row = tables.WorkerRow
    session.execute(
        sa.update(row).where(row.id == worker_id).values(stopped_at=database.now(session))
    )


def state(worker: tables.WorkerRow, *, now: datetime) -> str:
    """Return a worker's state.

    It is `online`, `suspended` (its machine cannot run jobs), `lost` (no heartbeat) or `stopped`
    (on purpose).
    """
    if worker.stopped_at is not None:
        return "stopped"
    if now - worker.last_seen_at >= SILENT_AFTER:
        return "lost"
    return "online" if worker.fault is None else "suspended"


def anyone_takes(session: Session, *, queue: str) -> bool:
    """Return whether a worker that takes messages of `queue` is online."""
    return count_slots(session, queue=queue) > 0


def offered_devices(session: Session, *, worker_id: str) -> int:
    """Return how many devices a job may use on a worker: one until it has said more."""
    row = tables.WorkerRow
    offered = session.scalar(sa.select(row.offered_devices).where(row.id == worker_id))
    return offered or 1


def most_devices(session: Session, *, queue: str) -> int:
    """Return the most devices that an online worker of `queue` offers a job; 0 without any."""
    return max((row.offered_devices for row in _online(session) if queue in row.queues), default=0)


def count_slots(session: Session, *, queue: str) -> int:
    """Return the slots of the workers that take messages of `queue`, are online, not suspended."""
    return sum(row.slots for row in _online(session) if queue in row.queues)


# Any: queues, offered_devices and slots.
def _online(session: Session) -> Sequence[sa.Row[Any]]:
    """Return what the workers offer that are online, and not suspended."""
    recently = database.now(session) - SILENT_AFTER
    return session.execute(_ONLINE, {"recently": recently}).all()


_ONLINE = sa.select(
    tables.WorkerRow.queues, tables.WorkerRow.offered_devices, tables.WorkerRow.slots
).where(
    tables.WorkerRow.stopped_at.is_(None),
    tables.WorkerRow.last_seen_at > sa.bindparam("recently", type_=database.UTCDateTime()),
    tables.WorkerRow.fault.is_(None),
)


def online_names(session: Session) -> list[str]:
    """Return the names of the workers that were seen within a day and have not stopped."""
    row = tables.WorkerRow
    recently = database.now(session) - FORGOTTEN_AFTER
    online = sa.select(row.name).where(row.stopped_at.is_(None), row.last_seen_at > recently)
    return list(session.scalars(online.order_by(row.id)))


def count_states(session: Session) -> dict[tuple[str, str], int]:
    """Return how many workers seen within a day there are, by state and code of the fault."""
    now = database.now(session)
    row = tables.WorkerRow
    recent = sa.select(row).where(row.last_seen_at > now - FORGOTTEN_AFTER)
    return dict(
        Counter(
            (state(worker, now=now), str((worker.fault or {}).get("code", "")))
            for worker in session.scalars(recent)
        )
    )


def count_by_queue(session: Session) -> dict[tuple[str, bool], int]:
    """Return how many workers are online by queue that they take, and whether they hold a job."""
    row, job = tables.WorkerRow, tables.JobRow
    recently = database.now(session) - SILENT_AFTER
    is_busy = sa.exists().where(job.lease_owner == row.id)
    online = sa.select(row.queues, is_busy).where(
        row.stopped_at.is_(None), row.last_seen_at > recently, row.fault.is_(None)
    )
    return Counter((queue, busy) for queues, busy in session.execute(online) for queue in queues)


def count_slots_by_queue(session: Session) -> dict[str, int]:
    """Return how many jobs the workers online can run side by side, by queue that they take."""
    slots: Counter[str] = Counter()
    for row in _online(session):
        slots.update(dict.fromkeys(row.queues, row.slots))
    return slots


def mean_gpu_utilisation(session: Session) -> dict[bool, float]:
    """Return the mean utilisation of online workers' cards by whether they hold a job, 0 to 1."""
    row, job = tables.WorkerRow, tables.JobRow
    recently = database.now(session) - SILENT_AFTER
    is_busy = sa.exists().where(job.lease_owner == row.id)
    online = sa.select(row.gpu_utilisation, is_busy).where(
        row.stopped_at.is_(None), row.last_seen_at > recently, row.gpu_utilisation.is_not(None)
    )
    shares: dict[bool, list[float]] = {}
    for share, busy in session.execute(online):
        shares.setdefault(bool(busy), []).append(float(share or 0.0))
    return {busy: sum(each) / len(each) for busy, each in shares.items()}


def page(session: Session, *, wanted: paging.PageRequest) -> paging.Page[tables.WorkerRow]:
    """Return a page of the workers seen within a day, newest first."""
    row = tables.WorkerRow
    recently = database.now(session) - FORGOTTEN_AFTER
    statement = sa.select(row).where(row.last_seen_at > recently)
    return paging.take(session, statement, by=(row.started_at, row.id), wanted=wanted)


def busy_with(
    session: Session, *, project_id: str, worker_ids: Sequence[str]
) -> dict[str, list[str]]:
    """Return which of the project's jobs each of these workers holds, oldest first, by worker."""
    row = tables.JobRow
    held = sa.select(row.lease_owner, row.id).where(
        row.project_id == project_id, row.lease_owner.in_(worker_ids)
    )
    jobs: dict[str, list[str]] = {}
    for owner, job_id in session.execute(held.order_by(row.created_at, row.id)):
        jobs.setdefault(str(owner), []).append(job_id)
    return jobs

"""Quotas: how much of the service one project may use, and how much it uses now.

The service has limits in its settings, a project may have smaller ones of its own, and the smaller
of the two counts. What is used is counted in the transaction that uses it, with the project's row
held: of two requests for the last place, the second is refused. Limits on jobs that run are kept by
the claim (`jobs/fair_share.py`), and limits on requests by `api/rate_limits.py`.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import input_checks
from models_registry.errors import Fault
from models_registry.jobs import fair_share
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.settings import Settings

# A paused job counts as well, so that it can always be resumed.
WAITING = (State.VALIDATING, State.QUEUED, State.PAUSED)
LEAST_WEIGHT, MOST_WEIGHT = 0.1, 10.0


@dataclass(frozen=True)
class QuotaLimits:
    """QuotaLimits by the name of their quota; None is no limit."""

    jobs_queued: int | None = None
    jobs_running: int | None = None
    storage_bytes: int | None = None
    upload_bytes: int | None = None
    requests_per_minute: int | None = None

    @classmethod
    def of_service(cls, settings: Settings) -> Self:
        """Return the limits that each project has."""
        return cls(
            jobs_queued=settings.quota_jobs_queued,
            jobs_running=settings.quota_jobs_running,
            storage_bytes=settings.quota_storage_bytes,
            upload_bytes=settings.upload_max_bytes,
            requests_per_minute=settings.quota_requests_per_minute,
        )

    @classmethod
    def of_project(cls, project: tables.ProjectRow) -> Self:
        """Return the limits of a project's own."""
        return cls(**{name: getattr(project, f"limit_{name}") for name in NAMES})

    def within(self, service: "QuotaLimits") -> "QuotaLimits":
        """Return the smaller of each two limits."""
        return QuotaLimits(**{name: _smaller(self.of(name), service.of(name)) for name in NAMES})

    def of(self, name: str) -> int | None:
        """Return one limit."""
        limit: int | None = getattr(self, name)
        return limit


NAMES = tuple(field.name for field in fields(QuotaLimits))
UNLIMITED = QuotaLimits()
_SETTINGS = {name: f"RETORT_QUOTA_{name.upper()}" for name in NAMES} | {
    "upload_bytes": "RETORT_UPLOAD_MAX_BYTES"
}
_WAYS_OUT = {
    "jobs_queued": "wait until some have run, cancel some",
    "storage_bytes": "delete uploads, versions, data sets or jobs that nobody needs",
    "upload_bytes": "send less, or in several files",
}


@dataclass(frozen=True)
class Usage:
    """One quota: the limit that counts, the two it comes from, and what is used (None: a rate)."""

    name: str
    limit: int | None
    own_limit: int | None
    service_limit: int | None
    used: int | None


# -- refusals ----------------------------------------------------------------------------------


def check_jobs(session: Session, *, project_id: str, new: int, service: QuotaLimits) -> None:
    """Refuse new jobs of a project that has no place for them, and hold its row if it has limits.

    Raises: errors.QuotaExceeded.
    """
    limits = _held_limits(session, project_id, service)
    if limits.jobs_queued is None and limits.storage_bytes is None:
        return
    parameters = {"project_id": project_id, "now": database.now(session)}
    query = _used_by_jobs(counts_bytes=limits.storage_bytes is not None)
    waiting, *stored = session.execute(query, parameters).one()
    if limits.jobs_queued is not None:
        _refuse_beyond("jobs_queued", limits.jobs_queued, waiting, new, pointer="")
    if limits.storage_bytes is not None:
        # A job needs room for a student, whose size nobody knows yet.
        _refuse_beyond("storage_bytes", limits.storage_bytes, _sum(stored), 1, pointer="")


def check_upload(
    session: Session, *, project_id: str, size_bytes: int, service: QuotaLimits
) -> None:
    """Refuse an upload that a project has no room for, and hold its row if it has limits.

    Raises: errors.QuotaExceeded.
    """
    limits = _held_limits(session, project_id, service)
    if limits.upload_bytes is not None:
        _refuse_beyond("upload_bytes", limits.upload_bytes, 0, size_bytes, pointer="/size_bytes")
    if limits.storage_bytes is not None:
        used = stored_bytes(session, project_id=project_id)
        _refuse_beyond(
            "storage_bytes", limits.storage_bytes, used, size_bytes, pointer="/size_bytes"
        )


def check_stored(
    session: Session, *, project_id: str, size_bytes: int, service: QuotaLimits
) -> None:
    """Refuse what will keep about so many bytes more, where a project has no room for them.

    Raises: errors.QuotaExceeded.
    """
    limits = _held_limits(session, project_id, service)
    if limits.storage_bytes is not None:
        used = stored_bytes(session, project_id=project_id)
        _refuse_beyond("storage_bytes", limits.storage_bytes, used, size_bytes, pointer="")


def hold(session: Session, project_id: str) -> tables.ProjectRow:
    """Lock a project's row, so that nobody else counts what it has until this transaction ends.

    The database's clock is asked in the same exchange.
    """
    found = database.first_with_clock(session, _HELD, {"project_id": project_id})
    if found is None:
        raise sa.exc.NoResultFound(f"there is no project {project_id}")
    project: tables.ProjectRow = found[0]
    return project


_HELD = (
    sa.select(tables.ProjectRow)
    .where(tables.ProjectRow.id == sa.bindparam("project_id"))
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)


def _held_limits(session: Session, project_id: str, service: QuotaLimits) -> QuotaLimits:
    return QuotaLimits.of_project(hold(session, project_id)).within(service)


def _refuse_beyond(name: str, limit: int, used: int, wanted: int, *, pointer: str) -> None:
    if used + wanted <= limit:
        return
    beside = f"{used} are used and {wanted} more are asked for" if used else f"this needs {wanted}"
    detail = (
        f"the project's quota {name} is {limit}, {beside}: {_WAYS_OUT[name]}, or have an "
        "administrator raise it (`retort quota`)"
    )
    raise errors.QuotaExceeded(
        detail,
        quota=errors.Quota(name, limit, used, wanted),
        faults=[Fault(pointer, "quota_exceeded", detail)] if pointer else [],
    )


# -- what is used ------------------------------------------------------------------------------


def usage(session: Session, *, project_id: str, service: QuotaLimits) -> list[Usage]:
    """Return every quota of a project, and what it uses of each."""
    own = QuotaLimits.of_project(session.get_one(tables.ProjectRow, project_id))
    used = {
        "jobs_queued": jobs_waiting(session, project_id=project_id),
        "jobs_running": fair_share.count_held(session, project_id=project_id),
        "storage_bytes": stored_bytes(session, project_id=project_id),
    }
    counting = own.within(service)
    return [
        Usage(name, counting.of(name), own.of(name), service.of(name), used.get(name))
        for name in NAMES
    ]


def jobs_waiting(session: Session, *, project_id: str) -> int:
    """Return how many jobs of a project wait."""
    return session.scalars(_WAITING_JOBS, {"project_id": project_id}).one()


_WAITING_JOBS = sa.select(sa.func.count()).where(
    tables.JobRow.project_id == sa.bindparam("project_id"), tables.JobRow.state.in_(WAITING)
)


def stored_bytes(session: Session, *, project_id: str) -> int:
    """Return how many bytes a project keeps: each blob once, and what open uploads announce."""
    parameters = {"project_id": project_id, "now": database.now(session)}
    return _sum(session.execute(_stored_bytes(), parameters).one())


def _sum(stored: Iterable[Any]) -> int:
    return sum(int(part or 0) for part in stored)  # PostgreSQL sums up to decimals


@functools.cache
def _used_by_jobs(*, counts_bytes: bool) -> sa.Select[Any]:
    """Return the query of how many jobs wait, and of what is stored where that counts."""
    waiting = sa.select(_WAITING_JOBS.scalar_subquery())
    return waiting.add_columns(*_stored_bytes().selected_columns) if counts_bytes else waiting


@functools.cache
def _stored_bytes() -> sa.Select[Any]:
    blob, upload = tables.BlobRow, tables.UploadRow
    project_id: sa.BindParameter[str] = sa.bindparam("project_id")
    mine = sa.union(*_digests(project_id)).subquery()
    kept = sa.select(sa.func.sum(blob.size_bytes)).where(blob.sha256.in_(sa.select(mine.c[0])))
    announced = sa.select(sa.func.sum(upload.size_bytes)).where(
        upload.project_id == project_id,
        upload.state == "open",
        upload.expires_at > sa.bindparam("now", type_=database.UTCDateTime()),
    )
    return sa.select(kept.scalar_subquery(), announced.scalar_subquery())


# Any: some of the columns may be null, and others not.
def _digests(project_id: sa.BindParameter[str]) -> list[sa.Select[Any]]:
    """Return what a project's rows refer to: the columns that `jobs/sweeps.py` keeps blobs for."""
    model, model_file = tables.ModelVersionRow, tables.ModelFileRow
    dataset, dataset_file = tables.DatasetVersionRow, tables.DatasetFileRow
    job, checkpoint, upload = tables.JobRow, tables.CheckpointRow, tables.UploadRow
    federation = tables.FederationRow
    closed, reply = tables.FederationRoundRow, tables.FederationReplyRow
    return [
        sa.select(upload.blob_sha256).where(upload.project_id == project_id),
        sa.select(model_file.sha256)
        .join(model, model.id == model_file.version_id)
        .where(model.project_id == project_id),
        sa.select(dataset_file.sha256)
        .join(dataset, dataset.id == dataset_file.version_id)
        .where(dataset.project_id == project_id),
        sa.select(dataset.archive_sha256).where(dataset.project_id == project_id),
        sa.select(checkpoint.sha256)
        .join(job, job.id == checkpoint.job_id)
        .where(job.project_id == project_id),
        sa.select(federation.open_set_sha256).where(federation.project_id == project_id),
        sa.select(closed.consensus_sha256)
        .join(federation, federation.id == closed.federation_id)
        .where(federation.project_id == project_id),
        sa.select(reply.blob_sha256)
        .join(federation, federation.id == reply.federation_id)
        .where(federation.project_id == project_id),
    ]


# -- what an administrator sets ----------------------------------------------------------------


def change(
    session: Session,
    *,
    project_id: str,
    limits: Mapping[str, int | None],
    share_weight: float | None,
    service: QuotaLimits,
) -> tables.ProjectRow:
    """Set limits of a project's own, by name; None leaves a quota to the service's limit.

    Jobs and bytes beyond a new limit stay: it refuses what comes next.

    Raises: errors.Refused for a limit above the service's.
    """
    faults = [
        Fault(
            f"/{name}",
            "above_service_limit",
            f"{name} must be at most {ceiling}, the service's own limit, got {limit}: the operator "
            f"can raise that ({_SETTINGS[name]})",
        )
        for name, limit in limits.items()
        if limit is not None and (ceiling := service.of(name)) is not None and limit > ceiling
    ]
    input_checks.refuse(faults, code="above_service_limit")
    project = hold(session, project_id)
    for name, limit in limits.items():
        setattr(project, f"limit_{name}", limit)
    if share_weight is not None:
        project.share_weight = share_weight
    session.flush()
    return project


def request_limit(session: Session, *, project_id: str, service: QuotaLimits) -> int | None:
    """Return how many requests a project may send in a minute."""
    row = tables.ProjectRow
    own = session.scalars(
        sa.select(row.limit_requests_per_minute).where(row.id == project_id)
    ).one_or_none()
    return _smaller(own, service.requests_per_minute)


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((one for one in (first, second) if one is not None), default=None)

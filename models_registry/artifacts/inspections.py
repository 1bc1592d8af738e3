"""Inspection of uploaded models and data sets: from `pending` to `ready` or `rejected`.

The API stores an upload and publishes a message; a worker claims the version, has a child process
inspect the bytes, and records the outcome here. As for jobs, a fence proves that the outcome comes
from the last claimant, and an inspector that stops renewing loses its claim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import dataset_sources, job_teachers, postponements, uploads
from models_registry.jobs import submission
from models_registry.jobs.leases import OutputFile
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, outbox, tables

log = structlog.get_logger()

Kind = Literal["models", "datasets"]
KINDS: tuple[Kind, ...] = ("models", "datasets")
QUEUE = "inspect"
MAX_ATTEMPTS = 3
LEASE_SECONDS = 60.0

Version = tables.ModelVersionRow | tables.DatasetVersionRow
_ROWS: dict[Kind, type[Version]] = {
    "models": tables.ModelVersionRow,
    "datasets": tables.DatasetVersionRow,
}
_FILES: dict[Kind, type[tables.ModelFileRow] | type[tables.DatasetFileRow]] = {
    "models": tables.ModelFileRow,
    "datasets": tables.DatasetFileRow,
}


@dataclass(frozen=True)
class Inspection:
    """A claim on one pending version, with the upload to inspect, or the source."""

    kind: Kind
    version_id: str
    fence: int
    filename: str
    blob: tables.BlobRow | None
    """None where there is a source."""
    version: Version
    source: dataset_sources.DatasetSource | None = None


def claim(
    session: Session, *, kind: Kind, version_id: str, lease_seconds: float = LEASE_SECONDS
) -> Inspection | None:
    """Claim a pending version; return None if it is no longer pending or is claimed already."""
    row: Any = _ROWS[kind]
    now = database.now(session)
    fence = session.scalars(
        sa.update(row)
        .where(
            row.id == version_id,
            row.state == "pending",
            sa.or_(row.inspection_expires_at.is_(None), row.inspection_expires_at < now),
        )
        .values(
            inspection_fence=row.inspection_fence + 1,
            inspection_attempts=row.inspection_attempts + 1,
            inspection_expires_at=now + timedelta(seconds=lease_seconds),
        )
        .returning(row.inspection_fence)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if fence is None:
        return None
    version: Version = session.get_one(row, version_id, populate_existing=True)
    if version.inspection_attempts > MAX_ATTEMPTS:
        _reject(session, version, _gave_up())
        return None
    if isinstance(version, tables.DatasetVersionRow) and version.source is not None:
        source = dataset_sources.source_of(session, version)
        return Inspection(kind, version_id, fence, source.name, None, version, source)
    upload = session.get_one(tables.UploadRow, version.upload_id)
    blob = session.get_one(tables.BlobRow, upload.blob_sha256)
    return Inspection(kind, version_id, fence, upload.filename, blob, version)


def renew(
    session: Session, inspection: Inspection, *, lease_seconds: float = LEASE_SECONDS
) -> None:
    """Extend the claim: large files take longer than one lease.

    Raises: errors.StaleFence when another inspector has taken over.
    """
    version = _held(session, inspection)
    version.inspection_expires_at = database.now(session) + timedelta(seconds=lease_seconds)
    session.flush()


def accept(
    session: Session,
    inspection: Inspection,
    *,
    files: Sequence[OutputFile],
    sha256: str,
    facts: dict[str, Any],
) -> None:
    """Make a version `ready` with its files, whose bytes are stored already.

    `facts` are columns of the version by name, as the inspection measured them.

    Raises: errors.StaleFence when another inspector has taken over.
    """
    version = _held(session, inspection)
    for file in files:
        uploads.adopt(
            session, sha256=file.sha256, size_bytes=file.size_bytes, storage_key=file.storage_key
        )
        session.add(
            _FILES[inspection.kind](
                version_id=version.id,
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
            )
        )
    if isinstance(version, tables.DatasetVersionRow):
        # A model's file can be converted back; what was chosen and left out of an archive cannot.
        version.archive_sha256 = session.get_one(tables.UploadRow, version.upload_id).blob_sha256
    _make_ready(session, inspection, version, sha256=sha256, facts=facts)


def accept_source(
    session: Session,
    inspection: Inspection,
    *,
    pinned: dataset_sources.PinnedSource,
    files: Sequence[dataset_sources.PreparedFile],
    sha256: str,
    facts: dict[str, Any],
) -> None:
    """Make a version `ready` that refers to a source, with what was prepared of that; as `accept`.

    No bytes are stored: workers make them again, and compare them with `files`.
    """
    version = _held(session, inspection)
    for file in files:
        session.add(
            tables.DatasetSourceFileRow(
                version_id=version.id,
                path=file.path,
                sha256=file.sha256,
                size_bytes=file.size_bytes,
            )
        )
    if isinstance(version, tables.DatasetVersionRow):
        version.source = pinned.as_json()
        version.lineage = {"source": pinned.url, "source_digest": f"sha256:{pinned.sha256}"}
    _make_ready(session, inspection, version, sha256=sha256, facts=facts)


def _make_ready(
    session: Session,
    inspection: Inspection,
    version: Version,
    *,
    sha256: str,
    facts: dict[str, Any],
) -> None:
    for name, value in facts.items():
        setattr(version, name, value)
    version.sha256 = sha256
    version.state, version.rejection, version.inspection_expires_at = "ready", None, None
    session.flush()
    log.info("version_accepted", kind=inspection.kind, version_id=version.id)
    _settle_jobs(session, version)


def reject(session: Session, inspection: Inspection, *, rejection: dict[str, Any]) -> None:
    """Make a version `rejected`, with code, message, and the keys that do not match.

    Raises: errors.StaleFence when another inspector has taken over.
    """
    _reject(session, _held(session, inspection), rejection)


def give_back(session: Session, inspection: Inspection, *, counted: bool) -> None:
    """Give up the claim, so that another worker inspects the version.

    An attempt is `counted` if the file may have caused its failure; too many of them reject it.
    """
    version = _held(session, inspection)
    if not counted:
        version.inspection_attempts -= 1
    version.inspection_expires_at = None
    version.announced_at = None
    session.flush()


def postpone(
    session: Session, inspection: Inspection, *, reason: str, may_be_the_file: bool
) -> None:
    """Give up the claim because a worker lacks something, and let it rest before the next.

    The delay doubles each time, up to five minutes. Where the size of the file may be the cause
    (`may_be_the_file`), the version is rejected after `postponements.MOST`, with the reason.

    Raises: errors.StaleFence when another inspector has taken over.
    """
    version = _held(session, inspection)
    version.inspection_attempts -= 1
    count = version.inspection_fence - version.inspection_attempts
    if may_be_the_file and count >= postponements.MOST:
        _reject(session, version, _no_room(inspection, reason))
        return
    delay = postponements.delay(count)
    version.inspection_expires_at = database.now(session) + delay
    version.announced_at = None
    session.flush()
    log.warning(
        "inspection_postponed",
        kind=inspection.kind,
        version_id=version.id,
        reason=reason,
        delay_seconds=delay.total_seconds(),
        postponements=count,
    )


def republish(session: Session, *, after_seconds: float) -> int:
    """Publish the message again for versions that wait for inspection; return how many."""
    now = database.now(session)
    count = 0
    for kind in KINDS:
        row: Any = _ROWS[kind]
        early = now - timedelta(seconds=after_seconds)
        unclaimed = sa.or_(row.inspection_expires_at.is_(None), row.inspection_expires_at < now)
        silent = sa.or_(row.announced_at.is_(None), row.announced_at < early)
        query = sa.select(row).where(row.state == "pending", unclaimed, silent)
        for version in session.scalars(query.with_for_update(skip_locked=True)):
            announce(session, kind, version)
            count += 1
    return count


def count_states(session: Session) -> dict[tuple[Kind, str, str], int]:
    """Return how many versions there are by kind, state and, of rejected ones, the code."""
    found: dict[tuple[Kind, str, str], int] = {}
    for kind in KINDS:
        row: Any = _ROWS[kind]
        code = row.rejection["code"].as_string()
        query = sa.select(row.state, code, sa.func.count()).where(row.deleted_at.is_(None))
        for state, reason, count in session.execute(query.group_by(row.state, code)):
            found[kind, state, reason or ""] = count
    return found


def pending_seconds(session: Session) -> dict[Kind, float]:
    """Return for each kind how long its oldest pending version has waited; 0 where none does."""
    now = database.now(session)
    ages: dict[Kind, float] = {}
    for kind in KINDS:
        row: Any = _ROWS[kind]
        waiting = sa.select(sa.func.min(row.created_at)).where(
            row.state == "pending", row.deleted_at.is_(None)
        )
        oldest = session.scalars(waiting).one()
        ages[kind] = 0.0 if oldest is None else (now - oldest).total_seconds()
    return ages


def announce(session: Session, kind: Kind, version: Version) -> None:
    """Publish the message that makes a worker inspect a pending version."""
    version.announced_at = database.now(session)
    outbox.add(session, task=f"{kind}.inspect", queue=QUEUE, payload={"version_id": version.id})
    session.flush()


def _held(session: Session, inspection: Inspection) -> Version:
    row: Any = _ROWS[inspection.kind]
    version: Version = session.get_one(
        row, inspection.version_id, with_for_update=True, populate_existing=True
    )
    if version.inspection_fence != inspection.fence or version.state != "pending":
        raise errors.StaleFence(f"{version.id} is inspected by somebody else")
    return version


def _reject(session: Session, version: Version, rejection: dict[str, Any]) -> None:
    version.state, version.rejection, version.inspection_expires_at = "rejected", rejection, None
    session.flush()
    log.info("version_rejected", version_id=version.id, code=rejection["code"])
    _settle_jobs(session, version)


def _settle_jobs(session: Session, version: Version) -> None:
    job = tables.JobRow
    refers = sa.or_(
        job.teacher_version_id == version.id,
        job.initial_version_id == version.id,
        job.dataset_version_id == version.id,
        job.id.in_(job_teachers.jobs_of_version(version.id)),
    )
    waiting = sa.select(job).where(job.state == State.VALIDATING, refers).order_by(job.id)
    # Locked: of two inspections that end at the same time, the later must see the other's outcome.
    for row in session.scalars(waiting.with_for_update(key_share=True)).all():
        submission.settle(session, row)


def _gave_up() -> dict[str, Any]:
    return _rejection(
        "inspection_failed",
        f"The file could not be inspected in {MAX_ATTEMPTS} attempts: the inspecting process "
        "died each time, most likely for lack of memory. Upload a smaller file.",
    )


def _no_room(inspection: Inspection, reason: str) -> dict[str, Any]:
    if inspection.blob is None:
        return _rejection(
            "source_unreachable",
            f"The source could not be inspected in {postponements.MOST} tries; the last said: "
            f"{reason}. Register it again once that is mended.",
        )
    return _rejection(
        "too_large",
        f"There was no room to inspect this file of {inspection.blob.size_bytes} bytes, in "
        f"{postponements.MOST} tries; the last said: {reason}. Upload a smaller file, or have the "
        "operator give the workers and the store more disk, and upload it again.",
    )


def _rejection(code: str, message: str) -> dict[str, Any]:
    return {
        "code": code,
        "message": message,
        "missing_keys": [],
        "unexpected_keys": [],
        "shape_mismatches": [],
    }

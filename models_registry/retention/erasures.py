"""The erasure of a data set that the law demands: its bytes go at once, and everywhere.

A deletion leaves bytes for the grace of the sweep, and pictures in the reports of students. An
erasure deletes the prepared files, the archive, the upload, open sets of federations and pictures
of reports that show images of the data set; workers drop it from their caches at their next
heartbeat. What remains is listed: names and digests, which lineage needs, and what was learned.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry.artifacts import datasets, exports, references, uploads, uses
from models_registry.jobs import actions, lifecycle, reports, workers
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.retention import blobs
from workers.distill.config import report as report_rules

log = structlog.get_logger()

BATCH = 100
SETTLED_AFTER = timedelta(hours=1)
PUT_TO_COMMIT = timedelta(hours=1)
"""Within this time nearly every process names the bytes that it has put; the grace is for all."""
_CLOCKS = timedelta(minutes=1)
"""How far the clocks of database and store may differ."""
_SHOWN = 20


@dataclass(frozen=True)
class Remainder:
    """Something that an erasure leaves."""

    kind: str
    name: str
    reason: str


@dataclass
class Erasure:
    """What an erasure has deleted, and what it leaves."""

    reference: str
    versions: list[str] = field(default_factory=list)
    blobs: int = 0
    size_bytes: int = 0
    pictures: list[str] = field(default_factory=list)
    """Files of reports, as `name@version/path`."""
    cancelled_jobs: list[str] = field(default_factory=list)
    remains: list[Remainder] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of the rows of its blobs."""


def erase(
    session: Session,
    *,
    project_id: str,
    name: str,
    version: int | None = None,
    cancel_jobs: bool = False,
) -> Erasure:
    """Erase a data set, or one version of it, in the caller's transaction.

    One that was deleted before, or erased, can be erased as well: pictures of its images and its
    archive are still found. Call `finish` after the commit: it deletes the bytes.

    Raises: errors.NotFound; errors.Conflict for one that is built in; errors.InUse while jobs that
    go on need it, unless they are to be cancelled.
    """
    line, chosen = _chosen(session, project_id, name, version)
    reference = name if version is None else references.write(name, version)
    erasure = Erasure(reference, [references.write(name, row.version) for row in chosen])
    ids = [row.id for row in chosen]
    _end_jobs(session, erasure, project_id, ids, cancel_jobs=cancel_jobs)
    _drop_source_files(session, erasure, chosen)
    taken = {
        *_drop_files(session, ids),
        *_drop_uploads(session, chosen),
        *_drop_pictures(session, erasure, ids),
        *_drop_open_sets(session, ids),
    }
    now = database.now(session)
    for row in chosen:
        taken |= _archives(row)
        if row.deleted_at is not None and row.source is None:
            _leave_prepared(erasure, references.write(name, row.version))
        row.archive_sha256, row.deleted_at = None, row.deleted_at or now
        # They may quote the data, or name people and files.
        row.card, row.tags, row.notes = "", {}, None
        if row.state == "pending":
            row.state = "rejected"
            row.rejection = {"code": "erased", "message": "erased before its inspection"}
    if version is None:
        line.card, line.tags, line.deleted_at = "", {}, line.deleted_at or now
    session.flush()
    _drop_blobs(session, erasure, taken)
    _list_remains(session, erasure, ids)
    return erasure


def finish(sessions: database.Sessions, storage: Storage, *, grace: timedelta) -> int:
    """Delete the bytes of erasures from the store; return how many blobs were deleted.

    Somebody else may have put the same bytes, and be about to commit the row that names them. What
    was adopted within `PUT_TO_COMMIT` is therefore left to a later call, and what was put since its
    last adoption until `grace` has passed after the erasure. Bytes that a row names by then, or
    that were put after the erasure, stay: somebody has them by right.

    Raises: errors.StorageDown; the call after that goes on.
    """
    row, after, deleted = tables.ErasedBlobRow, 0, 0
    while True:
        with sessions.begin() as session:
            now = database.now(session)
            settled = row.adopted_at <= now - min(PUT_TO_COMMIT, grace)
            query = sa.select(row).where(row.deleted_at.is_(None), settled, row.id > after)
            some = session.scalars(query.order_by(row.id).limit(BATCH)).all()
        for erased in some:
            is_over = erased.erased_at + grace <= now
            deleted += _finish_one(sessions, storage, erased, is_over=is_over)
            after = erased.id
        if len(some) < BATCH:
            return deleted


def _finish_one(
    sessions: database.Sessions,
    storage: Storage,
    erased: tables.ErasedBlobRow,
    *,
    is_over: bool,
) -> bool:
    """Delete the bytes of one erased blob unless somebody has them by right; return whether.

    `is_over` says that nobody can be about to name them any more.
    """
    with sessions.begin() as session:
        blob = session.get(tables.BlobRow, erased.sha256)
        if blob is not None:  # named by right, since the erasure
            session.get_one(tables.ErasedBlobRow, erased.id).deleted_at = database.now(session)
            return False
    # The last put of bytes that only the erased data set has came before its adoption.
    since = min(erased.erased_at, erased.adopted_at + _CLOCKS)
    storage.delete(erased.storage_key, unless_stored_since=erased.erased_at if is_over else since)
    is_gone = not storage.exists(erased.storage_key)
    if not is_gone and not is_over:
        log.info("erased_bytes_put_again", sha256=erased.sha256)
        return False
    with sessions.begin() as session:
        session.get_one(tables.ErasedBlobRow, erased.id).deleted_at = database.now(session)
    return is_gone


def waiting(session: Session, erasure: Erasure | None = None) -> int:
    """Return how many erased blobs are still in the store: of one erasure, or of all."""
    row = tables.ErasedBlobRow
    query = sa.select(sa.func.count()).where(row.deleted_at.is_(None))
    if erasure is not None:
        query = query.where(row.id.in_(erasure.numbers))
    return session.scalars(query).one()


@dataclass(frozen=True)
class ErasedBlob:
    """Bytes that no worker may keep; once `is_settled`, none can get them any more."""

    number: int
    sha256: str
    is_settled: bool


def erased_after(session: Session, *, last: int, limit: int = 1000) -> list[ErasedBlob]:
    """Return erased blobs after a number, in order; for workers' caches."""
    row = tables.ErasedBlobRow
    settled = database.now(session) - SETTLED_AFTER
    found = session.scalars(sa.select(row).where(row.id > last).order_by(row.id).limit(limit))
    return [ErasedBlob(one.id, one.sha256, one.erased_at < settled) for one in found]


# -- details ---------------------------------------------------------------------------------


def _chosen(
    session: Session, project_id: str, name: str, version: int | None
) -> tuple[tables.DatasetRow, Sequence[tables.DatasetVersionRow]]:
    """Return the line and the versions to erase, locked; those that were deleted are among them."""
    data_set = tables.DatasetRow
    query = sa.select(data_set).where(data_set.project_id == project_id, data_set.name == name)
    line = session.scalars(query.with_for_update()).one_or_none()
    if line is None:
        line = datasets.get(session, project_id=project_id, name=name)  # says which there are
    row = tables.DatasetVersionRow
    versions = sa.select(row).where(row.dataset_id == line.id)
    if version is not None:
        versions = versions.where(row.version == version)
    chosen = session.scalars(versions.order_by(row.version).with_for_update()).all()
    if version is not None and not chosen:
        datasets.get_version(session, project_id=project_id, name=name, version=version)
    for each in chosen:
        datasets.refuse_if_builtin(each)
    return line, chosen


def _archives(version: tables.DatasetVersionRow) -> set[str]:
    """Return the digests of the archive that a version was made from, also of a deleted one."""
    uploaded = str(version.lineage.get("upload_digest", "")).removeprefix("sha256:")
    return {digest for digest in (version.archive_sha256, uploaded) if digest}


def _leave_prepared(erasure: Erasure, reference: str) -> None:
    reason = (
        "it was deleted before: what the deletion has left of its prepared files goes with the "
        "sweep, once the grace has passed since then"
    )
    erasure.remains.append(Remainder("prepared files", reference, reason))


def _end_jobs(
    session: Session, erasure: Erasure, project_id: str, ids: Sequence[str], *, cancel_jobs: bool
) -> None:
    job = tables.JobRow
    needs = sa.and_(job.dataset_version_id.in_(ids), job.state.not_in(lifecycle.FINAL))
    if not cancel_jobs:
        way_out = "cancel them, wait for their end, or erase with cancel_jobs true"
        uses.refuse(erasure.reference, uses.by_jobs(session, needs), way_out=way_out)
    for job_id in session.scalars(sa.select(job.id).where(needs).order_by(job.id)).all():
        message = f"{erasure.reference}, which the job needs, was erased."
        cancelled = actions.cancel(session, project_id=project_id, job_id=job_id, message=message)
        erasure.cancelled_jobs.append(job_id)
        if not lifecycle.is_final(State(cancelled.state)):
            reason = "its engine has a copy until it has stopped, within a minute"
            erasure.remains.append(Remainder("working folder", job_id, reason))


def _drop_files(session: Session, ids: Sequence[str]) -> Sequence[str]:
    file, samples = tables.DatasetFileRow, tables.DatasetSamplesRow
    # Small pictures of the data, in a row of their own.
    shown = sa.delete(samples).where(samples.version_id.in_(ids))
    session.execute(shown.execution_options(synchronize_session=False))
    dropped = sa.delete(file).where(file.version_id.in_(ids)).returning(file.sha256)
    return session.scalars(dropped.execution_options(synchronize_session=False)).all()


def _drop_source_files(
    session: Session, erasure: Erasure, chosen: Sequence[tables.DatasetVersionRow]
) -> None:
    """Have workers drop what they have prepared of sources; a source itself is not ours."""
    file = tables.DatasetSourceFileRow
    ids = [version.id for version in chosen]
    dropped = sa.delete(file).where(file.version_id.in_(ids)).returning(file)
    now = database.now(session)
    for one in session.scalars(dropped.execution_options(synchronize_session=False)).all():
        session.add(
            tables.ErasedBlobRow(
                sha256=one.sha256,
                storage_key="",  # none of it was ever in the store
                size_bytes=one.size_bytes,
                adopted_at=now,
                erased_at=now,
                deleted_at=now,
            )
        )
    for version in chosen:
        if version.source is not None:
            reason = "the files are where they were: nothing of them is in the store"
            erasure.remains.append(Remainder("source", version.source["url"], reason))


def _drop_uploads(session: Session, chosen: Sequence[tables.DatasetVersionRow]) -> Iterable[str]:
    """Close the uploads that the versions were made from; yield the blobs that they named."""
    row = tables.UploadRow
    wanted = [version.upload_id for version in chosen if version.upload_id is not None]
    other, ids = tables.DatasetVersionRow, [version.id for version in chosen]
    for upload in session.scalars(sa.select(row).where(row.id.in_(wanted)).with_for_update()):
        if upload.blob_sha256 is not None:
            yield upload.blob_sha256
        # A version of another name may still be made from it; its bytes are told as a remainder.
        awaited = sa.select(other.id).where(
            other.upload_id == upload.id, other.state == "pending", other.id.not_in(ids)
        )
        if session.scalars(awaited.limit(1)).first() is not None:
            continue
        if upload.state == uploads.COMPLETED:
            upload.state, upload.blob_sha256 = uploads.DELETED, None
            upload.expires_at = database.now(session)


def _drop_pictures(session: Session, erasure: Erasure, ids: Sequence[str]) -> list[str]:
    """Take the pictures that show images of the data set out of reports; return their blobs."""
    job, version, file = tables.JobRow, tables.ModelVersionRow, tables.ModelFileRow
    shown = sa.or_(
        *(
            file.path.startswith(f"{reports.FOLDER}{name}.", autoescape=True)
            for name in sorted(report_rules.SHOW_IMAGES)
        )
    )
    found = session.execute(
        sa.select(file, job, version.version, tables.ModelRow.name)
        .join(version, version.id == file.version_id)
        .join(job, job.id == version.job_id)
        .join(tables.ModelRow, tables.ModelRow.id == version.model_id)
        .where(job.dataset_version_id.in_(ids), shown, ~file.path.endswith(".json"))
        .order_by(version.id, file.path)
    ).all()
    taken = []
    for picture, made_by, number, name in found:
        erasure.pictures.append(f"{references.write(name, number)}/{picture.path}")
        taken.append(picture.sha256)
        told = {
            "code": "picture_erased",
            "message": f"{picture.path} showed images of {erasure.reference}, which was erased; "
            "the list of the report and the model card may go on naming it.",
        }
        made_by.warnings = [*(made_by.warnings or []), told]
        session.delete(picture)
    return taken


def _drop_open_sets(session: Session, ids: Sequence[str]) -> list[str]:
    """Take the images that federations have given to their clients; return their blobs."""
    job, row = tables.JobRow, tables.FederationRow
    of_jobs = sa.select(job.id).where(job.dataset_version_id.in_(ids))
    found = session.scalars(
        sa.select(row).where(row.job_id.in_(of_jobs), row.open_set_sha256.is_not(None))
    ).all()
    taken = [str(federation.open_set_sha256) for federation in found]
    for federation in found:
        federation.open_set_sha256 = None
    return taken


def _drop_blobs(session: Session, erasure: Erasure, taken: Iterable[str]) -> None:
    """Let the bytes go that no other row needs, and list those that one does."""
    blob = tables.BlobRow
    wanted = sa.select(blob).where(blob.sha256.in_(list(taken))).order_by(blob.sha256)
    # A row that begins to name one of them meanwhile waits for this transaction.
    for found in session.scalars(wanted.with_for_update()).all():
        still = sa.select(blob.sha256).where(blob.sha256 == found.sha256, blobs.is_needed())
        if session.scalars(still).first() is not None:
            reason = "the same bytes were stored for something else, which still needs them"
            erasure.remains.append(Remainder("blob", f"sha256:{found.sha256}", reason))
            continue
        erased = tables.ErasedBlobRow(
            sha256=found.sha256,
            storage_key=found.storage_key,
            size_bytes=found.size_bytes,
            adopted_at=found.adopted_at,
            erased_at=database.now(session),
        )
        session.add(erased)
        session.flush()
        erasure.numbers.append(erased.id)
        erasure.blobs += 1
        erasure.size_bytes += found.size_bytes
        session.delete(found)
    session.flush()


def _list_remains(session: Session, erasure: Erasure, ids: Sequence[str]) -> None:
    def leave(kind: str, name: str, reason: str) -> None:
        erasure.remains.append(Remainder(kind, name, reason))

    for reference in erasure.versions:
        leave(
            "lineage", reference, "name, digest and names of classes stay, for what was made of it"
        )
    job, version, line = tables.JobRow, tables.ModelVersionRow, tables.ModelRow
    learned = (
        sa.select(line.name, version.version, sa.func.count().over())
        .join(job, job.id == version.job_id)
        .join(line, line.id == version.model_id)
        .where(job.dataset_version_id.in_(ids), version.deleted_at.is_(None))
        .order_by(version.id)
        .limit(_SHOWN)
    )
    rows = session.execute(learned).all()
    for name, number, _ in rows:
        leave("model", references.write(name, number), "trained with it; delete it if it must go")
    if rows and rows[0][2] > len(rows):
        leave("model", f"and {rows[0][2] - len(rows)} more", "trained with it")
    export = tables.ModelExportRow
    being_made = (
        sa.select(export.id)
        .join(version, version.id == export.version_id)
        .join(job, job.id == version.job_id)
        .where(job.dataset_version_id.in_(ids), export.state == exports.RUNNING)
        .order_by(export.id)
        .limit(_SHOWN)
    )
    for export_id in session.scalars(being_made):
        leave("working folder", export_id, "its worker has a copy until the export has ended")
    for name in workers.online_names(session):
        leave("cache", name, "this worker drops its copies at its next heartbeat")
    leave("copies elsewhere", "downloads, backups, old versions of objects", "not in our reach")

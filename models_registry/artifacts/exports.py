"""Exports: a model version in another form, made and checked by a worker.

A request leaves a row and a message. A worker claims the row, has a child process write the files
and compare them with the original, and records the outcome here: `ready` with files, `refused`
with the numbers that were not good enough, or `failed`. As for inspections, a fence proves that an
outcome comes from the last claimant. Files of an export are files of its version, below
`exports/<id>/`: they count to the project's storage, and go with the version.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry import errors, ids
from models_registry.access import quotas
from models_registry.artifacts import (
    dataset_sources,
    datasets,
    input_checks,
    models,
    postponements,
    uploads,
)
from models_registry.errors import Fault
from models_registry.jobs import submission, transitions, validation
from models_registry.jobs.leases import OutputFile
from models_registry.persistence import database, outbox, paging, tables
from workers.distill.config import exports as rules
from workers.distill.config import teachers
from workers.distill.config.exports import ExportChoice
from workers.distill.config.rules import Violation

log = structlog.get_logger()

TASK, QUEUE = "models.export", "inspect"
QUEUED, RUNNING, READY, FAILED, REFUSED = "queued", "running", "ready", "failed", "refused"
WAITING = (QUEUED, RUNNING)
FOLDER = "exports/"
MOST_ATTEMPTS = 3
MOST_OF_A_VERSION = 100
MOST_WAITING = 32
"""Of a project, that no worker has ended."""
LEASE_SECONDS = 60.0
_RETRY_SECONDS = 60.0
_SPLITS = ("train", "validation", "test")
_DATA_FREE = "its method saw no training image, and calibration would read some"


# -- requests ----------------------------------------------------------------------------------


def request(
    session: Session,
    *,
    version: tables.ModelVersionRow,
    choice: ExportChoice,
    service: quotas.QuotaLimits,
) -> tables.ModelExportRow:
    """Return the export of a version in this form; make it unless there is one that did not fail.

    Raises: errors.Conflict for a version that is not ready; errors.Refused for a form that its
    network cannot have; errors.RateLimited while too many of the project's wait;
    errors.QuotaExceeded.
    """
    reference = models.reference_of(version)
    # One at a time: of two equal requests, the second finds what the first has made.
    session.refresh(version, with_for_update={"key_share": True})
    if version.deleted_at is not None:
        raise errors.Gone(f"{reference} was deleted")
    if version.state != "ready":
        raise errors.Conflict(
            f"{reference} is {version.state}: only ready versions can be exported",
            code="version_not_ready",
        )
    violations = [
        *rules.faults(choice, network=version.network, task=version.task),
        *_without_images(session, version, choice),
    ]
    input_checks.refuse([_fault(one) for one in violations], code="invalid_export")
    existing = _existing(session, version, choice)
    if existing is not None:
        return existing
    _check_count(session, version)
    waiting, their_bytes = _waiting(session, version.project_id)
    if waiting >= MOST_WAITING:
        raise errors.RateLimited(
            f"{waiting} exports of the project wait for a worker already, and {MOST_WAITING} may: "
            "wait until some are made, or delete some",
            retry_after_seconds=_RETRY_SECONDS,
        )
    weights = session.get_one(tables.BlobRow, version.sha256)
    quotas.check_stored(
        session,
        project_id=version.project_id,
        size_bytes=their_bytes + weights.size_bytes,
        service=service,
    )
    row = tables.ModelExportRow(
        id=ids.new("exp"),
        project_id=version.project_id,
        version_id=version.id,
        **choice.model_dump(),
        state=QUEUED,
        notes=[],
        created_at=database.now(session),
    )
    session.add(row)
    _announce(session, row)
    return row


def request_of_job(session: Session, job_id: str, *, service: quotas.QuotaLimits) -> None:
    """Ask for the exports that a finished job's spec names; a warning of the job tells what fails.

    The delivered network may be another than the spec's, and the storage full by now.
    """
    job = session.get_one(tables.JobRow, job_id)
    for choice in submission.spec_of(job).exports:
        version = session.get_one(tables.ModelVersionRow, job.student_version_id)
        try:
            request(session, version=version, choice=choice, service=service)
        except errors.RegistryError as error:
            message = f"Its {choice.format} export in {choice.precision} is not made: {error}."
            told = {"code": "export_not_made", "message": message}
            job.warnings = [*(job.warnings or []), told]
            session.flush()
            transitions.add_event(session, job_id, "warning", told)


def get(
    session: Session, *, version: tables.ModelVersionRow, export_id: str, lock: bool = False
) -> tables.ModelExportRow:
    """Return an export of a version. Raises: errors.NotFound."""
    row = tables.ModelExportRow
    query = sa.select(row).where(row.id == export_id, row.version_id == version.id)
    if lock:
        query = query.with_for_update()
    found = session.scalars(query).one_or_none()
    if found is None:
        shown = input_checks.printable(export_id[:60])
        raise errors.NotFound(f"{models.reference_of(version)} has no export {shown}")
    return found


def page(
    session: Session, *, version: tables.ModelVersionRow, wanted: paging.PageRequest
) -> paging.Page[tables.ModelExportRow]:
    """Return a page of a version's exports, newest first."""
    row = tables.ModelExportRow
    statement = sa.select(row).where(row.version_id == version.id)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def delete(session: Session, *, version: tables.ModelVersionRow, export_id: str) -> None:
    """Delete an export with its files; a worker that makes it stops. Raises: errors.NotFound."""
    row = get(session, version=version, export_id=export_id, lock=True)
    file = tables.ModelFileRow
    session.execute(
        sa.delete(file).where(
            file.version_id == version.id, file.path.startswith(folder_of(row), autoescape=True)
        )
    )
    session.delete(row)
    session.flush()


def files(
    session: Session, rows: Iterable[tables.ModelExportRow]
) -> dict[str, list[tables.ModelFileRow]]:
    """Return the files of each of these exports, by the export's id."""
    by_folder = {folder_of(row): row.id for row in rows}
    found: dict[str, list[tables.ModelFileRow]] = {name: [] for name in by_folder.values()}
    versions = {row.version_id for row in rows}
    file = tables.ModelFileRow
    query = sa.select(file).where(
        file.version_id.in_(versions), file.path.startswith(FOLDER, autoescape=True)
    )
    for one in session.scalars(query.order_by(file.path)):
        parts = one.path.split("/", 2)
        owner = by_folder.get("/".join([*parts[:2], ""]))
        if owner is not None:
            found[owner].append(one)
    return found


def newest_onnx(session: Session, version: tables.ModelVersionRow) -> tables.ModelExportRow | None:
    """Return the newest ready ONNX export of a version that takes normalised images."""
    row = tables.ModelExportRow
    query = sa.select(row).where(
        row.version_id == version.id,
        row.format == "onnx",
        row.precision == "float32",
        row.include_preprocessing.is_(False),
        row.state == READY,
    )
    return session.scalars(query.order_by(row.created_at.desc(), row.id.desc()).limit(1)).first()


def folder_of(row: tables.ModelExportRow) -> str:
    """Return how the paths of an export's files begin, among those of its version."""
    return f"{FOLDER}{row.id}/"


def dataset_of(
    session: Session, version: tables.ModelVersionRow
) -> tuple[tables.DatasetVersionRow | None, str]:
    """Return the data set that a version was evaluated on, or None and why there is none."""
    job = session.get(tables.JobRow, version.job_id) if version.job_id else None
    if job is None:
        return None, "the version was uploaded, and no data set is known for it"
    if job.dataset_version_id is None:
        return None, "its job had no data set"
    dataset = session.get_one(tables.DatasetVersionRow, job.dataset_version_id)
    if dataset.deleted_at is not None:
        return None, "the data set of its job was deleted"
    return dataset, ""


def is_data_free(session: Session, version: tables.ModelVersionRow) -> bool:
    """Return whether a version's job must not read training images."""
    job = session.get(tables.JobRow, version.job_id) if version.job_id else None
    return job is not None and validation.is_data_free(job.spec["method"])


def _without_images(
    session: Session, version: tables.ModelVersionRow, choice: ExportChoice
) -> Iterable[Violation]:
    dataset, because = dataset_of(session, version)
    if dataset is None:
        return rules.fault_without_images(choice, because=because)
    if is_data_free(session, version):
        return rules.fault_without_images(choice, because=_DATA_FREE)
    return ()


def _existing(
    session: Session, version: tables.ModelVersionRow, choice: ExportChoice
) -> tables.ModelExportRow | None:
    row = tables.ModelExportRow
    same = [getattr(row, name) == value for name, value in choice.model_dump().items()]
    query = sa.select(row).where(row.version_id == version.id, row.state != FAILED, *same)
    return session.scalars(query.order_by(row.created_at.desc()).limit(1)).first()


def _check_count(session: Session, version: tables.ModelVersionRow) -> None:
    row = tables.ModelExportRow
    count = session.scalars(sa.select(sa.func.count()).where(row.version_id == version.id)).one()
    if count >= MOST_OF_A_VERSION:
        raise errors.Conflict(
            f"{models.reference_of(version)} has {count} exports, and may have "
            f"{MOST_OF_A_VERSION}: delete some that nobody needs, failed ones first",
            code="too_many_exports",
        )


def _waiting(session: Session, project_id: str) -> tuple[int, int]:
    """Return how many exports of a project wait, and about how many bytes they will take.

    Its row stays locked: of requests at the same time, the second counts the first.
    """
    quotas.hold(session, project_id)
    row, version, blob = tables.ModelExportRow, tables.ModelVersionRow, tables.BlobRow
    # As large as the weights, which nobody knows better before they are written.
    query = (
        sa.select(sa.func.count(), sa.func.sum(blob.size_bytes))
        .select_from(row)
        .join(version, version.id == row.version_id)
        .join(blob, blob.sha256 == version.sha256)
        .where(row.project_id == project_id, row.state.in_(WAITING))
    )
    count, size_bytes = session.execute(query).one()
    return count, int(size_bytes or 0)


def _fault(violation: Violation) -> Fault:
    return Fault(f"/{violation.field}", violation.code, violation.message)


# -- the work ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportClaim:
    """A claim on one export, with what its child process needs."""

    export_id: str
    fence: int
    choice: ExportChoice
    version: tables.ModelVersionRow
    inputs: dict[str, tables.BlobRow]
    """Blobs by their path in the working folder."""
    builtin: str | None
    """Name of a data set that is written by a child process and not stored; else None."""
    source: dataset_sources.SourceInputs | None
    """Of a data set that refers to files elsewhere; else None."""
    withheld: frozenset[str]
    """Files of the data set that the export does not need, or must not see."""
    may_train: bool
    """Whether it may see training images."""
    config: tables.BlobRow | None
    """The version's `config.json`."""
    why_no_dataset: str


def claim(
    session: Session, export_id: str, *, lease_seconds: float = LEASE_SECONDS
) -> ExportClaim | None:
    """Claim a waiting export; return None if it is not waiting, or claimed already."""
    row = tables.ModelExportRow
    now = database.now(session)
    fence = session.scalars(
        sa.update(row)
        .where(
            row.id == export_id,
            row.state.in_(WAITING),
            sa.or_(row.claim_expires_at.is_(None), row.claim_expires_at < now),
        )
        .values(
            state=RUNNING,
            fence=row.fence + 1,
            attempts=row.attempts + 1,
            started_at=sa.func.coalesce(row.started_at, now),
            claim_expires_at=now + timedelta(seconds=lease_seconds),
        )
        .returning(row.fence)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if fence is None:
        return None
    export = session.get_one(row, export_id, populate_existing=True)
    if export.attempts > MOST_ATTEMPTS:
        _end(session, export, FAILED, failure=_gave_up())
        return None
    version = session.get_one(tables.ModelVersionRow, export.version_id)
    return _claimed(session, export, version)


def _claimed(
    session: Session, export: tables.ModelExportRow, version: tables.ModelVersionRow
) -> ExportClaim:
    dataset, because = dataset_of(session, version)
    withheld = _withheld(session, export, version)
    inputs = {f"model/{teachers.WEIGHTS_FILE}": session.get_one(tables.BlobRow, version.sha256)}
    builtin = None
    if dataset is not None and dataset.format == datasets.BUILTIN:
        builtin = datasets.name_of(dataset)
    elif dataset is not None:
        file = tables.DatasetFileRow
        for one in session.scalars(sa.select(file).where(file.version_id == dataset.id)):
            if not datasets.is_withheld(one.path, withheld):
                inputs[f"dataset/{one.path}"] = session.get_one(tables.BlobRow, one.sha256)
    config = session.get(tables.ModelFileRow, (version.id, "config.json"))
    return ExportClaim(
        export.id,
        export.fence,
        choice_of(export),
        version,
        inputs,
        builtin,
        dataset_sources.inputs_of(session, dataset),
        withheld,
        not is_data_free(session, version),
        None if config is None else session.get_one(tables.BlobRow, config.sha256),
        because,
    )


def _withheld(
    session: Session, export: tables.ModelExportRow, version: tables.ModelVersionRow
) -> frozenset[str]:
    """Return the splits that are not staged: calibration alone reads training images."""
    reads = {"test"}
    if export.precision == "int8" and not is_data_free(session, version):
        reads.add("train")
    return frozenset(f"{name}.safetensors" for name in _SPLITS if name not in reads)


def choice_of(row: tables.ModelExportRow) -> ExportChoice:
    """Return the form that was asked for."""
    names = ExportChoice.model_fields
    return ExportChoice.model_validate({name: getattr(row, name) for name in names})


def renew(session: Session, claimed: ExportClaim, *, lease_seconds: float = LEASE_SECONDS) -> None:
    """Extend the claim. Raises: errors.StaleFence when it is lost."""
    row = _held(session, claimed)
    row.claim_expires_at = database.now(session) + timedelta(seconds=lease_seconds)
    session.flush()


def finish(
    session: Session,
    claimed: ExportClaim,
    *,
    files: Sequence[OutputFile],
    measured: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Make an export `ready`; its bytes are stored already.

    Raises: errors.StaleFence when it is no longer held, or was deleted.
    """
    # Before the export, as whoever deletes the version does: files of it lock it as well.
    session.get(
        tables.ModelVersionRow,
        claimed.version.id,
        populate_existing=True,
        with_for_update={"read": True, "key_share": True},
    )
    row = _held(session, claimed)
    for file in files:
        uploads.adopt(
            session, sha256=file.sha256, size_bytes=file.size_bytes, storage_key=file.storage_key
        )
        session.add(
            tables.ModelFileRow(
                version_id=row.version_id,
                path=f"{folder_of(row)}{file.path}",
                sha256=file.sha256,
                size_bytes=file.size_bytes,
            )
        )
    row.measured, row.notes = dict(measured), list(notes)
    _end(session, row, READY)


def refuse(
    session: Session,
    claimed: ExportClaim,
    *,
    failure: Mapping[str, Any],
    measured: Mapping[str, Any],
    notes: Sequence[str],
) -> None:
    """Make an export `refused`: what was measured is not good enough. Raises: as `finish`."""
    row = _held(session, claimed)
    row.measured, row.notes = dict(measured), list(notes)
    _end(session, row, REFUSED, failure=dict(failure))


def fail(session: Session, claimed: ExportClaim, *, failure: Mapping[str, Any]) -> None:
    """Make an export `failed`. Raises: as `finish`."""
    _end(session, _held(session, claimed), FAILED, failure=dict(failure))


def give_back(session: Session, claimed: ExportClaim, *, counted: bool) -> None:
    """Give up the claim, so that another worker makes the export. Raises: as `finish`."""
    row = _held(session, claimed)
    if not counted:
        row.attempts -= 1
    row.state, row.claim_expires_at, row.announced_at = QUEUED, None, None
    session.flush()


def postpone(session: Session, claimed: ExportClaim, *, reason: str) -> None:
    """Give up the claim because a worker lacks something, and let it rest before the next.

    The delay doubles each time, up to five minutes; after `postponements.MOST` the export fails.
    Raises: as `finish`.
    """
    row = _held(session, claimed)
    row.attempts -= 1
    count = row.fence - row.attempts
    if count >= postponements.MOST:
        message = (
            f"No worker could make it in {postponements.MOST} tries; the last said: {reason}. Ask "
            "for it again once that is mended."
        )
        _end(session, row, FAILED, failure={"code": "postponed_too_often", "message": message})
        return
    delay = postponements.delay(count)
    row.state, row.announced_at = QUEUED, None
    row.claim_expires_at = database.now(session) + delay
    session.flush()
    seconds = delay.total_seconds()
    log.warning("export_postponed", export_id=row.id, reason=reason, delay_seconds=seconds)


def republish(session: Session, *, after_seconds: float) -> int:
    """Publish the message again for exports that wait for a worker; return how many."""
    row = tables.ModelExportRow
    now = database.now(session)
    early = now - timedelta(seconds=after_seconds)
    query = sa.select(row).where(
        row.state.in_(WAITING),
        sa.or_(row.claim_expires_at.is_(None), row.claim_expires_at < now),
        sa.or_(row.announced_at.is_(None), row.announced_at < early),
    )
    count = 0
    for waiting in session.scalars(query.with_for_update(skip_locked=True)):
        _announce(session, waiting)
        count += 1
    return count


def _announce(session: Session, row: tables.ModelExportRow) -> None:
    row.announced_at = database.now(session)
    outbox.add(session, task=TASK, queue=QUEUE, payload={"export_id": row.id})
    session.flush()


def _held(session: Session, claimed: ExportClaim) -> tables.ModelExportRow:
    row = session.get(
        tables.ModelExportRow, claimed.export_id, with_for_update=True, populate_existing=True
    )
    if row is None:
        raise errors.StaleFence(f"{claimed.export_id} was deleted")
    if row.fence != claimed.fence or row.state != RUNNING:
        raise errors.StaleFence(f"{row.id} is made by somebody else")
    return row


def _end(
    session: Session,
    row: tables.ModelExportRow,
    state: str,
    *,
    failure: dict[str, Any] | None = None,
) -> None:
    row.state, row.failure, row.claim_expires_at = state, failure, None
    row.finished_at = database.now(session)
    session.flush()
    code = None if failure is None else failure["code"]
    log.info("export_ended", export_id=row.id, state=state, code=code)


def _gave_up() -> dict[str, Any]:
    return {
        "code": "export_failed",
        "message": f"It could not be made in {MOST_ATTEMPTS} attempts: the exporting process died "
        "each time, most likely for lack of memory. Export a smaller network, or "
        "have the operator raise RETORT_INSPECTION_MEMORY_BYTES.",
    }

"""For how long the project keeps what jobs leave, what that would delete, and erasures by law."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path

from api.dependencies import (
    AdminDep,
    CallerDep,
    PublishDep,
    ReadersDep,
    ServiceDep,
    SessionsDep,
    StorageDep,
)
from api.schemas import retention as bodies
from models_registry import errors
from models_registry.access import audit
from models_registry.persistence import database, outbox
from models_registry.persistence.storage import Storage
from models_registry.retention import erasures, policies, sweep

router = APIRouter(prefix="/v1", tags=["retention"])

Version = Annotated[int, Path(ge=1, le=999_999_999)]


@router.get("/retention", operation_id="get_retention")
def show(caller: CallerDep, readers: ReadersDep, service: ServiceDep) -> bodies.RetentionRead:
    """Return the project's policy: its own, or the defaults."""
    with readers() as session:
        policy = policies.of(session, project_id=caller.project_id)
    return _read(policy, service)


@router.patch("/retention", operation_id="update_retention")
def update(
    wanted: bodies.RetentionChange,
    caller: AdminDep,
    sessions: SessionsDep,
    service: ServiceDep,
) -> bodies.RetentionRead:
    """Change the project's policy. What becomes due is deleted after the grace at the earliest."""
    changes = wanted.model_dump(exclude_unset=True)
    with sessions.begin() as session:
        former, policy = policies.change(session, project_id=caller.project_id, changes=changes)
        told = {name: [asdict(former)[name], value] for name, value in changes.items()}
        audit.record(session, caller, "retention.changed", caller.project_id, **told)
    return _read(policy, service)


@router.post("/retention/preview", operation_id="preview_retention")
def preview(
    wanted: bodies.RetentionChange,
    caller: CallerDep,
    readers: ReadersDep,
    service: ServiceDep,
) -> bodies.RetentionPreview:
    """Return what could be deleted, by kind, and delete nothing.

    The body may change the policy for this answer alone: what would that delete?
    """
    with readers() as session:
        policy = policies.of(session, project_id=caller.project_id)
        tried = policies.RetentionPolicy(
            **{**asdict(policy), **wanted.model_dump(exclude_unset=True)}
        )
        kinds = sweep.preview(
            session, project_id=caller.project_id, grace=_grace(service), policy=tried
        )
    return bodies.RetentionPreview.of(kinds, _read(tried, service))


@router.post("/retention/sweep", operation_id="sweep_retention", status_code=202)
def sweep_now(
    caller: AdminDep, sessions: SessionsDep, service: ServiceDep, publish: PublishDep
) -> bodies.RetentionPreview:
    """Ask maintenance to sweep this project now and not within the hour; return what is due.

    It marks what is due, and deletes what was marked for longer than the grace.
    """
    with sessions.begin() as session:
        policy = policies.of(session, project_id=caller.project_id)
        kinds = sweep.preview(session, project_id=caller.project_id, grace=_grace(service))
        payload = {"project_id": caller.project_id}
        outbox.add(session, task="maintenance.retain", queue="maintenance", payload=payload)
        audit.record(session, caller, "retention.sweep_requested", caller.project_id)
    publish()
    return bodies.RetentionPreview.of(kinds, _read(policy, service))


@router.post("/datasets/{name}/erase", operation_id="erase_dataset")
def erase(
    name: str,
    wanted: bodies.ErasureRequest,
    caller: AdminDep,
    sessions: SessionsDep,
    storage: StorageDep,
    service: ServiceDep,
) -> bodies.ErasureRead:
    """Erase a data set with all its versions, at once and for good; list what remains.

    Unlike a deletion it leaves no pictures of its images in reports, nor copies in caches of
    workers, and its bytes wait for no grace, unless somebody has just stored the same ones: see
    `notes`. Students that learned from it stay, and are listed. Versions that were deleted before
    are erased too.
    """
    return _erase(caller, sessions, storage, _grace(service), name, None, wanted)


@router.post("/datasets/{name}/versions/{version}/erase", operation_id="erase_dataset_version")
def erase_version(
    name: str,
    version: Version,
    wanted: bodies.ErasureRequest,
    caller: AdminDep,
    sessions: SessionsDep,
    storage: StorageDep,
    service: ServiceDep,
) -> bodies.ErasureRead:
    """Erase one version of a data set, as all of them are erased."""
    return _erase(caller, sessions, storage, _grace(service), name, version, wanted)


def _erase(
    caller: AdminDep,
    sessions: database.Sessions,
    storage: Storage,
    grace: timedelta,
    name: str,
    version: int | None,
    wanted: bodies.ErasureRequest,
) -> bodies.ErasureRead:
    with sessions.begin() as session:
        erasure = erasures.erase(
            session,
            project_id=caller.project_id,
            name=name,
            version=version,
            cancel_jobs=wanted.cancel_jobs,
        )
        audit.record(
            session,
            caller,
            "dataset.erased",
            erasure.reference,
            versions=erasure.versions,
            blobs=erasure.blobs,
            size_bytes=erasure.size_bytes,
            pictures=len(erasure.pictures),
            cancelled_jobs=len(erasure.cancelled_jobs),
        )
    notes = []
    try:
        erasures.finish(sessions, storage, grace=grace)
    except errors.StorageDown as error:
        notes.append(
            f"Nothing leads to the bytes any more, but some are still stored: {error.message}. "
            "Maintenance tries again every hour."
        )
    with sessions() as session:
        waiting = erasures.waiting(session, erasure)
    if waiting and not notes:
        notes.append(
            "Nothing leads to the bytes any more, but some are still stored: others may be about "
            "to name the same bytes. Those that were stored within the last hour are deleted when "
            "it has passed; those that somebody has sent again since, after "
            f"{grace.total_seconds():g} s, unless they are named by then."
        )
    return bodies.ErasureRead.of(erasure, waiting_blobs=waiting, notes=notes)


def _grace(service: ServiceDep) -> timedelta:
    return timedelta(seconds=service.settings.retention_grace_seconds)


def _read(policy: policies.RetentionPolicy, service: ServiceDep) -> bodies.RetentionRead:
    return bodies.RetentionRead.of(policy, grace=_grace(service))

"""Data sets: uploaded ones, and those that are built in."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from api import answer_waits
from api import errors as problems
from api.answer_waits import WaitSeconds
from api.dependencies import (
    AdminDep,
    CallerDep,
    EditorDep,
    PageDep,
    PublishDep,
    ReadersDep,
    SendFileDep,
    ServiceDep,
    SessionsDep,
)
from api.idempotency import IdempotentDep
from api.schemas import datasets as bodies
from api.schemas import lists
from models_registry import errors
from models_registry.access import audit
from models_registry.artifacts import dataset_samples, datasets, synthetic_datasets
from models_registry.persistence import tables

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

Version = Annotated[int, Path(ge=1, le=999_999_999)]


def _read(session: Session, rows: Sequence[tables.DatasetRow]) -> list[bodies.DatasetRead]:
    latest, sizes = datasets.latest(session, rows), datasets.line_bytes(session, rows)
    return [bodies.DatasetRead.of(row, latest.get(row.id), sizes[row.id]) for row in rows]


def _read_versions(
    session: Session, rows: Sequence[tables.DatasetVersionRow], *, are_listed: bool = False
) -> list[bodies.DatasetVersionRead]:
    stored = datasets.stored(session, rows)
    return [bodies.DatasetVersionRead.of(row, stored[row.id], is_listed=are_listed) for row in rows]


@router.get("", operation_id="list_datasets")
def index(
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    prefix: Annotated[str | None, Query(max_length=96, description="Of the name.")] = None,
) -> lists.ListRead[bodies.DatasetRead]:
    """List the project's data sets, newest first."""
    with readers() as session:
        page = datasets.page(session, project_id=caller.project_id, wanted=wanted, prefix=prefix)
        shown = {body.name: body for body in _read(session, page.rows)}
    return lists.ListRead.of(page, lambda row: shown[row.name])


@router.get("/{name}", operation_id="get_dataset")
def show(name: str, caller: CallerDep, readers: ReadersDep) -> bodies.DatasetRead:
    """Return a data set."""
    with readers() as session:
        row = datasets.get(session, project_id=caller.project_id, name=name)
        return _read(session, [row])[0]


@router.delete("/{name}", operation_id="delete_dataset", status_code=204)
def delete(name: str, caller: AdminDep, sessions: SessionsDep) -> None:
    """Delete a data set with its versions, unless a job names one of them."""
    with sessions.begin() as session:
        datasets.delete(session, project_id=caller.project_id, name=name)
        audit.record(session, caller, "dataset.deleted", name)


@router.post(
    "/{name}/versions",
    operation_id="create_dataset_version",
    status_code=202,
    response_model=bodies.DatasetVersionRead,
    responses={
        201: {"model": bodies.DatasetVersionRead, "description": "Made of a job's images; ready."}
    },
)
def create_version(
    name: str,
    body: bodies.DatasetVersionNew,
    caller: EditorDep,
    idempotent: IdempotentDep,
    publish: PublishDep,
    service: ServiceDep,
) -> Response:
    """Make a version from a completed upload, a source, or the synthetic images of a job.

    A worker first unpacks and checks an upload, or what a source has; a job's images are ready at
    once.
    """

    def work(session: Session) -> tuple[bodies.DatasetVersionRead, str]:
        new, project_id = body.new(name), caller.project_id
        if isinstance(new, synthetic_datasets.NewSyntheticDataset):
            row = synthetic_datasets.register(
                session, service.storage, project_id=project_id, new=new
            )
        else:
            row = datasets.register(
                session,
                project_id=project_id,
                new=new,
                allowed_sources=service.settings.allowed_sources,
            )
            if row.source is not None:
                # The service's own key will read it on behalf of the caller.
                reference = datasets.reference_of(row)
                audit.record(
                    session, caller, "dataset_version.referred", reference, source=row.source["url"]
                )
        made = _read_versions(session, [row])[0]
        return made, f"/v1/datasets/{name}/versions/{row.version}"

    response = idempotent.respond(work, status=202 if body.job is None else 201)
    publish()
    return response


@router.get("/{name}/versions", operation_id="list_dataset_versions")
def index_versions(
    name: str,
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    state: bodies.State | None = None,
) -> lists.ListRead[bodies.DatasetVersionRead]:
    """List a data set's versions, newest first."""
    with readers() as session:
        page = datasets.page_versions(
            session, project_id=caller.project_id, name=name, wanted=wanted, state=state
        )
        shown = {body.version: body for body in _read_versions(session, page.rows, are_listed=True)}
        return lists.ListRead.of(page, lambda row: shown[row.version])


@router.get("/{name}/versions/{version}", operation_id="get_dataset_version")
def show_version(
    name: str, version: Version, caller: CallerDep, readers: ReadersDep
) -> bodies.DatasetVersionRead:
    """Return a version."""
    with readers() as session:
        row = datasets.get_version(
            session, project_id=caller.project_id, name=name, version=version
        )
        return _read_versions(session, [row])[0]


@router.delete("/{name}/versions/{version}", operation_id="delete_dataset_version", status_code=204)
def delete_version(name: str, version: Version, caller: AdminDep, sessions: SessionsDep) -> None:
    """Delete a version, unless a job names it; one that is `pending` is taken back."""
    with sessions.begin() as session:
        datasets.delete_version(session, project_id=caller.project_id, name=name, version=version)
        audit.record(session, caller, "dataset_version.deleted", f"{name}@{version}")


@router.get(
    "/{name}/versions/{version}/samples",
    operation_id="get_dataset_samples",
    responses={202: {"model": bodies.SamplesRead, "description": "They are not made yet."}},
)
async def show_samples(
    name: str,
    version: Version,
    caller: CallerDep,
    service: ServiceDep,
    response: Response,
    wait_seconds: WaitSeconds = 0.0,
) -> bodies.SamplesRead:
    """Return a few small pictures of each class, with boxes and masks where the set has them.

    A worker makes them when they are first asked for; they are kept for 30 days. With 202, ask
    again.
    """

    def ask() -> bodies.SamplesRead:
        with service.sessions.begin() as session:
            row = datasets.get_version(
                session, project_id=caller.project_id, name=name, version=version
            )
            kept = dataset_samples.request(session, project_id=caller.project_id, version=row)
            return bodies.SamplesRead.of(datasets.reference_of(row), kept)

    asked = await run_in_threadpool(ask)

    def read() -> bodies.SamplesRead | None:
        with service.readers() as session:
            row = datasets.get_version(
                session, project_id=caller.project_id, name=name, version=version
            )
            kept = dataset_samples.find(session, row.id)
            return None if kept is None else bodies.SamplesRead.of(asked.reference, kept)

    # At once, and not after the response: that is what the caller waits for.
    await run_in_threadpool(service.publisher.publish)
    found = await answer_waits.until_settled(
        asked,
        read=read,
        is_settled=lambda one: one.state in dataset_samples.SETTLED,
        wait_seconds=wait_seconds,
    )
    if found is None:
        raise errors.Gone(f"the pictures of {asked.reference} were let go: ask again")
    if found.state not in dataset_samples.SETTLED:
        response.status_code = 202
        response.headers["retry-after"] = str(problems.RETRY_AFTER_SECONDS)
    return found


@router.get(
    "/{name}/versions/{version}/archive",
    operation_id="download_dataset",
    response_class=Response,
)
def download(
    name: str, version: Version, caller: CallerDep, readers: ReadersDep, send_file: SendFileDep
) -> Response:
    """Download the archive as it was uploaded, whole or one range. Its ETag is its SHA-256."""
    with readers() as session:
        row = datasets.get_version(
            session, project_id=caller.project_id, name=name, version=version
        )
        file = datasets.archive(session, row)
    return send_file(file)

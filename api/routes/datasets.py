"""Data sets: uploaded ones, and those that are built in."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy.orm import Session

from api.dependencies import CallerDep, EditorDep, PageDep, PublishDep, ReadersDep, StorageDep
from api.idempotency import IdempotentDep
from api.schemas import datasets as bodies
from api.schemas import lists
from models_registry.artifacts import datasets, synthetic_datasets

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

Version = Annotated[int, Path(ge=1, le=999_999_999)]


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
        latest = datasets.latest(session, page.rows)
    return lists.ListRead.of(page, lambda row: bodies.DatasetRead.of(row, latest.get(row.id)))


@router.get("/{name}", operation_id="get_dataset")
def show(name: str, caller: CallerDep, readers: ReadersDep) -> bodies.DatasetRead:
    """Return a data set."""
    with readers() as session:
        row = datasets.get(session, project_id=caller.project_id, name=name)
        return bodies.DatasetRead.of(row, datasets.latest(session, [row]).get(row.id))


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
    storage: StorageDep,
) -> Response:
    """Make a version from a completed upload, or from the synthetic images of a job.

    A worker first unpacks and checks an upload; a job's images are ready at once.
    """

    def work(session: Session) -> tuple[bodies.DatasetVersionRead, str]:
        new, project_id = body.new(name), caller.project_id
        if isinstance(new, synthetic_datasets.NewSyntheticDataset):
            row = synthetic_datasets.register(session, storage, project_id=project_id, new=new)
        else:
            row = datasets.register(session, project_id=project_id, new=new)
        return bodies.DatasetVersionRead.of(row), f"/v1/datasets/{name}/versions/{row.version}"

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
        return lists.ListRead.of(page, bodies.DatasetVersionRead.of)


@router.get("/{name}/versions/{version}", operation_id="get_dataset_version")
def show_version(
    name: str, version: Version, caller: CallerDep, readers: ReadersDep
) -> bodies.DatasetVersionRead:
    """Return a version."""
    with readers() as session:
        row = datasets.get_version(
            session, project_id=caller.project_id, name=name, version=version
        )
        return bodies.DatasetVersionRead.of(row)

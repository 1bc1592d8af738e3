"""Exports: a version of a model in the form that deployment takes."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from api.dependencies import (
    CallerDep,
    EditorDep,
    LimitsDep,
    PageDep,
    PublishDep,
    ReadersDep,
    SessionsDep,
)
from api.idempotency import IdempotentDep
from api.schemas import exports as bodies
from api.schemas import lists
from models_registry.access import audit
from models_registry.artifacts import exports, models
from models_registry.persistence import tables
from workers.distill.config.exports import ExportChoice

router = APIRouter(prefix="/v1/models/{name}/versions/{version}/exports", tags=["models"])

Version = Annotated[int, Path(ge=1, le=999_999_999)]


def _read(
    session: Session, version: tables.ModelVersionRow, row: tables.ModelExportRow
) -> bodies.ExportRead:
    return bodies.ExportRead.of(version, row, exports.files(session, [row])[row.id])


@router.post("", operation_id="create_export", status_code=202, response_model=bodies.ExportRead)
def create(
    name: str,
    version: Version,
    body: bodies.ExportNew,
    caller: EditorDep,
    limits: LimitsDep,
    idempotent: IdempotentDep,
    publish: PublishDep,
) -> Response:
    """Have a version written in another form; a worker does it and compares it with the original.

    The same request again returns the export that there is, unless that has failed. An export that
    loses more than `max_drop` on the test split is `refused`, with the numbers.
    """

    def work(session: Session) -> tuple[bodies.ExportRead, str]:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        choice = ExportChoice(**body.model_dump())
        made = exports.request(session, version=row, choice=choice, service=limits)
        place = f"/v1/models/{name}/versions/{version}/exports/{made.id}"
        return _read(session, row, made), place

    response = idempotent.respond(work, status=202)
    publish()
    return response


@router.get("", operation_id="list_exports")
def index(
    name: str, version: Version, caller: CallerDep, readers: ReadersDep, wanted: PageDep
) -> lists.ListRead[bodies.ExportRead]:
    """List a version's exports, newest first."""
    with readers() as session:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        page = exports.page(session, version=row, wanted=wanted)
        files = exports.files(session, page.rows)
        return lists.ListRead.of(
            page, lambda export: bodies.ExportRead.of(row, export, files[export.id])
        )


@router.get("/{export_id}", operation_id="get_export")
def show(
    name: str, version: Version, export_id: str, caller: CallerDep, readers: ReadersDep
) -> bodies.ExportRead:
    """Return an export: its state, files, and what was measured."""
    with readers() as session:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        return _read(session, row, exports.get(session, version=row, export_id=export_id))


@router.delete("/{export_id}", operation_id="delete_export", status_code=204)
def delete(
    name: str, version: Version, export_id: str, caller: EditorDep, sessions: SessionsDep
) -> None:
    """Delete an export with its files; one that is being made is not finished."""
    with sessions.begin() as session:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        exports.delete(session, version=row, export_id=export_id)
        audit.record(session, caller, "export.deleted", f"{name}@{version}", export=export_id)

"""Uploads: a file in parts, in any order, until it is complete."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy.orm import Session

from api import request_body
from api.dependencies import (
    CallerDep,
    EditorDep,
    PageDep,
    ReadersDep,
    ServiceDep,
    SessionsDep,
    StorageDep,
)
from api.idempotency import IdempotentDep
from api.schemas import lists
from api.schemas import uploads as bodies
from models_registry.access import audit
from models_registry.artifacts import uploads
from models_registry.persistence import tables
from models_registry.persistence.storage import Storage, StoredPart

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

PART_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _read(
    storage: Storage,
    upload: tables.UploadRow,
    received: Mapping[int, tables.UploadPartRow] = MappingProxyType({}),
    direct: Mapping[int, StoredPart] = MappingProxyType({}),
) -> bodies.UploadRead:
    at = datetime.now(UTC)
    return bodies.UploadRead.of(upload, uploads.statuses(storage, upload, received, direct, at=at))


@router.post("", operation_id="create_upload", status_code=201, response_model=bodies.UploadRead)
def create(
    body: bodies.UploadNew, caller: EditorDep, idempotent: IdempotentDep, service: ServiceDep
) -> Response:
    """Create an upload; the response says where to send its parts."""

    def work(session: Session) -> tuple[bodies.UploadRead, str]:
        row = uploads.create(
            session,
            project_id=caller.project_id,
            settings=service.settings,
            free_bytes=service.storage.free_bytes,
            **body.model_dump(),
        )
        return _read(service.storage, row), f"/v1/uploads/{row.id}"

    return idempotent.respond(work, status=201)


@router.get("", operation_id="list_uploads")
def index(
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    state: bodies.State | None = None,
) -> lists.ListRead[bodies.UploadSummary]:
    """List uploads that are open or completed, newest first, without their parts."""
    with readers() as session:
        page = uploads.page(session, project_id=caller.project_id, wanted=wanted, state=state)
        return lists.ListRead.of(page, bodies.UploadSummary.of_row)


@router.get("/{upload_id}", operation_id="get_upload")
def show(
    upload_id: str, caller: CallerDep, readers: ReadersDep, storage: StorageDep
) -> bodies.UploadRead:
    """Return an upload with the parts received so far."""
    with readers() as session:
        row = uploads.get(session, project_id=caller.project_id, upload_id=upload_id)
        received = uploads.parts(session, row)
    direct = uploads.direct_parts(storage, row) if row.state == uploads.OPEN else {}
    return _read(storage, row, received, direct)


@router.put(
    "/{upload_id}/parts/{number}",
    operation_id="put_part",
    status_code=204,
    openapi_extra=PART_BODY,
)
async def put_part(
    upload_id: str,
    number: Annotated[int, Path(ge=1, le=uploads.MAX_PARTS)],
    request: Request,
    caller: EditorDep,
    service: ServiceDep,
) -> None:
    """Receive the bytes of a part; sending them again changes nothing.

    `Repr-Digest` or `Content-Digest` (`sha-256=:<base64>:`) is checked when it is given.
    """
    request_body.check_encoding(request.headers)
    sha256 = request_body.announced_sha256(request.headers)
    chunks = request_body.Body(request, stall_seconds=service.settings.upload_stall_seconds)
    await request_body.in_thread(
        lambda: uploads.receive(
            service.sessions,
            service.storage,
            project_id=caller.project_id,
            upload_id=upload_id,
            number=number,
            chunks=chunks,
            announced_bytes=request_body.announced_bytes(request.headers),
            sha256=sha256,
            settings=service.settings,
        )
    )


@router.post("/{upload_id}/complete", operation_id="complete_upload")
def complete(upload_id: str, caller: EditorDep, service: ServiceDep) -> bodies.UploadRead:
    """Join the parts and check size and SHA-256 of the whole file; may be repeated."""
    row = uploads.complete(
        service.sessions,
        service.storage,
        project_id=caller.project_id,
        upload_id=upload_id,
        settings=service.settings,
    )
    return _read(service.storage, row)


@router.delete("/{upload_id}", operation_id="delete_upload", status_code=204)
def delete(upload_id: str, caller: EditorDep, sessions: SessionsDep, storage: StorageDep) -> None:
    """Delete an upload. Versions made from it stay."""
    with sessions.begin() as session:
        keys = uploads.delete(session, project_id=caller.project_id, upload_id=upload_id)
        audit.record(session, caller, "upload.deleted", upload_id)
    uploads.forget(storage, keys)

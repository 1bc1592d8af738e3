"""Models: their versions, files, aliases and lineage."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy.orm import Session

from api import query_parameters
from api.dependencies import (
    AdminDep,
    CallerDep,
    EditorDep,
    PageDep,
    PublishDep,
    ReadersDep,
    SendFileDep,
    SessionsDep,
    TagsDep,
)
from api.idempotency import IdempotentDep
from api.preconditions import ExpectedDep, MustBeNewDep
from api.schemas import lists
from api.schemas import models as bodies
from models_registry.access import audit
from models_registry.artifacts import aliases, lineage, models
from models_registry.persistence import tables

router = APIRouter(prefix="/v1/models", tags=["models"])

Version = Annotated[int, Path(ge=1, le=999_999_999)]
Alias = Annotated[str, Path(max_length=96)]


def _read(session: Session, row: tables.ModelRow) -> bodies.ModelRead:
    return bodies.ModelRead.of(row, models.summaries(session, [row])[row.id])


def _read_version(session: Session, row: tables.ModelVersionRow) -> bodies.ModelVersionRead:
    return bodies.ModelVersionRead.of(row, models.files(session, [row])[row.id])


# -- lines -----------------------------------------------------------------------------------


@router.post("", operation_id="create_model", status_code=201, response_model=bodies.ModelRead)
def create(body: bodies.ModelNew, caller: EditorDep, idempotent: IdempotentDep) -> Response:
    """Create a model without versions. Optional: the first version creates its model."""

    def work(session: Session) -> tuple[bodies.ModelRead, str]:
        row = models.create(session, project_id=caller.project_id, **body.model_dump())
        return _read(session, row), f"/v1/models/{row.name}"

    return idempotent.respond(work, status=201)


@router.get(
    "",
    operation_id="list_models",
    openapi_extra={query_parameters.PREFIX: "tag."},
)
def index(
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    tags: TagsDep,
    prefix: Annotated[str | None, Query(max_length=96, description="Of the name.")] = None,
) -> lists.ListRead[bodies.ModelRead]:
    """List the project's models, newest first. `tag.<key>=<value>` filters by tag."""
    with readers() as session:
        page = models.page(
            session, project_id=caller.project_id, wanted=wanted, prefix=prefix, tags=tags
        )
        summaries = models.summaries(session, page.rows)
    return lists.ListRead.of(page, lambda row: bodies.ModelRead.of(row, summaries[row.id]))


@router.get("/{name}", operation_id="get_model")
def show(name: str, caller: CallerDep, readers: ReadersDep, response: Response) -> bodies.ModelRead:
    """Return a model. Its ETag changes with card and tags."""
    with readers() as session:
        row = models.get(session, project_id=caller.project_id, name=name)
        response.headers["etag"] = models.etag(row)
        return _read(session, row)


@router.patch("/{name}", operation_id="update_model")
def update(
    name: str,
    body: bodies.ModelChange,
    caller: EditorDep,
    sessions: SessionsDep,
    expected: ExpectedDep,
    response: Response,
) -> bodies.ModelRead:
    """Replace card or tags."""
    changes = body.model_dump(exclude_unset=True)
    with sessions.begin() as session:
        row = models.update(
            session, project_id=caller.project_id, name=name, changes=changes, expected=expected
        )
        response.headers["etag"] = models.etag(row)
        return _read(session, row)


@router.delete("/{name}", operation_id="delete_model", status_code=204)
def delete(name: str, caller: AdminDep, sessions: SessionsDep, expected: ExpectedDep) -> None:
    """Delete a model with its versions and aliases, unless something refers to them."""
    with sessions.begin() as session:
        models.delete(session, project_id=caller.project_id, name=name, expected=expected)
        audit.record(session, caller, "model.deleted", name)


# -- versions --------------------------------------------------------------------------------


@router.post(
    "/{name}/versions",
    operation_id="create_model_version",
    status_code=202,
    response_model=bodies.ModelVersionRead,
)
def create_version(
    name: str,
    body: bodies.ModelVersionNew,
    caller: EditorDep,
    idempotent: IdempotentDep,
    publish: PublishDep,
) -> Response:
    """Create a version from a completed upload. A worker inspects it before it is `ready`."""

    def work(session: Session) -> tuple[bodies.ModelVersionRead, str]:
        row = models.register(session, project_id=caller.project_id, new=body.new(name))
        return _read_version(session, row), f"/v1/models/{name}/versions/{row.version}"

    response = idempotent.respond(work, status=202)
    publish()
    return response


@router.get("/{name}/versions", operation_id="list_model_versions")
def index_versions(
    name: str,
    caller: CallerDep,
    readers: ReadersDep,
    wanted: PageDep,
    state: bodies.State | None = None,
    deprecated: bool | None = None,
) -> lists.ListRead[bodies.ModelVersionRead]:
    """List a model's versions, newest first."""
    with readers() as session:
        page = models.page_versions(
            session,
            project_id=caller.project_id,
            name=name,
            wanted=wanted,
            state=state,
            deprecated=deprecated,
        )
        files = models.files(session, page.rows)
        return lists.ListRead.of(
            page, lambda row: bodies.ModelVersionRead.of(row, files[row.id], is_listed=True)
        )


@router.get("/{name}/versions/{version}", operation_id="get_model_version")
def show_version(
    name: str, version: Version, caller: CallerDep, readers: ReadersDep, response: Response
) -> bodies.ModelVersionRead:
    """Return a version. Its ETag changes with card, tags and deprecation."""
    with readers() as session:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        response.headers["etag"] = models.etag(row)
        return _read_version(session, row)


@router.patch("/{name}/versions/{version}", operation_id="update_model_version")
def update_version(
    name: str,
    version: Version,
    body: bodies.VersionChange,
    caller: EditorDep,
    sessions: SessionsDep,
    expected: ExpectedDep,
    response: Response,
) -> bodies.ModelVersionRead:
    """Replace card or tags, or set `deprecated`. Everything else is immutable."""
    with sessions.begin() as session:
        row = models.update_version(
            session,
            project_id=caller.project_id,
            name=name,
            version=version,
            changes=body.model_dump(exclude_unset=True),
            expected=expected,
        )
        response.headers["etag"] = models.etag(row)
        return _read_version(session, row)


@router.delete("/{name}/versions/{version}", operation_id="delete_model_version", status_code=204)
def delete_version(
    name: str, version: Version, caller: AdminDep, sessions: SessionsDep, expected: ExpectedDep
) -> None:
    """Delete a version, unless a job, an alias or another version refers to it."""
    with sessions.begin() as session:
        models.delete_version(
            session,
            project_id=caller.project_id,
            name=name,
            version=version,
            expected=expected,
        )
        audit.record(session, caller, "model_version.deleted", f"{name}@{version}")


@router.get(
    "/{name}/versions/{version}/files/{path:path}",
    operation_id="download_model_file",
    response_class=Response,
)
def download(
    name: str,
    version: Version,
    path: str,
    caller: CallerDep,
    readers: ReadersDep,
    send_file: SendFileDep,
) -> Response:
    """Download a file, whole or one range of it. Its ETag is its SHA-256."""
    with readers() as session:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        file = models.file(session, row, path=path)
    return send_file(file)


@router.get("/{name}/versions/{version}/lineage", operation_id="get_lineage")
def show_lineage(
    name: str, version: Version, caller: CallerDep, readers: ReadersDep, wanted: PageDep
) -> bodies.LineageRead:
    """Return what a version was made from, and a page of what was made from it."""
    with readers() as session:
        row = models.get_version(session, project_id=caller.project_id, name=name, version=version)
        page = lineage.forward(session, row, wanted=wanted)
        forward = lists.ListRead.of(page, bodies.Relative.of)
        return bodies.LineageRead.of(
            row, lineage.backward(session, row), forward, lineage.synthetic_datasets(session, row)
        )


# -- aliases ---------------------------------------------------------------------------------


@router.get("/{name}/aliases", operation_id="list_aliases")
def index_aliases(name: str, caller: CallerDep, readers: ReadersDep) -> bodies.AliasList:
    """List all aliases of a model, by name."""
    with readers() as session:
        rows = aliases.every(session, project_id=caller.project_id, name=name)
    return bodies.AliasList(data=[bodies.AliasRead.of(name, row) for row in rows])


@router.get("/{name}/aliases/{alias}", operation_id="get_alias")
def show_alias(
    name: str, alias: Alias, caller: CallerDep, readers: ReadersDep, response: Response
) -> bodies.AliasRead:
    """Return an alias. Its ETag is needed to move it."""
    with readers() as session:
        row = aliases.get(session, project_id=caller.project_id, name=name, alias=alias)
    response.headers["etag"] = aliases.etag(row)
    return bodies.AliasRead.of(name, row)


@router.put(
    "/{name}/aliases/{alias}",
    operation_id="put_alias",
    responses={201: {"model": bodies.AliasRead, "description": "The alias was created."}},
)
def put_alias(
    name: str,
    alias: Alias,
    body: bodies.AliasPut,
    caller: EditorDep,
    sessions: SessionsDep,
    expected: ExpectedDep,
    must_be_new: MustBeNewDep,
    response: Response,
) -> bodies.AliasRead:
    """Point an alias at a version. To move one that exists, send its ETag as `If-Match`."""
    with sessions.begin() as session:
        row, is_new = aliases.put(
            session,
            project_id=caller.project_id,
            name=name,
            alias=alias,
            version=body.version,
            expected=expected,
            must_be_new=must_be_new,
        )
        former = row.history[-2]["version"] if len(row.history) > 1 else None
        done = "alias.created" if is_new else "alias.moved"
        audit.record(
            session, caller, done, f"{name}@{alias}", version=row.version, former_version=former
        )
    response.status_code = 201 if is_new else 200
    response.headers["etag"] = aliases.etag(row)
    return bodies.AliasRead.of(name, row)


@router.delete("/{name}/aliases/{alias}", operation_id="delete_alias", status_code=204)
def delete_alias(
    name: str, alias: Alias, caller: EditorDep, sessions: SessionsDep, expected: ExpectedDep
) -> None:
    """Remove an alias; `If-Match` is needed. The version stays."""
    with sessions.begin() as session:
        aliases.delete(
            session,
            project_id=caller.project_id,
            name=name,
            alias=alias,
            expected=expected,
        )
        audit.record(session, caller, "alias.deleted", f"{name}@{alias}")

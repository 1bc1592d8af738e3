"""Lines of trained networks and their versions: register, find, describe, delete.

A version's number comes from a counter on its line's row and is never given out twice, not even
after a deletion. Deleted lines and versions stay as tombstones, so that lineage stays complete.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, object_session

from models_registry import catalog, errors, ids
from models_registry.artifacts import input_checks, job_teachers, references, uploads, uses
from models_registry.artifacts import teacher_kinds as kinds
from models_registry.persistence import database, outbox, paging, tables, tombstones
from workers.distill.config import teachers

WEIGHTS = "model.safetensors"
_CLOSEST_AMONG = 1000
_SHOWN = 5

# Entity tags of which one must be the current one (`If-Match`); None demands nothing.
Expected = Collection[str] | None


@dataclass(frozen=True, kw_only=True)
class NewModelVersion:
    """The facts of a version that is added."""

    name: str
    network: str
    arguments: dict[str, Any]
    task: str
    classes: int | list[str]
    input: dict[str, Any]
    upload_id: str | None = None
    reading: dict[str, Any] | None = None
    """How the file is to be read: `entry`, `strict`, `resize_positions`."""
    job_id: str | None = None
    parameters: int | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    card: str = ""
    tags: dict[str, str] = field(default_factory=dict)


# -- lines -----------------------------------------------------------------------------------


def create(
    session: Session, *, project_id: str, name: str, card: str = "", tags: dict[str, str]
) -> tables.ModelRow:
    """Create a line without versions; a deleted one is restored empty, and its numbers go on.

    Raises: errors.AlreadyExists; errors.Refused for a bad name, card or tag.
    """
    faults = [
        *input_checks.faults_of_name(name),
        *input_checks.faults_of_notes(card=card, tags=tags),
    ]
    input_checks.refuse(faults, code="invalid_model")
    if not _is_new_line(session, project_id, name):
        raise errors.AlreadyExists(f"a model named {name!r} exists: add a version to it")
    row = _line(session, project_id=project_id, name=name, lock=True)
    row.card, row.tags = card, dict(tags)
    session.flush()
    return row


def get(session: Session, *, project_id: str, name: str, hold: bool = False) -> tables.ModelRow:
    """Return a line; `hold` keeps it from being deleted until the transaction ends.

    Raises: errors.NotFound, naming the nearest; errors.Gone when it was deleted.
    """
    return _line(session, project_id=project_id, name=name, hold=hold)


def page(
    session: Session,
    *,
    project_id: str,
    wanted: paging.PageRequest,
    prefix: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> paging.Page[tables.ModelRow]:
    """Return a page of the lines, newest first; `prefix` and `tags` choose among them."""
    row = tables.ModelRow
    statement = sa.select(row).where(row.project_id == project_id, row.deleted_at.is_(None))
    if prefix:
        statement = statement.where(row.name.startswith(prefix, autoescape=True))
    for key, value in (tags or {}).items():
        statement = statement.where(row.tags[key].as_string() == value)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def update(
    session: Session,
    *,
    project_id: str,
    name: str,
    changes: Mapping[str, Any],
    expected: Expected = None,
) -> tables.ModelRow:
    """Replace `card` or `tags` of a line.

    Raises: errors.PreconditionFailed when another caller has changed it.
    """
    row = _line(session, project_id=project_id, name=name, lock=True)
    check_etag(expected, etag(row), name)
    _describe(session, row, changes)
    return row


def delete(session: Session, *, project_id: str, name: str, expected: Expected = None) -> None:
    """Delete a line with its versions and aliases.

    Raises: errors.InUse while a job, or a version of another line, refers to one of its versions.
    """
    row = _line(session, project_id=project_id, name=name, lock=True)
    check_etag(expected, etag(row), name)
    version = tables.ModelVersionRow
    query = sa.select(version).where(version.model_id == row.id, version.deleted_at.is_(None))
    versions = session.scalars(query.with_for_update()).all()
    chosen = sa.select(version.id).where(version.model_id == row.id, version.deleted_at.is_(None))
    _refuse_if_used(
        name,
        [
            *_jobs_with(session, chosen),
            *uses.by_descendants(session, made_from=chosen, outside_line=row.id),
        ],
    )
    alias = tables.ModelAliasRow
    session.execute(sa.delete(alias).where(alias.model_id == row.id))
    for each in versions:
        _soft_delete(session, each)
    row.deleted_at = row.updated_at = database.now(session)
    session.flush()


@dataclass(frozen=True)
class LineSummary:
    """What a line's row does not hold: its newest ready version, aliases, and newest version."""

    latest_version: int | None
    aliases: dict[str, int]
    newest: tables.ModelVersionRow | None = None


def summaries(session: Session, rows: Iterable[tables.ModelRow]) -> dict[str, LineSummary]:
    """Return the summary of each of these lines, by the line's id."""
    line_ids = [row.id for row in rows]
    version, alias = tables.ModelVersionRow, tables.ModelAliasRow
    latest = dict(
        session.execute(
            sa.select(version.model_id, sa.func.max(version.version))
            .where(
                version.model_id.in_(line_ids),
                version.state == "ready",
                version.deleted_at.is_(None),
            )
            .group_by(version.model_id)
        ).all()
    )
    aliases: dict[str, dict[str, int]] = {line_id: {} for line_id in line_ids}
    query = sa.select(alias).where(alias.model_id.in_(line_ids)).order_by(alias.alias)
    for row in session.scalars(query):
        aliases[row.model_id][row.alias] = row.version
    last = (
        sa.select(version.model_id, sa.func.max(version.version).label("number"))
        .where(version.model_id.in_(line_ids), version.deleted_at.is_(None))
        .group_by(version.model_id)
        .subquery()
    )
    same = sa.and_(version.model_id == last.c.model_id, version.version == last.c.number)
    newest = {each.model_id: each for each in session.scalars(sa.select(version).join(last, same))}
    return {
        line_id: LineSummary(latest.get(line_id), aliases[line_id], newest.get(line_id))
        for line_id in line_ids
    }


# -- versions --------------------------------------------------------------------------------


def register(session: Session, *, project_id: str, new: NewModelVersion) -> tables.ModelVersionRow:
    """Add a pending version from a completed upload, and request its inspection.

    Raises: errors.Refused with all faults.
    """
    new, teaching = kinds.of_registration(session, project_id=project_id, new=new)
    faults = [
        *teaching,
        *input_checks.faults_of_name(new.name),
        *input_checks.faults_of_task(new.task),
        *input_checks.faults_of_classes(new.classes, new.task),
        *input_checks.faults_of_input(new.input),
        *input_checks.faults_of_notes(card=new.card, tags=new.tags),
    ]
    upload = None
    try:
        catalog.check_network(new.network, new.arguments, pointer="")
    except errors.Refused as error:
        faults += error.faults
    try:
        upload = uploads.completed(
            session, project_id=project_id, upload_id=new.upload_id or "", purpose="model"
        )
    except errors.Refused as error:
        faults += error.faults
    input_checks.refuse(faults, code="invalid_version")
    row = add_version(session, project_id=project_id, new=new, files={}, state="pending")
    if upload is not None:
        row.lineage = {"upload": upload.id, "upload_digest": f"sha256:{upload.sha256}"}
    row.announced_at = row.created_at
    outbox.add(session, task="models.inspect", queue="inspect", payload={"version_id": row.id})
    session.flush()
    return row


def add_version(
    session: Session,
    *,
    project_id: str,
    new: NewModelVersion,
    files: Mapping[str, str],
    state: str,
) -> tables.ModelVersionRow:
    """Add a version to its line, which is made if it does not exist.

    `files` are paths and SHA-256 of blobs that were adopted before; the digest of the version is
    that of its weights.
    """
    _is_new_line(session, project_id, new.name)
    model_id, number = _next_number(session, project_id, new.name)
    # Read under the lock of the counter: later numbers have later times.
    now = database.now(session, anew=True)
    row = tables.ModelVersionRow(
        id=ids.new("mdl"),
        project_id=project_id,
        model_id=model_id,
        version=number,
        state=state,
        network=new.network,
        arguments=new.arguments,
        task=new.task,
        classes=input_checks.class_names(new.classes),
        input=new.input,
        sha256=next((files[name] for name in teachers.FILES if name in files), None),
        parameters=new.parameters,
        scores=new.scores,
        lineage=new.lineage,
        upload_id=new.upload_id,
        reading=new.reading,
        notes=[] if state == "ready" else None,
        job_id=new.job_id,
        card=new.card,
        tags=dict(new.tags),
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    session.flush()
    for path, sha256 in files.items():
        size_bytes = session.get_one(tables.BlobRow, sha256).size_bytes
        session.add(
            tables.ModelFileRow(version_id=row.id, path=path, sha256=sha256, size_bytes=size_bytes)
        )
    session.flush()
    return row


def get_version(
    session: Session, *, project_id: str, name: str, version: int
) -> tables.ModelVersionRow:
    """Return a version.

    Raises: errors.NotFound; errors.Gone when it was deleted.
    """
    return _version(session, project_id=project_id, name=name, version=version)


def page_versions(
    session: Session,
    *,
    project_id: str,
    name: str,
    wanted: paging.PageRequest,
    state: str | None = None,
    deprecated: bool | None = None,
) -> paging.Page[tables.ModelVersionRow]:
    """Return a page of a line's versions, newest first."""
    line = _line(session, project_id=project_id, name=name)
    row = tables.ModelVersionRow
    statement = sa.select(row).where(row.model_id == line.id, row.deleted_at.is_(None))
    if state is not None:
        statement = statement.where(row.state == state)
    if deprecated is not None:
        statement = statement.where(row.deprecated.is_(deprecated))
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def update_version(
    session: Session,
    *,
    project_id: str,
    name: str,
    version: int,
    changes: Mapping[str, Any],
    expected: Expected = None,
) -> tables.ModelVersionRow:
    """Replace `card` or `tags` of a version, or set `deprecated`.

    Raises: errors.PreconditionFailed when another caller has changed it.
    """
    row = _version(session, project_id=project_id, name=name, version=version, lock=True)
    check_etag(expected, etag(row), reference_of(row))
    if "deprecated" in changes:
        row.deprecated = changes["deprecated"]
    _describe(session, row, changes)
    return row


def delete_version(
    session: Session, *, project_id: str, name: str, version: int, expected: Expected = None
) -> None:
    """Delete a version; its number is not given out again.

    Raises: errors.InUse while a job, an alias or another version refers to it.
    """
    row = _version(session, project_id=project_id, name=name, version=version, lock=True)
    check_etag(expected, etag(row), reference_of(row))
    alias = tables.ModelAliasRow
    pointing = sa.select(alias.alias).where(
        alias.model_id == row.model_id, alias.version == row.version
    )
    aliases = tuple(session.scalars(pointing.order_by(alias.alias)))
    this = sa.select(tables.ModelVersionRow.id).where(tables.ModelVersionRow.id == row.id)
    _refuse_if_used(
        reference_of(row),
        [
            *([errors.Uses("alias", len(aliases), aliases[:_SHOWN])] if aliases else []),
            *_jobs_with(session, this),
            *uses.by_descendants(session, made_from=this),
        ],
    )
    _soft_delete(session, row)
    session.flush()


def files(
    session: Session, rows: Iterable[tables.ModelVersionRow]
) -> dict[str, list[tables.ModelFileRow]]:
    """Return the files of each of these versions, by the version's id."""
    by_version: dict[str, list[tables.ModelFileRow]] = {row.id: [] for row in rows}
    file = tables.ModelFileRow
    query = sa.select(file).where(file.version_id.in_(by_version)).order_by(file.path)
    for row in session.scalars(query):
        by_version[row.version_id].append(row)
    return by_version


@dataclass(frozen=True)
class File:
    """One file of a version: its path, its name as a download, and where its bytes are."""

    path: str
    filename: str
    sha256: str
    size_bytes: int
    storage_key: str


def file(session: Session, version: tables.ModelVersionRow, *, path: str) -> File:
    """Return a file of a version.

    Raises: errors.NotFound, naming the files that exist; errors.Conflict while the version is
    not ready.
    """
    if version.state != "ready":
        raise errors.Conflict(
            f"{reference_of(version)} is {version.state}: only ready versions have files",
            code="version_not_ready",
        )
    by_path = {row.path: row for row in files(session, [version])[version.id]}
    if path not in by_path:
        raise errors.NotFound(
            f"{reference_of(version)} has no file {input_checks.printable(path[:200])!r}: "
            f"it has {', '.join(by_path)}"
        )
    row = by_path[path]
    blob = session.get_one(tables.BlobRow, row.sha256)
    filename = f"{name_of(version)}-{version.version}-{path}"
    return File(path, filename, row.sha256, row.size_bytes, blob.storage_key)


def files_under(session: Session, version: tables.ModelVersionRow, *, folder: str) -> list[File]:
    """Return the files of a version whose paths begin with `folder`, by path."""
    stem = f"{name_of(version)}-{version.version}"
    row, blob = tables.ModelFileRow, tables.BlobRow
    query = (
        sa.select(row, blob.storage_key)
        .join(blob, blob.sha256 == row.sha256)
        .where(row.version_id == version.id, row.path.startswith(folder, autoescape=True))
        .order_by(row.path)
    )
    return [
        File(each.path, f"{stem}-{each.path}", each.sha256, each.size_bytes, key)
        for each, key in session.execute(query)
    ]


# -- references ------------------------------------------------------------------------------


def gives(version: tables.ModelVersionRow) -> list[str] | None:
    """Return what methods can read of a version besides its logits, where it was inspected."""
    traits = version.traits
    if traits is None:
        return None
    further = {"batch_norm": "has_batch_norm", "gradients": "gives_gradients"}
    return [*traits["shows"], *(name for name, key in further.items() if traits.get(key))]


def reference_of(version: tables.ModelVersionRow) -> str:
    """Return the reference of a version that belongs to a session, such as `name@3`."""
    return references.write(name_of(version), version.version)


def name_of(version: tables.ModelVersionRow) -> str:
    """Return the name of the line of a version that belongs to a session."""
    session = object_session(version)
    if session is None:
        raise RuntimeError("the reference of a version whose session has ended")
    return session.get_one(tables.ModelRow, version.model_id).name


def resolve(session: Session, *, project_id: str, reference: str) -> tables.ModelVersionRow:
    """Return the version of a reference, locked against deletion until the transaction ends.

    Raises: errors.Malformed; errors.NotFound; errors.Gone.
    """
    wanted = references.parse(reference)
    known = references.find(
        session, tables.ModelRow, tables.ModelVersionRow, wanted, project_id=project_id
    )
    if known is not None:
        return known
    # It needs more looks, or does not exist.
    line = _line(session, project_id=project_id, name=wanted.name)
    number = wanted.version
    if wanted.alias is not None:
        number = _aliased(session, line, wanted.alias)
    if number is not None:
        return _version_of(session, line, number, hold=True)
    version = tables.ModelVersionRow
    ready = sa.select(version).where(
        version.model_id == line.id, version.state == "ready", version.deleted_at.is_(None)
    )
    if wanted.sha256 is not None:
        ready = ready.where(version.sha256 == wanted.sha256)
    newest = ready.order_by(version.version.desc()).limit(1)
    resolved = session.scalars(newest.with_for_update(read=True, key_share=True)).one_or_none()
    if resolved is None:
        which = f"with the digest sha256:{wanted.sha256}" if wanted.sha256 else "that is ready"
        raise errors.NotFound(f"model {line.name} has no version {which}")
    return resolved


def _aliased(session: Session, line: tables.ModelRow, alias: str) -> int:
    row = tables.ModelAliasRow
    known = {
        each.alias: each.version
        for each in session.scalars(sa.select(row).where(row.model_id == line.id))
    }
    if alias not in known:
        hint = catalog.nearest(alias, known) or f"; its aliases: {', '.join(known) or 'none'}"
        raise errors.NotFound(f"model {line.name} has no alias {alias!r}{hint}")
    return known[alias]


# -- details ---------------------------------------------------------------------------------


def etag(row: tables.ModelRow | tables.ModelVersionRow) -> str:
    """Return the entity tag of what callers may change of a line or version."""
    return f'"{row.updated_at.isoformat()}"'


def check_etag(expected: Expected, current: str, what: str) -> None:
    """Raise PreconditionFailed unless `expected` allows `current`."""
    if expected is not None and "*" not in expected and current not in expected:
        raise errors.PreconditionFailed(
            f"{what} has changed: its ETag is {current}; read it again, then decide again"
        )


def _line(
    session: Session, *, project_id: str, name: str, lock: bool = False, hold: bool = False
) -> tables.ModelRow:
    row = tables.ModelRow
    query = sa.select(row).where(row.project_id == project_id, row.name == name)
    line = session.scalars(database.locked(query, lock=lock, hold=hold)).one_or_none()
    if line is None or tombstones.is_forgotten(session, line.deleted_at):
        alive = sa.select(row.name).where(row.project_id == project_id, row.deleted_at.is_(None))
        names = session.scalars(alive.order_by(row.updated_at.desc()).limit(_CLOSEST_AMONG)).all()
        raise errors.NotFound(f"no model is called {name[:96]!r}{catalog.nearest(name, names)}")
    if line.deleted_at is not None:
        raise errors.Gone(f"model {name} was deleted")
    return line


def _version(
    session: Session,
    *,
    project_id: str,
    name: str,
    version: int,
    lock: bool = False,
) -> tables.ModelVersionRow:
    line = _line(session, project_id=project_id, name=name)
    return _version_of(session, line, version, lock=lock)


def _version_of(
    session: Session,
    line: tables.ModelRow,
    version: int,
    *,
    lock: bool = False,
    hold: bool = False,
) -> tables.ModelVersionRow:
    row, name = tables.ModelVersionRow, line.name
    query = sa.select(row).where(row.model_id == line.id, row.version == version)
    model_version = session.scalars(database.locked(query, lock=lock, hold=hold)).one_or_none()
    if model_version is None or tombstones.is_forgotten(session, model_version.deleted_at):
        latest = summaries(session, [line])[line.id].latest_version
        hint = f"; the latest is {references.write(name, latest)}" if latest else ""
        raise errors.NotFound(f"model {name} has no version {version}{hint}")
    if model_version.deleted_at is not None:
        raise errors.Gone(f"{references.write(name, version)} was deleted")
    return model_version


def _is_new_line(session: Session, project_id: str, name: str) -> bool:
    """Create the line, or restore a deleted one; return False if it exists."""
    row = tables.ModelRow
    now = database.now(session)
    made = session.scalars(
        database.insert(session, row)
        .values(
            id=ids.new("mod"),
            project_id=project_id,
            name=name,
            card="",
            tags={},
            last_version=0,
            created_at=now,
            updated_at=now,
        )
        .on_conflict_do_update(
            index_elements=[row.project_id, row.name],
            set_={"deleted_at": None, "card": "", "tags": {}, "created_at": now, "updated_at": now},
            where=row.deleted_at.is_not(None),
        )
        .returning(row.id)
    ).one_or_none()
    return made is not None


def _next_number(session: Session, project_id: str, name: str) -> tuple[str, int]:
    row = tables.ModelRow
    counted = session.execute(
        sa.update(row)
        .where(row.project_id == project_id, row.name == name)
        .values(last_version=row.last_version + 1)
        .returning(row.id, row.last_version)
        .execution_options(synchronize_session=False)
    )
    model_id, number = counted.one()
    return model_id, number


def _describe(
    session: Session, row: tables.ModelRow | tables.ModelVersionRow, changes: Mapping[str, Any]
) -> None:
    card, tags = changes.get("card"), changes.get("tags")
    input_checks.refuse(
        list(input_checks.faults_of_notes(card=card, tags=tags)), code="invalid_change"
    )
    if card is not None:
        row.card = card
    if tags is not None:
        row.tags = dict(tags)
    row.updated_at = database.now(session)
    session.flush()


def _jobs_with(session: Session, chosen: sa.Select[str]) -> list[errors.Uses]:
    """Return the jobs that one of the chosen versions is teacher, initial weights or student of."""
    job = tables.JobRow
    columns = (job.teacher_version_id, job.initial_version_id, job.student_version_id)
    one_of_several = job.id.in_(job_teachers.jobs_of(chosen))
    return uses.by_jobs(session, sa.or_(one_of_several, *(c.in_(chosen) for c in columns)))


def _refuse_if_used(what: str, used: Sequence[errors.Uses]) -> None:
    way_out = "delete those first, or set deprecated to true instead"
    uses.refuse(what, used, way_out=way_out)


def _soft_delete(session: Session, version: tables.ModelVersionRow) -> None:
    """Mark a version as deleted, without file rows: the sweep of orphans deletes the bytes."""
    # Files last: an export that ends at this moment has added its own when its row is let go of.
    for row in (tables.ModelExportRow, tables.PredictionRow, tables.ModelFileRow):
        session.execute(sa.delete(row).where(row.version_id == version.id))
    version.deleted_at = version.updated_at = database.now(session)
    if version.state == "pending":
        # Ends its inspection, whose result is not needed.
        version.state = "rejected"
        version.rejection = {"code": "deleted", "message": "deleted before its inspection"}
    session.flush()

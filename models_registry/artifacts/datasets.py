"""Data sets and their versions: register, find, describe; some, such as `digits`, are built in.

Versions are immutable, and in the engine's prepared form once a worker has unpacked and checked the
upload. The images that a data-free job has kept have that form already (`synthetic_datasets.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, object_session

from models_registry import catalog, errors, ids
from models_registry.artifacts import input_checks, references, uploads
from models_registry.persistence import database, outbox, paging, tables
from workers.distill.config import formats as format_rules

BUILTIN = "builtin"
_CLOSEST_AMONG = 1000


@dataclass(frozen=True, kw_only=True)
class NewDatasetVersion:
    """What a caller says about an upload that becomes a version of a data set."""

    name: str
    upload_id: str
    format: str = format_rules.AUTO
    """The name of a format, or `auto`: it becomes that which the inspection recognises."""
    task: str
    input: dict[str, Any] | None = None
    card: str = ""
    tags: dict[str, str] = field(default_factory=dict)


def register(
    session: Session, *, project_id: str, new: NewDatasetVersion
) -> tables.DatasetVersionRow:
    """Add a pending version from a completed upload, and publish the message for its inspection.

    Raises: errors.Refused with everything that is wrong.
    """
    faults = [
        *input_checks.faults_of_name(new.name),
        *input_checks.faults_of_task(new.task),
        *input_checks.faults_of_notes(card=new.card, tags=new.tags),
    ]
    if new.input is not None:
        faults += input_checks.faults_of_input(new.input)
    faults += _faults_of_format(new.format, new.task)
    upload = None
    try:
        upload = uploads.completed(
            session, project_id=project_id, upload_id=new.upload_id, purpose="dataset"
        )
    except errors.Refused as error:
        faults += error.faults
    input_checks.refuse(faults, code="invalid_version")
    row = add_version(
        session,
        project_id=project_id,
        name=new.name,
        state="pending",
        format=new.format,
        task=new.task,
        input=new.input,
        upload_id=new.upload_id,
        card=new.card,
        tags=dict(new.tags),
    )
    if upload is not None:
        row.lineage = {"upload": upload.id, "upload_digest": f"sha256:{upload.sha256}"}
    row.announced_at = row.created_at
    outbox.add(session, task="datasets.inspect", queue="inspect", payload={"version_id": row.id})
    session.flush()
    return row


def _faults_of_format(name: str, task: str) -> Iterator[errors.Fault]:
    formats = {key: entry["tasks"] for key, entry in catalog.load().formats.items()}
    if name in formats and task not in input_checks.TASKS:
        return  # `faults_of_task` reports it
    refusal = format_rules.refusal(name, task, formats)
    if refusal is not None:
        hint = "" if name in formats else catalog.nearest(name, formats)
        yield errors.Fault("/format", format_rules.CODE, f"{refusal}{hint}")


def add_builtins(session: Session, *, project_id: str) -> None:
    """Add the built-in data sets of the catalog to a project, except where a name is taken."""
    row = tables.DatasetRow
    taken = set(session.scalars(sa.select(row.name).where(row.project_id == project_id)))
    for name, content in catalog.load().datasets.items():
        if name in taken:
            continue
        manifest = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        add_version(
            session,
            project_id=project_id,
            name=name,
            state="ready",
            format=BUILTIN,
            task=content["task"],
            classes=content["classes"],
            splits=content["splits"],
            boxes=content.get("boxes"),
            notes=content["notes"],
            input=content["input"],
            sha256=hashlib.sha256(manifest).hexdigest(),
            card=content.get("title", ""),
        )


def get(session: Session, *, project_id: str, name: str) -> tables.DatasetRow:
    """Return a data set.

    Raises: errors.NotFound, with the most similar name.
    """
    row = tables.DatasetRow
    mine = sa.select(row).where(row.project_id == project_id)
    found = session.scalars(mine.where(row.name == name)).one_or_none()
    if found is None:
        newest = mine.with_only_columns(row.name).order_by(row.created_at.desc())
        names = session.scalars(newest.limit(_CLOSEST_AMONG)).all()
        raise errors.NotFound(f"no data set is called {name[:96]!r}{catalog.nearest(name, names)}")
    return found


def page(
    session: Session, *, project_id: str, wanted: paging.PageRequest, prefix: str | None = None
) -> paging.Page[tables.DatasetRow]:
    """Return a page of the project's data sets, newest first."""
    row = tables.DatasetRow
    statement = sa.select(row).where(row.project_id == project_id)
    if prefix:
        statement = statement.where(row.name.startswith(prefix, autoescape=True))
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def latest(session: Session, rows: Iterable[tables.DatasetRow]) -> dict[str, int]:
    """Return the newest ready version of each of these data sets that has one, by its id."""
    version = tables.DatasetVersionRow
    query = (
        sa.select(version.dataset_id, sa.func.max(version.version))
        .where(version.dataset_id.in_([row.id for row in rows]), version.state == "ready")
        .group_by(version.dataset_id)
    )
    return dict(session.execute(query).all())


def get_version(
    session: Session, *, project_id: str, name: str, version: int
) -> tables.DatasetVersionRow:
    """Return a version.

    Raises: errors.NotFound, with the latest version.
    """
    line = get(session, project_id=project_id, name=name)
    row = tables.DatasetVersionRow
    query = sa.select(row).where(row.dataset_id == line.id, row.version == version)
    found = session.scalars(query).one_or_none()
    if found is None:
        newest = latest(session, [line]).get(line.id)
        hint = f"; the latest is {references.write(name, newest)}" if newest else ""
        raise errors.NotFound(f"data set {name} has no version {version}{hint}")
    return found


def page_versions(
    session: Session,
    *,
    project_id: str,
    name: str,
    wanted: paging.PageRequest,
    state: str | None = None,
) -> paging.Page[tables.DatasetVersionRow]:
    """Return a page of a data set's versions, newest first."""
    line = get(session, project_id=project_id, name=name)
    row = tables.DatasetVersionRow
    statement = sa.select(row).where(row.dataset_id == line.id)
    if state is not None:
        statement = statement.where(row.state == state)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def resolve(session: Session, *, project_id: str, reference: str) -> tables.DatasetVersionRow:
    """Return the version that a reference means; data sets have no aliases but `latest`.

    Raises: errors.Malformed; errors.NotFound, with a way out.
    """
    wanted = references.parse(reference)
    line = get(session, project_id=project_id, name=wanted.name)
    if wanted.version is not None:
        return get_version(session, project_id=project_id, name=wanted.name, version=wanted.version)
    if wanted.alias is not None:
        raise errors.NotFound(
            f"data set {line.name} has no alias {wanted.alias!r}: name a version, such as "
            f"{references.write(line.name, line.last_version)}"
        )
    row = tables.DatasetVersionRow
    ready = sa.select(row).where(row.dataset_id == line.id, row.state == "ready")
    if wanted.sha256 is not None:
        ready = ready.where(row.sha256 == wanted.sha256)
    found = session.scalars(ready.order_by(row.version.desc()).limit(1)).one_or_none()
    if found is None:
        which = f"with the digest sha256:{wanted.sha256}" if wanted.sha256 else "that is ready"
        raise errors.NotFound(f"data set {line.name} has no version {which}")
    return found


def reference_of(version: tables.DatasetVersionRow) -> str:
    """Return the reference of a version that belongs to a session, such as `digits@1`."""
    return references.write(name_of(version), version.version)


def name_of(version: tables.DatasetVersionRow) -> str:
    """Return the name of the data set of a version that belongs to a session."""
    session = object_session(version)
    if session is None:
        raise RuntimeError("a reference was asked for after its session had ended")
    return session.get_one(tables.DatasetRow, version.dataset_id).name


def digest(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of the sorted lines "sha256  path" of all files."""
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def add_version(
    session: Session,
    *,
    project_id: str,
    name: str,
    **columns: Any,  # of the version's row
) -> tables.DatasetVersionRow:
    """Add a version to its data set, which is created if it does not exist."""
    line = tables.DatasetRow
    session.execute(
        database.insert(session, line)
        .values(
            id=ids.new("ds"),
            project_id=project_id,
            name=name,
            card="",
            tags={},
            last_version=0,
            created_at=database.now(session),
        )
        .on_conflict_do_nothing()
    )
    counted = session.execute(
        sa.update(line)
        .where(line.project_id == project_id, line.name == name)
        .values(last_version=line.last_version + 1)
        .returning(line.id, line.last_version)
        .execution_options(synchronize_session=False)
    )
    dataset_id, number = counted.one()
    row = tables.DatasetVersionRow(
        id=ids.new("dsv"),
        project_id=project_id,
        dataset_id=dataset_id,
        version=number,
        created_at=database.now(session),  # under the counter's lock, as in models.py
        **columns,
    )
    session.add(row)
    session.flush()
    return row

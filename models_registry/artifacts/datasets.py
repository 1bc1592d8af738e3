"""Data sets and their versions: register, find, describe; some, such as `digits`, are built in.

Versions are immutable, and in the engine's prepared form once a worker has unpacked and checked the
upload. Of files elsewhere (`dataset_sources.py`) that form is not stored, and known by its digests.
The images that a data-free job has kept have it already (`synthetic_datasets.py`). Deleted data
sets and versions stay as tombstones, so that lineage stays complete.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, object_session

from models_registry import catalog, errors, ids
from models_registry.artifacts import input_checks, models, references, uploads, uses
from models_registry.persistence import (
    database,
    outbox,
    paging,
    source_places,
    tables,
    tombstones,
)
from workers.distill.config import formats as format_rules

BUILTIN = "builtin"
_CLOSEST_AMONG = 1000


@dataclass(frozen=True, kw_only=True)
class NewDatasetVersion:
    """What a caller says about an upload, or a source, that becomes a version of a data set."""

    name: str
    upload_id: str | None = None
    source: str | None = None
    """Address of files elsewhere, in place of an upload."""
    format: str = format_rules.AUTO
    """The name of a format, or `auto`: it becomes that which the inspection recognises."""
    task: str
    input: dict[str, Any] | None = None
    card: str = ""
    tags: dict[str, str] = field(default_factory=dict)


def register(
    session: Session,
    *,
    project_id: str,
    new: NewDatasetVersion,
    allowed_sources: Sequence[str] = (),
) -> tables.DatasetVersionRow:
    """Add a pending version from a completed upload, or from one of the sources that are allowed.

    The message for its inspection is published.

    Raises: errors.Refused with everything that is wrong.
    """
    faults = [
        *input_checks.faults_of_name(new.name),
        *input_checks.faults_of_task(new.task, input_checks.TASKS_OF_DATASETS),
        *input_checks.faults_of_notes(card=new.card, tags=new.tags),
    ]
    if new.input is not None:
        faults += input_checks.faults_of_input(new.input)
    faults += _faults_of_format(new.format, new.task)
    storage = format_rules.storage_refusal(
        (new.input or {}).get("storage") or "auto", new.format, new.task
    )
    if storage is not None:
        faults.append(errors.Fault("/input/storage", format_rules.CODE, storage))
    upload = None
    if new.source is not None:
        project = session.get_one(tables.ProjectRow, project_id).name
        refusal = source_places.refusal(new.source, allowed_sources, project=project)
        if refusal is not None:
            faults.append(errors.Fault("/source", *refusal))
    else:
        try:
            upload = uploads.completed(
                session, project_id=project_id, upload_id=new.upload_id or "", purpose="dataset"
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
    if new.source is not None:
        row.source = {"url": source_places.parse(new.source).url}
        row.lineage = {"source": row.source["url"]}
    row.announced_at = row.created_at
    outbox.add(session, task="datasets.inspect", queue="inspect", payload={"version_id": row.id})
    session.flush()
    return row


def is_withheld(path: str, withheld: Collection[str]) -> bool:
    """Return whether a data set's file is withheld, or holds pictures of a split that is.

    A split is withheld by its index, `train.safetensors`; its pictures are `train-00000.tar`, ...
    """
    split, dash, _ = path.rpartition("-")
    return path in withheld or (bool(dash) and f"{split}.safetensors" in withheld)


def _faults_of_format(name: str, task: str) -> Iterator[errors.Fault]:
    formats = {key: entry["tasks"] for key, entry in catalog.load().formats.items()}
    if name in formats and task not in input_checks.TASKS_OF_DATASETS:
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


def get(session: Session, *, project_id: str, name: str, lock: bool = False) -> tables.DatasetRow:
    """Return a data set; `lock` keeps it for the caller until the transaction ends.

    Raises: errors.NotFound, with the most similar name; errors.Gone when it was deleted.
    """
    return _line(session, project_id=project_id, name=name, lock=lock)


def _line(session: Session, *, project_id: str, name: str, lock: bool = False) -> tables.DatasetRow:
    row = tables.DatasetRow
    mine = sa.select(row).where(row.project_id == project_id)
    query = mine.where(row.name == name)
    found = session.scalars(database.locked(query, lock=lock)).one_or_none()
    if found is None or tombstones.is_forgotten(session, found.deleted_at):
        alive = mine.with_only_columns(row.name).where(row.deleted_at.is_(None))
        names = session.scalars(alive.order_by(row.created_at.desc()).limit(_CLOSEST_AMONG)).all()
        raise errors.NotFound(f"no data set is called {name[:96]!r}{catalog.nearest(name, names)}")
    if found.deleted_at is not None:
        raise errors.Gone(f"data set {name} was deleted")
    return found


def page(
    session: Session, *, project_id: str, wanted: paging.PageRequest, prefix: str | None = None
) -> paging.Page[tables.DatasetRow]:
    """Return a page of the project's data sets, newest first."""
    row = tables.DatasetRow
    statement = sa.select(row).where(row.project_id == project_id, row.deleted_at.is_(None))
    if prefix:
        statement = statement.where(row.name.startswith(prefix, autoescape=True))
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def latest(session: Session, rows: Iterable[tables.DatasetRow]) -> dict[str, int]:
    """Return the newest ready version of each of these data sets that has one, by its id."""
    version = tables.DatasetVersionRow
    query = (
        sa.select(version.dataset_id, sa.func.max(version.version))
        .where(
            version.dataset_id.in_([row.id for row in rows]),
            version.state == "ready",
            version.deleted_at.is_(None),
        )
        .group_by(version.dataset_id)
    )
    return dict(session.execute(query).all())


@dataclass(frozen=True)
class Stored:
    """What a version occupies: its prepared files, and the archive it was made from, if kept."""

    prepared_bytes: int = 0
    archive: models.File | None = None

    @property
    def size_bytes(self) -> int:
        """Return the bytes of both."""
        return self.prepared_bytes + (self.archive.size_bytes if self.archive else 0)


def stored(session: Session, rows: Iterable[tables.DatasetVersionRow]) -> dict[str, Stored]:
    """Return what each of these versions occupies, by the version's id."""
    version_ids = [row.id for row in rows]
    version, file = tables.DatasetVersionRow, tables.DatasetFileRow
    prepared = dict(
        session.execute(
            sa.select(file.version_id, sa.func.sum(file.size_bytes))
            .where(file.version_id.in_(version_ids))
            .group_by(file.version_id)
        ).all()
    )
    archives = session.execute(
        sa.select(version, tables.DatasetRow.name, tables.UploadRow.filename, tables.BlobRow)
        .join(tables.DatasetRow, tables.DatasetRow.id == version.dataset_id)
        .join(tables.UploadRow, tables.UploadRow.id == version.upload_id)
        .join(tables.BlobRow, tables.BlobRow.sha256 == version.archive_sha256)
        .where(version.id.in_(version_ids))
    )
    kept = {
        row.id: models.File(
            path=filename,
            filename=f"{name}-{row.version}-{filename}",
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            storage_key=blob.storage_key,
        )
        for row, name, filename, blob in archives
    }
    return {
        version_id: Stored(int(prepared.get(version_id) or 0), kept.get(version_id))
        for version_id in version_ids
    }


def line_bytes(session: Session, rows: Iterable[tables.DatasetRow]) -> dict[str, int]:
    """Return the bytes that all versions of each of these data sets occupy, by its id."""
    line_ids = [row.id for row in rows]
    version, file, blob = tables.DatasetVersionRow, tables.DatasetFileRow, tables.BlobRow
    prepared = (
        sa.select(version.dataset_id, sa.func.sum(file.size_bytes))
        .join(file, file.version_id == version.id)
        .where(version.dataset_id.in_(line_ids))
        .group_by(version.dataset_id)
    )
    archives = (
        sa.select(version.dataset_id, sa.func.sum(blob.size_bytes))
        .join(blob, blob.sha256 == version.archive_sha256)
        .where(version.dataset_id.in_(line_ids))
        .group_by(version.dataset_id)
    )
    sizes = dict.fromkeys(line_ids, 0)
    for query in (prepared, archives):
        for line_id, size_bytes in session.execute(query):
            sizes[line_id] += int(size_bytes)
    return sizes


def archive(session: Session, version: tables.DatasetVersionRow) -> models.File:
    """Return the file that a version was uploaded as.

    Raises: errors.Conflict while the version is not ready; errors.NotFound for a version that
    was not uploaded; errors.Gone where the file was let go.
    """
    reference = reference_of(version)
    if version.format == BUILTIN:
        raise errors.NotFound(
            f"{reference} is built in and was never uploaded: there is no archive",
            code="no_archive",
        )
    if version.source is not None:
        raise errors.NotFound(
            f"{reference} refers to {version.source['url']} and was never uploaded: its files are "
            "there, and there is no archive",
            code="no_archive",
        )
    if version.job_id is not None:
        raise errors.NotFound(
            f"{reference} was made of the images of job {version.job_id} and was never uploaded: "
            f"they are among the files of the student of that job (retort download "
            f"{version.job_id} --all)",
            code="no_archive",
        )
    if version.state != "ready":
        raise errors.Conflict(
            f"{reference} is {version.state}: only the archives of ready versions are kept",
            code="version_not_ready",
        )
    kept = stored(session, [version])[version.id].archive
    if kept is None:
        raise errors.Gone(
            f"{reference} was registered before archives were kept, and its upload has let go of "
            "it: upload it again for a version that can be downloaded",
            code="archive_not_kept",
        )
    return kept


def get_version(
    session: Session, *, project_id: str, name: str, version: int
) -> tables.DatasetVersionRow:
    """Return a version.

    Raises: errors.NotFound, with the latest version; errors.Gone when it was deleted.
    """
    return _version(session, project_id=project_id, name=name, version=version)


def _version(
    session: Session,
    *,
    project_id: str,
    name: str,
    version: int,
    lock: bool = False,
) -> tables.DatasetVersionRow:
    line = get(session, project_id=project_id, name=name)
    return _version_of(session, line, version, lock=lock)


def _version_of(
    session: Session,
    line: tables.DatasetRow,
    version: int,
    *,
    lock: bool = False,
    hold: bool = False,
) -> tables.DatasetVersionRow:
    row, name = tables.DatasetVersionRow, line.name
    query = sa.select(row).where(row.dataset_id == line.id, row.version == version)
    found = session.scalars(database.locked(query, lock=lock, hold=hold)).one_or_none()
    if found is None or tombstones.is_forgotten(session, found.deleted_at):
        newest = latest(session, [line]).get(line.id)
        hint = f"; the latest is {references.write(name, newest)}" if newest else ""
        raise errors.NotFound(f"data set {name} has no version {version}{hint}")
    if found.deleted_at is not None:
        raise errors.Gone(f"{references.write(name, version)} was deleted")
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
    statement = sa.select(row).where(row.dataset_id == line.id, row.deleted_at.is_(None))
    if state is not None:
        statement = statement.where(row.state == state)
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def resolve(session: Session, *, project_id: str, reference: str) -> tables.DatasetVersionRow:
    """Return the version that a reference means, locked against deletion until the end.

    Data sets have no aliases but `latest`.

    Raises: errors.Malformed; errors.NotFound, with a way out; errors.Gone.
    """
    wanted = references.parse(reference)
    known = references.find(
        session, tables.DatasetRow, tables.DatasetVersionRow, wanted, project_id=project_id
    )
    if known is not None:
        return known
    # It needs more looks, or does not exist.
    line = get(session, project_id=project_id, name=wanted.name)
    if wanted.version is not None:
        return _version_of(session, line, wanted.version, hold=True)
    if wanted.alias is not None:
        raise errors.NotFound(
            f"data set {line.name} has no alias {wanted.alias!r}: name a version, such as "
            f"{references.write(line.name, line.last_version)}"
        )
    row = tables.DatasetVersionRow
    ready = sa.select(row).where(
        row.dataset_id == line.id, row.state == "ready", row.deleted_at.is_(None)
    )
    if wanted.sha256 is not None:
        ready = ready.where(row.sha256 == wanted.sha256)
    newest = ready.order_by(row.version.desc()).limit(1)
    found = session.scalars(newest.with_for_update(read=True, key_share=True)).one_or_none()
    if found is None:
        which = f"with the digest sha256:{wanted.sha256}" if wanted.sha256 else "that is ready"
        raise errors.NotFound(f"data set {line.name} has no version {which}")
    return found


def delete(session: Session, *, project_id: str, name: str) -> None:
    """Delete a data set with its versions; their names and digests stay in the lineage of models.

    Raises: errors.InUse while a job names one of its versions; errors.Conflict for one that is
    built in.
    """
    line = _line(session, project_id=project_id, name=name, lock=True)
    row = tables.DatasetVersionRow
    mine = sa.select(row).where(row.dataset_id == line.id, row.deleted_at.is_(None))
    versions = session.scalars(mine.order_by(row.id).with_for_update()).all()
    for each in versions:
        refuse_if_builtin(each)
    _refuse_if_used(session, name, mine.with_only_columns(row.id))
    for each in versions:
        _soft_delete(session, each)
    line.deleted_at = database.now(session)
    session.flush()


def delete_version(session: Session, *, project_id: str, name: str, version: int) -> None:
    """Delete a version, which also takes back one that waits for its inspection.

    Its number is not given out again.

    Raises: errors.InUse while a job names it; errors.Conflict for one that is built in.
    """
    row = _version(session, project_id=project_id, name=name, version=version, lock=True)
    refuse_if_builtin(row)
    this = sa.select(tables.DatasetVersionRow.id).where(tables.DatasetVersionRow.id == row.id)
    _refuse_if_used(session, reference_of(row), this)
    _soft_delete(session, row)


def refuse_if_builtin(version: tables.DatasetVersionRow) -> None:
    """Raise Conflict for a version that is built in."""
    if version.format == BUILTIN:
        raise errors.Conflict(
            f"{reference_of(version)} is built in, takes no room and cannot be deleted; versions "
            "that were added under this name can, each by its number",
            code="builtin",
        )


def _refuse_if_used(session: Session, what: str, chosen: sa.Select[str]) -> None:
    # Students do not count: data must be deletable (decision 0021), and they are whole without it.
    way_out = "cancel what has not ended, delete those, then try again"
    refers = tables.JobRow.dataset_version_id.in_(chosen)
    uses.refuse(what, uses.by_jobs(session, refers), way_out=way_out)


def _soft_delete(session: Session, version: tables.DatasetVersionRow) -> None:
    """Mark a version as deleted, without its files: the sweep of orphans deletes the bytes.

    Files made of a source are in no store: their rows stay, so that an erasure knows what workers
    have to drop.
    """
    for row in (tables.DatasetFileRow, tables.DatasetSamplesRow):
        session.execute(sa.delete(row).where(row.version_id == version.id))
    version.archive_sha256, version.deleted_at = None, database.now(session)
    if version.state == "pending":
        # Ends its inspection, whose result is not needed.
        version.state = "rejected"
        version.rejection = {"code": "deleted", "message": "deleted before its inspection"}
    session.flush()


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
    """Add a version to its data set, which is created, or restored, if it does not exist."""
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
        .on_conflict_do_update(
            index_elements=[line.project_id, line.name],
            set_={"deleted_at": None, "card": "", "tags": {}, "created_at": database.now(session)},
            where=line.deleted_at.is_not(None),
        )
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
        created_at=database.now(session, anew=True),  # under the counter's lock, as in models.py
        **columns,
    )
    session.add(row)
    session.flush()
    return row

"""Aliases: movable pointers to versions of a model, moved by compare-and-set.

An alias cannot be moved without its entity tag, so that two callers who move it at the same time
notice each other.
"""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import catalog, errors
from models_registry.artifacts import models, references
from models_registry.persistence import database, tables

KEPT_MOVES = 100


def get(session: Session, *, project_id: str, name: str, alias: str) -> tables.ModelAliasRow:
    """Return an alias.

    Raises: errors.NotFound, naming the nearest.
    """
    line = models.get(session, project_id=project_id, name=name)
    return _find(session, line, alias, lock=False)


def every(session: Session, *, project_id: str, name: str) -> list[tables.ModelAliasRow]:
    """Return the aliases of a model, by name."""
    line = models.get(session, project_id=project_id, name=name)
    row = tables.ModelAliasRow
    query = sa.select(row).where(row.model_id == line.id).order_by(row.alias)
    return list(session.scalars(query))


def put(
    session: Session,
    *,
    project_id: str,
    name: str,
    alias: str,
    version: int,
    expected: models.Expected,
    must_be_new: bool = False,
) -> tuple[tables.ModelAliasRow, bool]:
    """Point an alias at a version; return it, and whether it is new.

    `expected` are entity tags of which one must be the current one; needed for one that exists.

    Raises: errors.PreconditionRequired, errors.PreconditionFailed, errors.NotFound, errors.Gone.
    """
    references.check_alias(alias)
    # Locked before the version, in the same order as by a deletion of the line.
    line = models.get(session, project_id=project_id, name=name, hold=True)
    target = _target(session, line, version)
    if expected is None and _create(session, target, alias):
        return session.get_one(tables.ModelAliasRow, (target.model_id, alias)), True
    row = _find_expected(session, line, alias, expected, must_be_new=must_be_new)
    now = database.now(session)
    row.version, row.revision, row.updated_at = target.version, row.revision + 1, now
    row.history = [*row.history[1 - KEPT_MOVES :], _move(target.version, now.isoformat())]
    session.flush()
    return row, False


def delete(
    session: Session, *, project_id: str, name: str, alias: str, expected: models.Expected
) -> None:
    """Remove an alias; the version stays.

    Raises: errors.PreconditionRequired, errors.PreconditionFailed, errors.NotFound.
    """
    line = models.get(session, project_id=project_id, name=name)
    row = _find(session, line, alias, lock=True)
    _check(row, expected)
    session.delete(row)
    session.flush()


def etag(row: tables.ModelAliasRow) -> str:
    """Return the entity tag of an alias; one that is deleted and made again has another."""
    return f'"{row.revision}-{row.updated_at.isoformat()}"'


def _target(session: Session, line: tables.ModelRow, version: int) -> tables.ModelVersionRow:
    reference = references.write(line.name, version)
    try:
        target = models.resolve(session, project_id=line.project_id, reference=reference)
    except errors.NotFound as error:
        fault = errors.Fault("/version", error.code, error.message)
        raise errors.Refused(error.message, code="unknown_version", faults=[fault]) from error
    if target.state == "rejected":
        detail = f"{reference} was rejected: an alias needs a version that can be used"
        fault = errors.Fault("/version", "version_rejected", detail)
        raise errors.Refused(detail, code="version_rejected", faults=[fault])
    return target


def _create(session: Session, target: tables.ModelVersionRow, alias: str) -> bool:
    row = tables.ModelAliasRow
    now = database.now(session)
    made = session.scalars(
        database.insert(session, row)
        .values(
            model_id=target.model_id,
            alias=alias,
            version=target.version,
            revision=1,
            history=[_move(target.version, now.isoformat())],
            updated_at=now,
        )
        .on_conflict_do_nothing()
        .returning(row.alias)
    ).one_or_none()
    return made is not None


def _find_expected(
    session: Session,
    line: tables.ModelRow,
    alias: str,
    expected: models.Expected,
    *,
    must_be_new: bool,
) -> tables.ModelAliasRow:
    try:
        row = _find(session, line, alias, lock=True)
    except errors.NotFound as error:
        # There is nothing that the caller's entity tag could match.
        raise errors.PreconditionFailed(f"{error.message}; make it without If-Match") from error
    if must_be_new:
        raise errors.PreconditionFailed(
            f"alias {alias} exists and points to version {row.version}: move it with If-Match"
        )
    _check(row, expected)
    return row


def _check(row: tables.ModelAliasRow, expected: models.Expected) -> None:
    if expected is None:
        raise errors.PreconditionRequired(
            f"alias {row.alias} points to version {row.version}: read it, then send its ETag as "
            "If-Match"
        )
    models.check_etag(expected, etag(row), f"alias {row.alias}")


def _find(
    session: Session, line: tables.ModelRow, alias: str, *, lock: bool
) -> tables.ModelAliasRow:
    row = tables.ModelAliasRow
    query = sa.select(row).where(row.model_id == line.id, row.alias == alias)
    alias_row = session.scalars(database.locked(query, lock=lock)).one_or_none()
    if alias_row is None:
        known = session.scalars(sa.select(row.alias).where(row.model_id == line.id)).all()
        hint = catalog.nearest(alias, known)
        raise errors.NotFound(f"model {line.name} has no alias {alias[:96]!r}{hint}")
    return alias_row


def _move(version: int, at: str) -> dict[str, object]:
    return {"version": version, "at": at}

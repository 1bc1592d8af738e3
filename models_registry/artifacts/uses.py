"""What stands in the way of a deletion: jobs, studies and versions that refer to the thing."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import job_teachers, references
from models_registry.errors import Uses
from models_registry.persistence import tables

_SHOWN = 5
_PLURALS = {"study": "studies", "alias": "aliases"}


def by_jobs(session: Session, refers: sa.ColumnElement[bool]) -> list[Uses]:
    """Return the jobs, and for those of studies the studies, that `refers` selects.

    Deleted jobs do not count: they stay as the origin of their students, with the names of what
    they used.
    """
    row = tables.JobRow
    alive = (refers, row.deleted_at.is_(None))
    # The window counts all rows (of the second query: all groups), the limit bounds the names.
    total = sa.func.count().over()
    alone = sa.select(row.id, total).where(*alive, row.study_id.is_(None))
    studies = sa.select(row.study_id, total).where(*alive, row.study_id.is_not(None))
    newest = alone.order_by(row.id.desc()).limit(_SHOWN)
    by_study = studies.group_by(row.study_id).order_by(row.study_id.desc()).limit(_SHOWN)
    return [
        *_uses("job", [(job_id, count) for job_id, count in session.execute(newest)]),
        *_uses("study", [(str(study), count) for study, count in session.execute(by_study)]),
    ]


def by_descendants(
    session: Session, *, made_from: sa.Select[str], outside_line: str | None = None
) -> list[Uses]:
    """Return the model versions whose job had one of these versions as teacher or initial weights.

    `made_from` selects ids of versions. Versions of the line with the id `outside_line` do not
    count.
    """
    child, job, line = tables.ModelVersionRow, tables.JobRow, tables.ModelRow
    total = sa.func.count().over()
    query = (
        sa.select(line.name, child.version, total)
        .join(job, child.job_id == job.id)
        .join(line, child.model_id == line.id)
        .where(
            sa.or_(
                job.teacher_version_id.in_(made_from),
                job.initial_version_id.in_(made_from),
                job.id.in_(job_teachers.jobs_of(made_from)),
            ),
            child.deleted_at.is_(None),
        )
    )
    if outside_line is not None:
        query = query.where(child.model_id != outside_line)
    rows = session.execute(query.order_by(child.id.desc()).limit(_SHOWN)).all()
    return _uses("model version", [(references.write(name, n), count) for name, n, count in rows])


def refuse(what: str, uses: Sequence[Uses], *, way_out: str) -> None:
    """Raise InUse, naming what refers to `what`, if anything does."""
    if uses:
        told = " and ".join(_sentence(use) for use in uses)
        raise errors.InUse(f"{what} is in use by {told}: {way_out}", uses=uses)


def _uses(kind: str, rows: Sequence[tuple[str, int]]) -> list[Uses]:
    return [Uses(kind, rows[0][1], tuple(name for name, _ in rows))] if rows else []


def _sentence(use: Uses) -> str:
    if use.count == 1:
        return f"{use.kind} {use.names[0]}"
    kind = _PLURALS.get(use.kind, f"{use.kind}s")
    rest = use.count - len(use.names)
    more = f" and {rest} more" if rest else ""
    return f"{use.count} {kind} ({', '.join(use.names)}{more})"

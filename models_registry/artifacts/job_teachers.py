"""The teachers of a job that has several; of one teacher, its row names it."""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.persistence import tables


def add(session: Session, job_id: str, version_ids: Sequence[str]) -> None:
    """Record the several teachers of a new job, in the order of its spec."""
    session.add_all(
        tables.JobTeacherRow(job_id=job_id, place=place, version_id=version_id)
        for place, version_id in enumerate(version_ids)
    )


def of_job(session: Session, job: tables.JobRow) -> list[tables.ModelVersionRow]:
    """Return all teachers of a job, in the order of its spec."""
    if job.teacher_version_id is not None:
        return [session.get_one(tables.ModelVersionRow, job.teacher_version_id)]
    row, version = tables.JobTeacherRow, tables.ModelVersionRow
    query = (
        sa.select(version)
        .join(row, row.version_id == version.id)
        .where(row.job_id == job.id)
        .order_by(row.place)
    )
    return list(session.scalars(query.execution_options(populate_existing=True)))


def jobs_of(chosen: sa.Select[str]) -> sa.Select[str]:
    """Select the ids of jobs that have one of these versions among several teachers."""
    row = tables.JobTeacherRow
    return sa.select(row.job_id).where(row.version_id.in_(chosen))


def jobs_of_version(version_id: str) -> sa.Select[str]:
    """Select the ids of jobs that have this version among several teachers."""
    row = tables.JobTeacherRow
    return sa.select(row.job_id).where(row.version_id == version_id)

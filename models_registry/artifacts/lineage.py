"""Lineage: what a version was made from, and what was made from it. Only jobs write it."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.artifacts import job_teachers
from models_registry.persistence import paging, tables

MAX_DATASETS = 100


@dataclass(frozen=True)
class Origins:
    """The direct inputs of a version; all None for one that was uploaded."""

    job: tables.JobRow | None
    teacher: tables.ModelVersionRow | None
    """None of a job with several."""
    initial: tables.ModelVersionRow | None
    dataset: tables.DatasetVersionRow | None
    teachers: tuple[tables.ModelVersionRow, ...] = ()
    """All of them, one or several."""


def backward(session: Session, version: tables.ModelVersionRow) -> Origins:
    """Return what a version was made from; deleted inputs are shown as well."""
    job = session.get(tables.JobRow, version.job_id) if version.job_id else None
    if job is None:
        return Origins(None, None, None, None)
    return Origins(
        job=job,
        teacher=_model(session, job.teacher_version_id),
        initial=_model(session, job.initial_version_id),
        dataset=(
            session.get(tables.DatasetVersionRow, job.dataset_version_id)
            if job.dataset_version_id
            else None
        ),
        teachers=tuple(job_teachers.of_job(session, job)),
    )


def forward(
    session: Session, version: tables.ModelVersionRow, *, wanted: paging.PageRequest
) -> paging.Page[tables.ModelVersionRow]:
    """Return a page of the versions that were made directly from this one, newest first."""
    row, job = tables.ModelVersionRow, tables.JobRow
    statement = (
        sa.select(row)
        .join(job, row.job_id == job.id)
        .where(
            row.project_id == version.project_id,
            row.deleted_at.is_(None),
            sa.or_(
                job.teacher_version_id == version.id,
                job.initial_version_id == version.id,
                job.id.in_(job_teachers.jobs_of_version(version.id)),
            ),
        )
    )
    return paging.take(session, statement, by=(row.created_at, row.id), wanted=wanted)


def synthetic_datasets(
    session: Session, version: tables.ModelVersionRow
) -> Sequence[tables.DatasetVersionRow]:
    """Return the newest data sets of synthetic images that were made with this version.

    It was teacher, initial weights or student of the job that made them.
    """
    row, job = tables.DatasetVersionRow, tables.JobRow
    used_version = sa.or_(
        job.teacher_version_id == version.id,
        job.initial_version_id == version.id,
        job.student_version_id == version.id,
        job.id.in_(job_teachers.jobs_of_version(version.id)),
    )
    query = (
        sa.select(row)
        .join(job, row.job_id == job.id)
        .where(row.project_id == version.project_id, used_version)
        .order_by(row.created_at.desc(), row.id.desc())
    )
    return session.scalars(query.limit(MAX_DATASETS)).all()


def _model(session: Session, version_id: str | None) -> tables.ModelVersionRow | None:
    return session.get(tables.ModelVersionRow, version_id) if version_id else None

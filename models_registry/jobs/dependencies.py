"""Jobs that wait for the student of another job: `teacher: {"job": "job_..."}`.

A job can depend on jobs that were there before it only, and its spec never changes, so there are no
cycles. What the other job will deliver is known before it has: its student's network, for the
classes and images that it is trained on.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import job_teachers
from models_registry.jobs import lifecycle, validation
from models_registry.jobs.lifecycle import State
from models_registry.persistence import tables
from workers.distill.config.descriptions import WITHOUT_CLASSES

LONGEST_CHAIN = 20
"""The most jobs of which each waits for the next; ending the first ends all of them at once."""

ROLES = {"/teacher": "the teacher", "/student/initial": "the start model"}
"""What a job can wait for, by the field of its spec."""


def find(session: Session, *, project_id: str, job_id: str, pointer: str) -> tables.ModelVersionRow:
    """Return the model that a job has made, or a description of the one that it is to make.

    The description is no stored row; `is_awaited` tells. The job is held, so that it either ends
    before this look, or finds who waits for it. Raises: errors.Refused with the fault.
    """
    job = session.get(tables.JobRow, job_id, populate_existing=True, with_for_update={"read": True})
    # The student of a job that succeeded stays where the job is deleted: searches go on with it.
    is_gone = job is not None and job.deleted_at is not None and job.state != State.SUCCEEDED
    if job is None or job.project_id != project_id or is_gone:
        raise _refused(pointer, "not_found", f"there is no job {job_id!r} in this project")
    if job.state == State.SUCCEEDED:
        version = session.get(tables.ModelVersionRow, job.student_version_id or "")
        if version is None or version.deleted_at is not None:
            raise _refused(
                pointer, "gone", f"the student of {job_id} was deleted: choose another model"
            )
        return version
    if lifecycle.is_final(State(job.state)):
        raise _refused(
            pointer,
            "dependency_failed",
            f"{job_id} has {job.state}, and makes no student: retry it, and name the new job",
        )
    if depth(session, job_id) >= LONGEST_CHAIN:
        raise _refused(
            pointer,
            "too_many_waiting",
            f"{job_id} waits for a chain of {LONGEST_CHAIN} jobs already, which is the most: "
            "submit this job once some of them have ended",
        )
    return described(session, job)


def described(session: Session, job: tables.JobRow) -> tables.ModelVersionRow:
    """Return what is known of the student that a job will make, as a row that is not stored."""
    spec = job.spec
    classes, images = _seen(session, job)
    return tables.ModelVersionRow(
        project_id=job.project_id,
        network=spec["student"]["network"],
        arguments=spec["student"]["arguments"],
        task=spec["task"],
        classes=[] if spec["task"] in WITHOUT_CLASSES else classes,
        input=images,
        state="pending",
        job_id=job.id,
    )


def is_awaited(row: tables.ModelVersionRow | tables.DatasetVersionRow) -> bool:
    """Return whether a row only describes what a job will make."""
    return row.id is None and row.job_id is not None


def _seen(session: Session, job: tables.JobRow) -> tuple[list[str], dict[str, Any] | None]:
    """Return the classes and the images of a job's student; none while nothing says which."""
    teacher = next(iter(job_teachers.of_job(session, job)), None)
    if teacher is None and "teacher" in (waiting := of(session, job.id)):
        teacher = described(session, waiting["teacher"])
    dataset = session.get(tables.DatasetVersionRow, job.dataset_version_id or "")
    source = teacher if validation.is_data_free(job.spec["method"]) else dataset or teacher
    if source is None or (source is dataset and source.state != "ready"):
        return [], None  # its inspection may find other classes and sizes than were announced
    return validation.classes_of(source, teacher), source.input


def of(session: Session, job_id: str) -> Mapping[str, tables.JobRow]:
    """Return the jobs that a job was submitted to wait for, by field."""
    row = tables.JobDependencyRow
    found = sa.select(row.field, tables.JobRow).join(
        tables.JobRow, tables.JobRow.id == row.depends_on_id
    )
    rows = session.execute(found.where(row.job_id == job_id).order_by(row.field))
    return {field: job for field, job in rows}  # noqa: C416  # `dict` takes no typed rows


def depth(session: Session, job_id: str) -> int:
    """Return how long the longest chain of jobs that a job waits for is."""
    row = tables.JobDependencyRow
    return session.scalars(sa.select(sa.func.max(row.depth)).where(row.job_id == job_id)).one() or 0


def add(session: Session, job: tables.JobRow, awaited: Mapping[str, str]) -> None:
    """Record which jobs a new job waits for, by field."""
    session.add_all(
        tables.JobDependencyRow(
            job_id=job.id,
            field=field,
            depends_on_id=other_id,
            depth=depth(session, other_id) + 1,
        )
        for field, other_id in awaited.items()
    )


def waiting_for(job_id: str) -> sa.Select[tables.JobRow]:
    """Return the query of the jobs that wait for this one, oldest first."""
    row = tables.JobDependencyRow
    ids = sa.select(row.job_id).where(row.depends_on_id == job_id)
    return _waiting().where(tables.JobRow.id.in_(ids))


def left_waiting() -> sa.Select[tables.JobRow]:
    """Return the query of the jobs that wait for one that has ended, oldest first."""
    row, other = tables.JobDependencyRow, tables.JobRow.__table__.alias("other")
    ended = (
        sa.select(row.job_id)
        .join(other, other.c.id == row.depends_on_id)
        .where(other.c.state.in_(lifecycle.FINAL))
    )
    return _waiting().where(tables.JobRow.id.in_(ended))


def _waiting() -> sa.Select[tables.JobRow]:
    row = tables.JobRow
    return sa.select(row).where(row.state == State.VALIDATING).order_by(row.id)


def _refused(pointer: str, code: str, detail: str) -> errors.Refused:
    return errors.Refused(detail, code=code, faults=[errors.Fault(pointer, code, detail)])

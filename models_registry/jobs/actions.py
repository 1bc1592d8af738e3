"""What a user does with a job: get, cancel, pause, resume, retry, delete."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.access.quotas import UNLIMITED, QuotaLimits
from models_registry.jobs import lifecycle, submission, transitions
from models_registry.jobs.lifecycle import Event, Reason, State
from models_registry.persistence import database, tables, tombstones

CANCELLED = "Somebody with a key of the project has cancelled the job."


def get(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Return a job of the project.

    Raises: errors.NotFound, also for another project's job; errors.Gone for a deleted one.
    """
    job = session.get(tables.JobRow, job_id)
    is_forgotten = job is not None and tombstones.is_forgotten(session, job.deleted_at)
    if job is None or job.project_id != project_id or is_forgotten:
        raise errors.NotFound(f"There is no job {job_id!r}.")
    if job.deleted_at is not None:
        raise errors.Gone(f"Job {job_id!r} was deleted.")
    return job


def cancel(
    session: Session, *, project_id: str, job_id: str, message: str = CANCELLED
) -> tables.JobRow:
    """Ask for the job's end, which `message` gives the reason of; a final job stays as it is."""
    job = get(session, project_id=project_id, job_id=job_id)
    return transitions.move(
        session,
        job,
        Event.CANCEL,
        because=Reason.CANCELLED_BY_CALLER,
        message=message,
        values={"cancel_target": State.CANCELLED},
    ).job


def pause(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Ask for a checkpoint and a rest.

    Raises: errors.IllegalMove where the state does not allow it.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    return transitions.move(session, job, Event.PAUSE, because=Reason.PAUSED_BY_CALLER).job


def resume(session: Session, *, project_id: str, job_id: str) -> tables.JobRow:
    """Queue a paused job again; it goes on from its newest checkpoint.

    Raises: errors.IllegalMove where the state does not allow it.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    return transitions.move(session, job, Event.RESUME, because=Reason.RESUMED_BY_CALLER).job


def retry(
    session: Session, *, project_id: str, job_id: str, limits: QuotaLimits = UNLIMITED
) -> tables.JobRow:
    """Submit the spec of a failed or cancelled job again, as a new job.

    In a study, the new job takes the old one's place; not that of a trial that was pruned, which
    its search has compared already. `limits` are those of the service.

    Raises: errors.IllegalMove for any other state; errors.QuotaExceeded.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    if job.state not in (State.FAILED, State.CANCELLED):
        raise errors.IllegalMove(
            f"Only failed or cancelled jobs can be retried; this one is {job.state}.",
            state=job.state,
            allowed=lifecycle.allowed(State(job.state)),
        )
    place = _free_place(session, job)
    return submission.submit(
        session,
        project_id=project_id,
        spec=submission.spec_of(job),
        retry_of=job.id,
        place=place,
        limits=limits,
    )


def _free_place(session: Session, job: tables.JobRow) -> submission.StudyPlace | None:
    if job.study_id is None or job.study_variant is None or job.study_seed is None:
        return None
    if job.state_reason == Reason.PRUNED:
        return None
    place = submission.StudyPlace(job.study_id, job.study_variant, job.study_seed)
    row, study = tables.JobRow, tables.StudyRow
    # Held, so that the study is not deleted before its new job is there.
    session.scalars(
        sa.select(study.id).where(study.id == place.study_id).with_for_update(read=True)
    ).one()
    left = session.scalars(
        # Of two retries at the same time, one finds the place empty.
        sa.update(row)
        .where(row.id == job.id, row.study_id.is_not(None), row.deleted_at.is_(None))
        .values(study_id=None, study_variant=None, study_seed=None)
        .returning(row.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    session.refresh(job)
    return place if left is not None else None


def delete(session: Session, *, project_id: str, job_id: str) -> None:
    """Hide a final job for good; the students it made stay.

    Raises: errors.InUse for a job of a study, which would lose a result; errors.IllegalMove while
    the job is not final.
    """
    job = get(session, project_id=project_id, job_id=job_id)
    if job.study_id is not None:
        raise errors.InUse(
            f"Job {job_id!r} belongs to study {job.study_id!r}: delete the study, and its jobs go "
            "with it.",
            uses=[errors.Uses("study", 1, (job.study_id,))],
        )
    if not lifecycle.is_final(State(job.state)):
        raise transitions.illegal(job, "be deleted")
    hide(session, job)


def hide(session: Session, job: tables.JobRow) -> None:
    """Hide a job that has ended, without its log and what could resume it."""
    job.deleted_at = database.now(session)
    for row in (tables.CheckpointRow, tables.LogSliceRow):
        session.execute(sa.delete(row).where(row.job_id == job.id))
    session.flush()

"""Which queued job is next: shares between projects first, then priority and age in a project.

Between projects: whoever holds the fewest workers for its weight; among equals, whoever was served
least for its weight (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996, with a claim as
the unit of work). A project that was idle has saved nothing up: it begins where the others are.

In a project: the job with the earliest `claim_order_at`, which is the time of its submission, made
earlier by `AGING` for each level of its priority. So a priority is worth a fixed time of waiting,
and no stream of urgent jobs keeps a patient one waiting for longer than that.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import database, tables

PASSING = timedelta(minutes=10)
"""How long after its place in the order a job can be passed by jobs that need fewer devices."""
AGING = timedelta(minutes=30)
"""How much longer a job must have waited to go before one whose priority is higher by 1."""


def claim_order_at(submitted_at: datetime, *, priority: int) -> datetime:
    """Return a job's place in its project's order, which never changes."""
    return submitted_at - priority * AGING


def next_job(
    session: Session,
    *,
    queues: Collection[str],
    devices: int = 1,
    running_limit: int | None = None,
    skipped: Collection[str] = (),
) -> str | None:
    """Return the id of the job that a worker of these queues should claim now, or None.

    One query, in which each project costs two look-ups in an index. `running_limit` is the
    service's limit on a project's jobs that run; `skipped` are jobs that this worker cannot take,
    and so are those that need more `devices`.
    """
    job, project = tables.JobRow, tables.ProjectRow
    first = (
        sa.select(job.id)
        .where(
            job.project_id == project.id,
            job.state == State.QUEUED,
            job.not_before <= database.now(session),
            job.queue.in_(queues),
            job.devices <= devices,
            *([job.id.not_in(skipped)] if skipped else []),
        )
        .order_by(job.claim_order_at, job.id)
        .limit(1)
        .correlate(project)
        .scalar_subquery()
    )
    served_last = sa.select(sa.func.max(project.share_position)).scalar_subquery()
    turn = project.share_position + 1 / project.share_weight
    candidate = sa.select(
        project.id.label("project_id"),
        first.label("job_id"),
        _held(project).label("held"),
        project.share_weight.label("weight"),
        project.share_position.label("position"),
        project.limit_jobs_running.label("own_limit"),
        # Not before the one that was served last: idleness saves nothing up.
        sa.case((turn > served_last, turn), else_=served_last).label("turn"),
    ).subquery()
    has_room = sa.or_(candidate.c.own_limit.is_(None), candidate.c.held < candidate.c.own_limit)
    query = sa.select(candidate.c.job_id).where(candidate.c.job_id.is_not(None), has_room)
    if running_limit is not None:
        query = query.where(candidate.c.held < running_limit)
    order = (
        candidate.c.held / candidate.c.weight,
        candidate.c.turn,
        candidate.c.position,
        candidate.c.project_id,
    )
    return session.scalars(query.order_by(*order).limit(1)).one_or_none()


def can_be_passed(job: tables.JobRow, now: datetime) -> bool:
    """Return whether jobs that need fewer devices may go before a job whose turn it is.

    So devices are not idle while it waits for enough of them, and it does not wait for ever.
    """
    return now < end_of_passing(job)


def end_of_passing(job: tables.JobRow) -> datetime:
    """Return until when jobs that need fewer devices may go before a job."""
    return job.claim_order_at + PASSING


def take_turn(session: Session, *, project_id: str, running_limit: int | None) -> bool:
    """Count a claim for its project, or return False where it already runs as many as it may.

    Its row is held until the transaction ends: of two claims of one project at the same time, the
    second counts the first.
    """
    project = tables.ProjectRow
    served_last = sa.select(sa.func.max(project.share_position)).scalar_subquery()
    turn = project.share_position + 1 / project.share_weight
    own_limit = session.scalars(
        sa.update(project)
        .where(project.id == project_id)
        .values(share_position=sa.case((turn > served_last, turn), else_=served_last))
        .returning(project.limit_jobs_running)
        .execution_options(synchronize_session=False)
    ).one()
    limit = _smaller(own_limit, running_limit)
    if limit is None or count_held(session, project_id=project_id) < limit:
        return True
    back = project.share_position - 1 / project.share_weight
    session.execute(
        sa.update(project)
        .where(project.id == project_id)
        .values(share_position=back)
        .execution_options(synchronize_session=False)
    )
    return False


def running_limit_of(project: tables.ProjectRow, service_limit: int | None) -> int | None:
    """Return how many jobs of a project may run: the smaller of its own limit and the service's."""
    return _smaller(project.limit_jobs_running, service_limit)


def count_held(session: Session, *, project_id: str) -> int:
    """Return how many jobs of a project workers hold now."""
    job = tables.JobRow
    held = sa.select(sa.func.count()).where(
        job.project_id == project_id, job.state.in_(lifecycle.HELD)
    )
    return session.scalars(held).one()


def first_behind_limit(session: Session, *, project_id: str) -> tables.JobRow | None:
    """Return the first job of a project that was told to wait until another one has ended."""
    job = tables.JobRow
    waiting = sa.select(job).where(
        job.project_id == project_id,
        job.state == State.QUEUED,
        job.state_reason == Reason.RUNNING_QUOTA,
    )
    return session.scalars(waiting.order_by(job.claim_order_at, job.id).limit(1)).one_or_none()


def _held(project: type[tables.ProjectRow]) -> sa.ScalarSelect[int]:
    job = tables.JobRow
    return (
        sa.select(sa.func.count())
        .where(job.project_id == project.id, job.state.in_(lifecycle.HELD))
        .correlate(project)
        .scalar_subquery()
    )


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((limit for limit in (first, second) if limit is not None), default=None)

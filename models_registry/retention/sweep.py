"""Mark what is due, and delete what has been marked for longer than the grace.

Each transaction is small: one job and kind, and a few thousand entries. Before entries are deleted
it is asked again whether they are due, with the job's row locked: a policy may have changed since,
or a study have got another job. What is not due any more loses its mark.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from models_registry.access import audit
from models_registry.jobs import lifecycle
from models_registry.persistence import database, tables
from models_registry.persistence.task_leases import TaskLease
from models_registry.retention import policies
from models_registry.retention.kinds import CHECKPOINTS, KINDS, RetentionKind
from models_registry.retention.policies import RetentionPolicy

log = structlog.get_logger()

BATCH = 100
ENTRIES = 5_000  # of one transaction
PROJECTS = 500


@dataclass(frozen=True)
class KindSummary:
    """How much of one kind could be deleted, and how much of it the next sweep deletes."""

    kind: str
    jobs: int
    entries: int
    size_bytes: int
    ready_jobs: int = 0
    ready_entries: int = 0
    ready_bytes: int = 0


@dataclass
class Swept:
    """What a sweep has deleted of one kind."""

    jobs: int = 0
    entries: int = 0
    size_bytes: int = 0

    def add(self, entries: int, size_bytes: int) -> None:
        """Count entries that were deleted."""
        self.entries += entries
        self.size_bytes += size_bytes


# -- dry run ---------------------------------------------------------------------------------


def preview(
    session: Session, *, project_id: str, grace: timedelta, policy: RetentionPolicy | None = None
) -> list[KindSummary]:
    """Return what could be deleted of a project, by kind; nothing changes.

    With `policy`, as if it were the project's.
    """
    policy = policy or policies.of(session, project_id=project_id)
    now = database.now(session)
    return [
        _preview_checkpoints(session, project_id, policy),
        *(_preview(session, kind, project_id, policy, now, grace) for kind in KINDS),
    ]


def _preview(
    session: Session,
    kind: RetentionKind,
    project_id: str,
    policy: RetentionPolicy,
    now: datetime,
    grace: timedelta,
) -> KindSummary:
    job, mark = tables.JobRow, tables.RetentionMarkRow
    is_ready = sa.exists().where(
        mark.kind == kind.name,
        mark.job_id == job.id,
        mark.swept_at.is_(None),
        mark.marked_at <= now - grace,
    )
    due = kind.due(project_id=project_id, policy=policy, now=now)
    counts = []
    for conditions in ((due,), (due, is_ready)):
        counted = (
            sa.select(sa.func.count(sa.distinct(job.id)), sa.func.count(), sa.func.sum(kind.size()))
            .select_from(kind.row)
            .join(job, job.id == kind.row.job_id)
            .where(*conditions)
        )
        jobs, entries, size_bytes = session.execute(counted).one()
        counts += [jobs, entries, int(size_bytes or 0)]
    return KindSummary(kind.name, *counts)


def _excess(project_id: str, policy: RetentionPolicy) -> sa.Subquery:
    """Return the checkpoints of jobs that go on beyond the newest few."""
    row, job = tables.CheckpointRow, tables.JobRow
    place = sa.func.row_number().over(
        partition_by=row.job_id, order_by=(row.created_at.desc(), row.id.desc())
    )
    kept = sa.func.coalesce(job.checkpoints_last, policy.checkpoints_last).label("kept")
    ranked = (
        sa.select(row.id, row.job_id, row.size_bytes, place.label("place"), kept)
        .join(job, job.id == row.job_id)
        .where(job.project_id == project_id, job.state.not_in(lifecycle.FINAL))
        .subquery()
    )
    return sa.select(ranked).where(ranked.c.place > ranked.c.kept).subquery()


def _preview_checkpoints(session: Session, project_id: str, policy: RetentionPolicy) -> KindSummary:
    excess = _excess(project_id, policy)
    counted = sa.select(
        sa.func.count(sa.distinct(excess.c.job_id)),
        sa.func.count(),
        sa.func.sum(excess.c.size_bytes),
    ).select_from(excess)
    jobs, entries, total = session.execute(counted).one()
    size_bytes = int(total or 0)
    return KindSummary(CHECKPOINTS, jobs, entries, size_bytes, jobs, entries, size_bytes)


# -- the sweep -------------------------------------------------------------------------------


def sweep(lease: TaskLease, *, grace: timedelta) -> dict[str, Swept]:
    """Mark and sweep all projects; return what was deleted, by kind.

    Raises: errors.StaleFence when another process has taken over the lease.
    """
    total = {name: Swept() for name in (CHECKPOINTS, *(kind.name for kind in KINDS))}
    for project_id in _project_ids(lease.sessions):
        done = sweep_project(lease, project_id=project_id, grace=grace)
        for name, swept in done.items():
            total[name].jobs += swept.jobs
            total[name].add(swept.entries, swept.size_bytes)
    return total


def sweep_project(lease: TaskLease, *, project_id: str, grace: timedelta) -> dict[str, Swept]:
    """Mark and sweep one project; return what was deleted, by kind."""
    done = {CHECKPOINTS: _sweep_checkpoints(lease, project_id)}
    for kind in KINDS:
        _mark(lease, kind, project_id)
        done[kind.name] = _sweep_marked(lease, kind, project_id, grace)
    deleted = {name: swept for name, swept in done.items() if swept.entries}
    if deleted:
        with lease.sessions.begin() as session:
            lease.prove(session)
            for name, swept in deleted.items():
                audit.record_own(
                    session,
                    project_id=project_id,
                    actor=audit.MAINTENANCE,
                    action="retention.swept",
                    subject=name,
                    jobs=swept.jobs,
                    entries=swept.entries,
                    size_bytes=swept.size_bytes,
                )
    return done


def _project_ids(sessions: database.Sessions) -> Iterator[str]:
    row, after = tables.ProjectRow, ""
    while True:
        with sessions.begin() as session:
            query = sa.select(row.id).where(row.id > after).order_by(row.id).limit(PROJECTS)
            found = session.scalars(query).all()
        yield from found
        if len(found) < PROJECTS:
            return
        after = found[-1]


def _mark(lease: TaskLease, kind: RetentionKind, project_id: str) -> None:
    job, mark = tables.JobRow, tables.RetentionMarkRow
    is_marked = sa.exists().where(mark.kind == kind.name, mark.job_id == job.id)
    while True:
        with lease.sessions.begin() as session:
            lease.prove(session)
            now = database.now(session)
            policy = policies.of(session, project_id=project_id)
            due = kind.due(project_id=project_id, policy=policy, now=now)
            found = session.scalars(
                sa.select(job.id).where(due, kind.has_entries(), ~is_marked).limit(BATCH)
            ).all()
            if not found:
                return
            values = [
                {
                    "kind": kind.name,
                    "job_id": job_id,
                    "project_id": project_id,
                    "marked_at": now,
                    "entries": 0,
                    "size_bytes": 0,
                }
                for job_id in found
            ]
            session.execute(database.insert(session, mark).on_conflict_do_nothing(), values)


def _sweep_marked(
    lease: TaskLease, kind: RetentionKind, project_id: str, grace: timedelta
) -> Swept:
    mark, swept, after = tables.RetentionMarkRow, Swept(), ""
    while True:
        with lease.sessions.begin() as session:
            lease.prove(session)
            ready = session.scalars(
                sa.select(mark.job_id)
                .where(
                    mark.kind == kind.name,
                    mark.project_id == project_id,
                    mark.swept_at.is_(None),
                    mark.marked_at <= database.now(session) - grace,
                    mark.job_id > after,
                )
                .order_by(mark.job_id)
                .limit(BATCH)
            ).all()
        if not ready:
            return swept
        for job_id in ready:
            _sweep_job(lease, kind, job_id, swept)
        after = ready[-1]


def _sweep_job(lease: TaskLease, kind: RetentionKind, job_id: str, swept: Swept) -> None:
    """Delete what one job has left of a kind, some of it in each transaction."""
    while True:
        with lease.sessions.begin() as session:
            lease.prove(session)
            is_over = _sweep_some(session, kind, job_id, swept)
        if is_over:
            return


def _sweep_some(session: Session, kind: RetentionKind, job_id: str, swept: Swept) -> bool:
    """Delete some entries of a job if they are still due; return whether nothing is left to do."""
    job_row, mark_row = tables.JobRow, tables.RetentionMarkRow
    locked = sa.select(job_row).where(job_row.id == job_id)
    job = session.scalars(
        locked.with_for_update(skip_locked=True, key_share=True).execution_options(
            populate_existing=True
        )
    ).one_or_none()
    mark = session.get(mark_row, (kind.name, job_id), populate_existing=True)
    if job is None or mark is None:
        return True  # in use, or no longer marked: the next sweep looks again
    # After the lock, in a statement of its own: it sees what others have committed meanwhile.
    now = database.now(session)
    policy = policies.of(session, project_id=job.project_id)
    due = kind.due(project_id=job.project_id, policy=policy, now=now)
    if session.scalars(sa.select(job_row.id).where(job_row.id == job_id, due)).first() is None:
        session.delete(mark)
        return True
    entries, size_bytes = _delete_some(session, kind, job_id)
    swept.add(entries, size_bytes)
    mark.entries += entries
    mark.size_bytes += size_bytes
    if entries == ENTRIES:
        return False
    swept.jobs += 1
    mark.swept_at = now
    told = {
        "code": f"{kind.name}_deleted",
        "message": f"What the project's retention does not keep was deleted on {now:%Y-%m-%d}: "
        f"{kind.about} ({mark.entries}). Its {kind.field} was {kind.days(policy)}.",
    }
    job.warnings = [*(job.warnings or []), told]
    return True


def _delete_some(session: Session, kind: RetentionKind, job_id: str) -> tuple[int, int]:
    """Delete at most `ENTRIES` entries of a job; return how many, and their bytes."""
    keys = sa.inspect(kind.row).primary_key
    # In their order: the last event of a job, by which its streams end, goes last.
    some = sa.select(*keys).where(kind.row.job_id == job_id).order_by(*keys).limit(ENTRIES)
    deleted = session.execute(
        sa.delete(kind.row)
        .where(sa.tuple_(*keys).in_(some))
        .returning(kind.size())
        .execution_options(synchronize_session=False)
    ).scalars()
    sizes = [int(size or 0) for size in deleted]
    return len(sizes), sum(sizes)


def _sweep_checkpoints(lease: TaskLease, project_id: str) -> Swept:
    """Delete checkpoints beyond the newest few of jobs that go on, job by job."""
    swept, after = Swept(), ""
    job, row = tables.JobRow, tables.CheckpointRow
    while True:
        with lease.sessions.begin() as session:
            lease.prove(session)
            policy = policies.of(session, project_id=project_id)
            excess = _excess(project_id, policy)
            found = session.scalars(
                sa.select(excess.c.job_id)
                .where(excess.c.job_id > after)
                .order_by(excess.c.job_id)
                .limit(1)
            ).first()
            if found is None:
                return swept
            after = found
            held = sa.select(job.id).where(job.id == found)
            held = held.with_for_update(skip_locked=True, key_share=True)
            if session.scalars(held).first() is None:
                continue  # it is just writing one, and prunes by itself
            old = sa.select(excess.c.id).where(excess.c.job_id == found)
            sizes = session.scalars(
                sa.delete(row)
                .where(row.id.in_(old))
                .returning(row.size_bytes)
                .execution_options(synchronize_session=False)
            ).all()
            swept.jobs += 1
            swept.add(len(sizes), sum(sizes))

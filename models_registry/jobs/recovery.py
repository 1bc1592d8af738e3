"""What becomes of jobs and inspections that were under way when a backup was made."""

from typing import Any  # Any: two tables with the same columns

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.jobs import lifecycle, transitions
from models_registry.jobs.lifecycle import Event, Reason
from models_registry.persistence import database, tables

# Workers of the service that was lost may have claimed a job many times since; none of their
# fences may ever be given out again.
FENCE_LEAP = 1_000_000
_MESSAGE = (
    "The service was restored from a backup while this job ran; the attempt is not counted, and "
    "the job goes on from its newest checkpoint of that time."
)


def settle(session: Session) -> int:
    """Make a restored database ready for new workers; return how many jobs were handed back.

    Jobs that were held are queued again, uncounted; those that were being paused or cancelled are
    paused or cancelled. All that waits is announced anew, since the broker knows nothing of it.
    Open uploads lose their parts, which no backup has: their senders send them again.
    """
    job = tables.JobRow
    open_jobs = job.state.not_in(lifecycle.FINAL)
    leap = sa.update(job).where(open_jobs).values(fence=job.fence + FENCE_LEAP, announced_at=None)
    session.execute(leap.execution_options(synchronize_session=False))
    held = session.scalars(sa.select(job).where(job.state.in_(lifecycle.HELD)).order_by(job.id))
    handed_back = 0
    for row in held.all():
        because = Reason.RESTORED
        transitions.move(session, row, Event.RELEASED, because=because, message=_MESSAGE)
        handed_back += 1
    inspected: tuple[Any, ...] = (tables.ModelVersionRow, tables.DatasetVersionRow)
    for kind in inspected:
        pending = sa.update(kind).where(kind.state == "pending")
        session.execute(
            pending.values(
                inspection_fence=kind.inspection_fence + FENCE_LEAP,
                inspection_expires_at=None,
                announced_at=None,
            ).execution_options(synchronize_session=False)
        )
    session.execute(sa.delete(tables.UploadPartRow))
    stopped = sa.update(tables.WorkerRow).where(tables.WorkerRow.stopped_at.is_(None))
    session.execute(stopped.values(stopped_at=database.now(session)))
    session.flush()
    return handed_back

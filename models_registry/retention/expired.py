"""The answer to requests for what retention has deleted: gone at first, later unknown."""

from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.jobs import lifecycle
from models_registry.jobs.lifecycle import State
from models_registry.persistence import tables, tombstones
from models_registry.retention.kinds import BY_NAME


def refuse(session: Session, job: tables.JobRow, *kinds: str) -> None:
    """Raise if retention has deleted what a job had of one of these kinds.

    Jobs that go on lose nothing, and are not looked up.

    Raises: errors.Gone; errors.NotFound when that was long ago.
    """
    if not lifecycle.is_final(State(job.state)):
        return
    for kind in kinds:
        mark = session.get(tables.RetentionMarkRow, (kind, job.id))
        if mark is None or mark.swept_at is None:
            continue
        about = BY_NAME[kind].about
        if tombstones.is_forgotten(session, mark.swept_at):
            raise errors.NotFound(
                f"job {job.id} has none any more: {about}", code=f"{kind}_not_kept"
            )
        raise errors.Gone(
            f"the project's retention has deleted these of job {job.id} on "
            f"{mark.swept_at:%Y-%m-%d}: {about}; the job and its result stay",
            code=f"{kind}_deleted",
        )

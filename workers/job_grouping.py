"""Which jobs of a study are trained beside the one that this worker has just claimed.

The engine's own rule (`workers.distill.config.grouping`, which reads plain dictionaries and loads
nothing) decides which configs fit together. What the database adds stands in
`leases.find_groupable`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from models_registry.jobs import leases, workers
from models_registry.persistence import tables
from workers import inputs
from workers.distill.config import grouping


def find(session: Session, lease: leases.Lease, *, limit: int) -> list[str]:
    """Return the ids of up to `limit` - 1 queued jobs, in the order in which they were queued.

    No slot takes more than its share: six jobs and three idle machines make three pairs, and so
    do six jobs and one worker with three slots.
    """
    leader = session.get_one(tables.JobRow, lease.job_id)
    candidates = leases.find_groupable(session, lease)
    if not candidates:
        return []
    recipe = inputs.recipe_of(session, leader)
    takers = max(1, workers.count_slots(session, queue=leader.queue))
    fitting = [leader.id]
    for job in candidates:
        if len(fitting) == limit * takers:
            break
        members = {leader.id: recipe, job.id: inputs.recipe_of(session, job)}
        if grouping.refusal(members) is None:
            fitting.append(job.id)
    share = -(-len(fitting) // takers)
    return fitting[1:share]


# Any: recipes are JSON.
def group_of(recipes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what tells an engine to carry out recipes side by side, by job."""
    members = [{"key": job_id, "recipe": recipe} for job_id, recipe in recipes.items()]
    return {"version": grouping.VERSION, "members": members}


def folder(workdir: Path, job_id: str) -> Path:
    """Return where the engine looks for a member's own files, and leaves its outputs."""
    return workdir / "members" / job_id

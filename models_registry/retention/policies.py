"""For how long a project keeps what jobs leave behind: its policy, or the defaults.

Students, teachers and data sets are no part of it: they are kept until somebody deletes them.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from models_registry.persistence import database, tables


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Days count from the end of a job; None keeps for good."""

    checkpoints_last: int = 2
    """How many checkpoints a job that goes on keeps, the newest."""
    failed_attempts_days: int | None = 1
    """Checkpoints of jobs that failed or were cancelled, which nothing resumes."""
    logs_days: int | None = 30
    metrics_days: int | None = 180
    events_days: int | None = 365


def of(session: Session, *, project_id: str) -> RetentionPolicy:
    """Return the policy of a project."""
    row = session.get(tables.RetentionPolicyRow, project_id)
    if row is None:
        return RetentionPolicy()
    return RetentionPolicy(
        **{field.name: getattr(row, field.name) for field in fields(RetentionPolicy)}
    )


# Any: values of the policy's fields.
def change(
    session: Session, *, project_id: str, changes: dict[str, Any]
) -> tuple[RetentionPolicy, RetentionPolicy]:
    """Change some fields of a project's policy; return it as it was and as it is."""
    # Two changes at the same time would each bring back what the other has changed.
    session.scalars(
        sa.select(tables.ProjectRow.id)
        .where(tables.ProjectRow.id == project_id)
        .with_for_update(key_share=True)
    ).one()
    former = of(session, project_id=project_id)
    policy = RetentionPolicy(**{**asdict(former), **changes})
    row = tables.RetentionPolicyRow
    values = {**asdict(policy), "updated_at": database.now(session)}
    session.execute(
        database.insert(session, row)
        .values(project_id=project_id, **values)
        .on_conflict_do_update(index_elements=[row.project_id], set_=values)
    )
    session.expire_all()
    return former, policy

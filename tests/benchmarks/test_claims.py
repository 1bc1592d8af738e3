"""The benchmark of claims claims what it has filled in."""

import sqlalchemy as sa

from benchmarks import claims
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables


def test_claims_in_turn_and_counts_processor_time(sessions: database.Sessions) -> None:
    claims.fill(sessions, jobs=9, projects=3)
    found = claims.measure(sessions, claims=4)
    assert found["choice_and_claim"]["worker_ms"] > found["choice"]["worker_ms"] > 0
    with sessions() as session:
        is_postgresql = session.get_bind().dialect.name == "postgresql"
        row = tables.JobRow
        held = sa.select(row.project_id).where(row.state == State.STARTING)
        of_projects = session.scalars(held).all()
    assert (found["choice"]["database_ms"] is not None) == is_postgresql
    # One more than was counted; each project in turn.
    assert sorted(of_projects.count(one) for one in set(of_projects)) == [1, 2, 2]

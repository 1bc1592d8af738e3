"""The audit log is written with the work, and never changed."""

import pytest
import sqlalchemy as sa
import sqlalchemy.exc

from models_registry.access import audit, callers
from models_registry.persistence import database, tables


@pytest.fixture
def entry(sessions: database.Sessions, project: tables.ProjectRow) -> tables.AuditRow:
    """One entry of a caller with a key."""
    caller = callers.Caller(
        project.id, "key_1", callers.Role.ADMIN, name="laptop", request_id="req_1"
    )
    with sessions.begin() as session:
        audit.record(session, caller, "alias.moved", "m@best", version=2)
        return session.scalars(sa.select(tables.AuditRow)).one()


class TestRecord:
    def test_says_who_did_what_with_which_key(self, entry: tables.AuditRow) -> None:
        assert (entry.action, entry.subject, entry.facts) == (
            "alias.moved",
            "m@best",
            {"version": 2},
        )
        assert (entry.actor, entry.key_id, entry.request_id) == ("laptop", "key_1", "req_1")

    def test_of_work_that_fails_is_not_kept(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions() as session:
            audit.record_own(
                session, project_id=project.id, actor="nobody", action="x.y", subject="z"
            )
            session.rollback()
        with sessions() as session:
            assert session.scalars(sa.select(tables.AuditRow)).all() == []


class TestTable:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE audit_entries SET actor = 'me'",
            "DELETE FROM audit_entries",
            "TRUNCATE audit_entries",
        ],
    )
    def test_is_append_only(
        self, sessions: database.Sessions, entry: tables.AuditRow, statement: str
    ) -> None:
        with sessions() as session:
            dialect = session.get_bind().dialect.name
        if statement.startswith("TRUNCATE") and dialect == "sqlite":
            refusal = "syntax error"  # it knows no such statement
        else:
            refusal = "append-only"
        refused = pytest.raises(sqlalchemy.exc.DatabaseError, match=refusal)
        with refused, sessions.begin() as session:
            session.execute(sa.text(statement))
        with sessions() as session:
            kept = session.scalars(sa.select(tables.AuditRow)).one()
        assert (kept.id, kept.actor) == (entry.id, entry.actor)

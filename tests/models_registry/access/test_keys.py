"""API keys: who may do what, until when, and what is kept of the secret."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from models_registry import errors
from models_registry.access import keys
from models_registry.persistence import database, tables
from models_registry.settings import Settings
from tests.databases import SQLITE_ONLY


def make(
    sessions: database.Sessions, project: tables.ProjectRow, role: str = "editor"
) -> tuple[tables.ApiKeyRow, str]:
    """Make a key of the project."""
    with sessions.begin() as session:
        return keys.create_key(
            session, project_id=project.id, name="test", role=role, environment="test"
        )


def caller_of(sessions: database.Sessions, text: str) -> keys.Caller:
    """Return who presents a text."""
    with sessions() as session:
        return keys.authenticate(session, text=text).caller


class TestCreateKey:
    def test_shows_environment_and_id_in_the_text_and_stores_no_secret(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project)
        kind, environment, identity, secret = text.split("_")
        assert (kind, environment) == ("ak", "test")
        assert row.id == f"key_{identity}"
        assert len(bytes.fromhex(secret)) == 32
        with sessions() as session:
            stored = session.execute(sa.select(tables.ApiKeyRow.__table__)).all()
        assert secret not in str(stored)

    def test_refuses_an_unknown_role(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with pytest.raises(ValueError, match="emperor"):
            make(sessions, project, role="emperor")


class TestAuthenticate:
    def test_knows_the_project_and_the_role(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project, role="viewer")
        caller = caller_of(sessions, text)
        assert (caller.project_id, caller.key_id) == (project.id, row.id)
        assert (caller.role, caller.name, caller.scopes) == (keys.Role.VIEWER, "test", None)

    @SQLITE_ONLY
    def test_asks_the_database_once(
        self, engine: sa.Engine, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        _, text = make(sessions, project)
        asked: list[str] = []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            asked.append(statement)

        caller_of(sessions, text)
        selects = [statement for statement in asked if not statement.startswith("BEGIN")]
        assert len(selects) == 1, selects  # PostgreSQL is asked for the time as well

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"),
            lambda text: text[:12] + "z" * 4 + text[16:],
            lambda text: text.replace("ak_", "sk_"),
            lambda text: text.upper(),
            lambda text: text + "0",
            lambda text: text.rpartition("_")[0] + "_",
            lambda _: "",
        ],
    )
    def test_refuses_anything_else(
        self, sessions: database.Sessions, project: tables.ProjectRow, change: object
    ) -> None:
        _, text = make(sessions, project)
        assert callable(change)
        with pytest.raises(errors.Unauthenticated):
            caller_of(sessions, change(text))

    def test_refuses_a_revoked_key(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project)
        with sessions.begin() as session:
            keys.revoke(session, project_id=project.id, key_id=row.id)
        with pytest.raises(errors.Unauthenticated, match="revoked"):
            caller_of(sessions, text)

    def test_refuses_a_key_past_its_time(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            now = database.now(session)
            row, past = keys.create_key(
                session, project_id=project.id, name="past", role="admin", environment="test"
            )
            row.expires_at = now - timedelta(seconds=1)
            _, coming = keys.create_key(
                session,
                project_id=project.id,
                name="coming",
                role="admin",
                environment="test",
                expires_at=now + timedelta(minutes=5),
            )
        with pytest.raises(errors.Unauthenticated, match="expired"):
            caller_of(sessions, past)
        assert caller_of(sessions, coming).role is keys.Role.ADMIN

    @SQLITE_ONLY
    def test_is_not_made_with_a_time_that_has_passed(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session, pytest.raises(errors.Refused, match="expires_at is"):
            keys.create_key(
                session,
                project_id=project.id,
                name="late",
                role="admin",
                environment="test",
                expires_at=database.now(session),
            )


class TestRotate:
    def rotate(
        self, sessions: database.Sessions, row: tables.ApiKeyRow, hours: float
    ) -> tuple[tables.ApiKeyRow, str]:
        with sessions.begin() as session:
            return keys.rotate(
                session,
                project_id=row.project_id,
                key_id=row.id,
                environment="test",
                overlap=timedelta(hours=hours),
            )

    def test_lets_both_secrets_open_the_same_for_a_while(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, old = make(sessions, project, role="viewer")
        _, new = self.rotate(sessions, row, hours=1)
        old_caller, new_caller = caller_of(sessions, old), caller_of(sessions, new)
        assert old != new
        assert old_caller.key_id == new_caller.key_id == row.id
        assert old_caller.role is new_caller.role is keys.Role.VIEWER
        with sessions.begin() as session:
            session.get_one(tables.ApiKeyRow, row.id).former_expires_at = database.now(session)
        with pytest.raises(errors.Unauthenticated, match="was rotated"):
            caller_of(sessions, old)
        assert caller_of(sessions, new).key_id == row.id
        with sessions() as session:
            both = {old_caller.credential_id, new_caller.credential_id}
            assert keys.valid(session, credential_ids=both) == {new_caller.credential_id}

    def test_ends_the_old_secret_at_once_where_none_overlaps_and_the_one_before_always(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, first = make(sessions, project)
        _, second = self.rotate(sessions, row, hours=1)
        _, third = self.rotate(sessions, row, hours=0)
        for ended in (first, second):
            with pytest.raises(errors.Unauthenticated):
                caller_of(sessions, ended)
        assert caller_of(sessions, third).key_id == row.id

    def test_tells_whether_the_old_secret_is_still_used(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, old = make(sessions, project)
        self.rotate(sessions, row, hours=1)
        with sessions.begin() as session:
            keys.note_use(session, key_id=row.id)
            assert session.get_one(tables.ApiKeyRow, row.id).former_last_used_at is None
            known = keys.authenticate(session, text=old)
            assert (known.due, known.is_former) == (True, True)
            keys.note_use(session, key_id=row.id, is_former=True)
            assert not keys.authenticate(session, text=old).due

    def test_refuses_what_has_ended(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project)
        _, new = self.rotate(sessions, row, hours=1)
        with sessions.begin() as session:
            assert keys.revoke(session, project_id=project.id, key_id=row.id)
            assert not keys.revoke(session, project_id=project.id, key_id=row.id)
        for ended in (text, new):
            with pytest.raises(errors.Unauthenticated, match="revoked"):
                caller_of(sessions, ended)
        with pytest.raises(errors.Conflict, match="revoked and cannot be rotated"):
            self.rotate(sessions, row, hours=1)


class TestNoteUse:
    def test_is_due_once_a_minute(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project)
        dues = []
        for _ in range(2):
            with sessions.begin() as session:
                due = keys.authenticate(session, text=text).due
                dues.append(due)
                keys.note_use(session, key_id=row.id)
        assert dues == [True, False]

    def test_does_not_write_twice_within_a_minute(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, _ = make(sessions, project)
        moments = []
        for _ in range(2):
            with sessions.begin() as session:
                keys.note_use(session, key_id=row.id)
                moments.append(session.get_one(tables.ApiKeyRow, row.id).last_used_at)
        assert moments[0] is not None
        assert moments[0] == moments[1]


class TestRevoke:
    def test_does_not_reach_into_another_project(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project)
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
        with sessions.begin() as session, pytest.raises(errors.NotFound):
            keys.revoke(session, project_id=other.id, key_id=row.id)
        assert caller_of(sessions, text).key_id == row.id


class TestRequire:
    @pytest.mark.parametrize("held", list(keys.Role))
    @pytest.mark.parametrize("needed", list(keys.Role))
    def test_lets_each_role_do_what_lesser_roles_may(
        self, held: keys.Role, needed: keys.Role
    ) -> None:
        order = ["viewer", "editor", "admin"]
        caller = keys.Caller("prj", "key", held)
        if order.index(held) >= order.index(needed):
            caller.require(needed)
        else:
            with pytest.raises(errors.Forbidden):
                caller.require(needed)


class TestCreateProject:
    def test_refuses_a_name_that_is_taken(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session, pytest.raises(errors.AlreadyExists):
            keys.create_project(session, name=project.name)


class TestCommandLine:
    def test_makes_a_project_and_a_key_that_works(
        self,
        sessions: database.Sessions,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("RETORT_DATABASE_URL", settings.database_url)
        monkeypatch.setenv("RETORT_ENVIRONMENT", "prod")
        texts = []
        for _ in range(2):  # the second time, the project is there
            assert keys.main(["create", "--project", "default", "--role", "admin"]) == 0
            texts.append(capsys.readouterr().out.strip())
        callers = [caller_of(sessions, text) for text in texts]
        assert all(text.startswith("ak_prod_") for text in texts)
        assert callers[0].project_id == callers[1].project_id
        assert callers[0].key_id != callers[1].key_id

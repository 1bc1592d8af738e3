"""API keys: who may do what, until when, and what is kept of the secret."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from models_registry import errors
from models_registry.access import keys
from models_registry.persistence import database, tables
from models_registry.settings import Settings


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
        return keys.authenticate(session, text=text)[0]


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
        assert caller_of(sessions, text) == keys.Caller(project.id, row.id, keys.Role.VIEWER)

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
            _, past = keys.create_key(
                session,
                project_id=project.id,
                name="past",
                role="admin",
                environment="test",
                expires_at=now - timedelta(seconds=1),
            )
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


class TestNoteUse:
    def test_is_due_once_a_minute(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        row, text = make(sessions, project)
        dues = []
        for _ in range(2):
            with sessions.begin() as session:
                _, due = keys.authenticate(session, text=text)
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

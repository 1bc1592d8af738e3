"""Times are aware, writers wait for their turn, and leases are judged by one clock."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import psycopg.errors
import pytest
import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.orm import Session

from models_registry.persistence import database, tables
from tests import racing, services
from tests.databases import POSTGRES_ONLY, SQLITE_ONLY


def project(name: str, created_at: datetime) -> tables.ProjectRow:
    return tables.ProjectRow(id=f"prj_{name}", name=name, created_at=created_at)


class TestHasNoRoom:
    @SQLITE_ONLY
    def test_knows_a_full_disk_of_sqlite(self, engine: sa.Engine) -> None:
        with engine.connect() as connection:
            pages = connection.scalar(sa.text("PRAGMA page_count"))
            connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
            with pytest.raises(sqlalchemy.exc.OperationalError) as refused:
                connection.execute(sa.text("CREATE TABLE large AS SELECT randomblob(10000000)"))
            connection.rollback()
            connection.execute(sa.text("PRAGMA max_page_count = 1073741823"))
        assert database.has_no_room(refused.value)

    def test_knows_that_of_postgresql_and_nothing_else(self) -> None:
        def failure(cause: Exception) -> Exception:
            return sqlalchemy.exc.OperationalError("INSERT", {}, cause)

        assert database.has_no_room(failure(psycopg.errors.DiskFull()))
        assert not database.has_no_room(failure(psycopg.errors.AdminShutdown()))
        assert not database.has_no_room(ValueError("something else"))


class TestUTCDateTime:
    @pytest.mark.parametrize("hours", [0, 5.5, -11])
    def test_gives_back_the_same_moment_in_utc(
        self, sessions: database.Sessions, hours: float
    ) -> None:
        moment = datetime(2026, 3, 29, 1, 30, 0, 123456, timezone(timedelta(hours=hours)))
        with sessions.begin() as session:
            session.add(project("a", moment))
        with sessions.begin() as session:
            found = session.get_one(tables.ProjectRow, "prj_a").created_at
        assert found == moment
        assert found.tzinfo is UTC

    def test_refuses_naive_times(self, sessions: database.Sessions) -> None:
        naive = datetime(2026, 1, 1)
        with (
            pytest.raises(sqlalchemy.exc.StatementError, match="without a zone"),
            sessions.begin() as session,
        ):
            session.add(project("a", naive))

    def test_refuses_naive_times_in_comparisons_too(self, sessions: database.Sessions) -> None:
        late = sa.select(tables.ProjectRow).where(
            tables.ProjectRow.created_at > datetime(2026, 1, 1)
        )
        with (
            sessions.begin() as session,
            pytest.raises(sqlalchemy.exc.StatementError, match="without a zone"),
        ):
            session.scalars(late)

    def test_compares_and_sorts_by_moment_whatever_the_zone(
        self, sessions: database.Sessions
    ) -> None:
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        east = timezone(timedelta(hours=9))
        row = tables.ProjectRow
        with sessions.begin() as session:
            session.add_all(
                [
                    project("later", noon + timedelta(seconds=1)),
                    project("earlier", (noon - timedelta(seconds=1)).astimezone(east)),
                ]
            )
        with sessions.begin() as session:
            before = session.scalars(
                sa.select(row.name).where(row.created_at < noon.astimezone(east))
            )
            assert before.all() == ["earlier"]
            ordered = session.scalars(sa.select(row.name).order_by(row.created_at))
            assert ordered.all() == ["earlier", "later"]

    def test_keeps_nothing_as_nothing(self, sessions: database.Sessions) -> None:
        now = datetime.now(UTC)
        key = {"id": "key_1", "project_id": "prj_a", "name": "k", "role": "admin"}
        with sessions.begin() as session:
            session.add(project("a", now))
            session.flush()
            session.add(tables.ApiKeyRow(**key, secret_sha256="0" * 64, created_at=now))
        with sessions.begin() as session:
            assert session.get_one(tables.ApiKeyRow, "key_1").expires_at is None


class TestNow:
    def test_is_aware_and_never_goes_back_within_a_transaction(
        self, sessions: database.Sessions
    ) -> None:
        with sessions.begin() as session:
            first = database.now(session)
            time.sleep(0.002)
            second = database.now(session)
        assert first.tzinfo is UTC
        assert second > first

    @POSTGRES_ONLY
    def test_asks_postgresql_once_in_each_transaction(
        self, engine: sa.Engine, sessions: database.Sessions
    ) -> None:
        asked: list[str] = []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def note(
            _connection: sa.Connection, _cursor: object, statement: str, *_rest: object
        ) -> None:
            asked.append(statement)

        with sessions() as session:
            for number in (1, 2):
                times = [database.now(session) for _ in range(3)]
                assert sorted(set(times)) == times
                session.rollback()
                assert len([one for one in asked if "clock_timestamp" in one]) == number
            before = database.now(session)
            assert database.now(session, anew=True) > before
            assert len([one for one in asked if "clock_timestamp" in one]) == 4

    def test_can_be_stored_and_read_without_loss(self, sessions: database.Sessions) -> None:
        with sessions.begin() as session:
            now = database.now(session)
            session.add(project("a", now))
        with sessions.begin() as session:
            assert session.get_one(tables.ProjectRow, "prj_a").created_at == now


class TestConnect:
    def test_keeps_rows_readable_after_commit(self, sessions: database.Sessions) -> None:
        with sessions.begin() as session:
            row = project("a", datetime.now(UTC))
            session.add(row)
        assert row.name == "a"

    def test_enforces_foreign_keys(self, sessions: database.Sessions) -> None:
        event = tables.EventRow(
            job_id="job_nowhere", sequence=1, type="t", at=datetime.now(UTC), data={}
        )
        with pytest.raises(sqlalchemy.exc.IntegrityError), sessions.begin() as session:
            session.add(event)

    @POSTGRES_ONLY
    def test_limits_statements_and_locks_on_postgresql(self, database_url: str) -> None:
        engine = database.connect(database_url, statement_timeout_seconds=1)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "1s"
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "10s"
            with pytest.raises(sqlalchemy.exc.OperationalError, match="statement timeout"):
                connection.exec_driver_sql("SELECT pg_sleep(5)")
        engine.dispose()

    @POSTGRES_ONLY
    def test_replaces_what_the_server_has_closed_before_it_is_used(self, database_url: str) -> None:
        engine = database.connect(database_url)
        pid = sa.text("SELECT pg_backend_pid()")
        with engine.connect() as first, engine.connect() as second, engine.connect() as killer:
            pids = [first.scalar(pid), second.scalar(pid)]
            idle = sa.text("SELECT pg_terminate_backend(:pid, 10000)")
            first.close()
            second.close()
            assert [killer.scalar(idle, {"pid": each}) for each in pids] == [True, True]
        with engine.connect() as one, engine.connect() as another:
            fresh = {one.scalar(pid), another.scalar(pid)}
        assert len(fresh) == 2
        assert not fresh & set(pids)
        engine.dispose()

    @POSTGRES_ONLY
    def test_gives_up_an_answer_that_does_not_come_and_then_connects_anew(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "_NETWORK_SECONDS", 0.3)
        with services.Line(database_url) as line:
            engine = database.connect(line.url, pool_size=1, statement_timeout_seconds=0.2)
            with engine.connect() as connection:
                first = connection.scalar(sa.text("SELECT pg_backend_pid()"))
                began = time.monotonic()
                with (  # which would last for ever without a limit
                    line.silence(),
                    pytest.raises(sqlalchemy.exc.OperationalError, match=r"not answered for 0\.5"),
                ):
                    connection.scalar(sa.text("SELECT 1"))
                assert time.monotonic() - began >= 0.5
            with engine.connect() as connection:
                assert connection.scalar(sa.text("SELECT pg_backend_pid()")) != first
            engine.dispose()

    @POSTGRES_ONLY
    def test_frees_the_locks_of_a_client_that_falls_silent(
        self, engine: sa.Engine, sessions: database.Sessions, database_url: str
    ) -> None:
        with sessions.begin() as session:
            session.add(project("a", datetime.now(UTC)))
        lock = sa.select(tables.ProjectRow).with_for_update()
        silent = database.connect(database_url, pool_size=1, idle_transaction_seconds=0.3)
        connection = silent.connect()
        connection.execute(lock)
        with sessions.begin() as session:  # waits for the lock, and gets it
            session.execute(lock)
        with pytest.raises(sqlalchemy.exc.OperationalError, match="idle-in-transaction"):
            connection.execute(lock)
        connection.close()
        silent.dispose()

    @SQLITE_ONLY
    def test_logs_ahead_on_sqlite(self, engine: sa.Engine) -> None:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


class TestAddRows:
    def test_stores_rows_of_several_kinds_with_their_defaults(
        self, sessions: database.Sessions
    ) -> None:
        moment = datetime(2026, 3, 29, 1, 30, 0, 123456, UTC)
        tenant = project("a", moment)
        entry = tables.AuditRow(
            id="aud_1",
            project_id=tenant.id,
            at=moment,
            action='say "{}" \\ \u2603, NULL',
            subject="",
            actor="someone",
        )
        with sessions.begin() as session:
            database.add_rows(session, [tenant, entry])
            assert tenant in session
            tenant.limit_jobs_queued = 5
        with sessions.begin() as session:
            found = session.get_one(tables.ProjectRow, tenant.id)
            assert (found.created_at, found.limit_jobs_queued) == (moment, 5)
            assert (found.share_weight, found.limit_storage_bytes) == (1.0, None)
            stored = session.get_one(tables.AuditRow, entry.id)
            assert (stored.action, stored.subject, stored.facts) == (entry.action, "", {})
            assert (stored.at, stored.key_id) == (moment, None)

    def test_lets_the_database_number_rows_in_their_order(
        self, sessions: database.Sessions
    ) -> None:
        moment = datetime(2026, 3, 29, tzinfo=UTC)
        messages = [
            tables.OutboxRow(task="t", queue="q", payload={"place": place}, created_at=moment)
            for place in range(20)
        ]
        with sessions.begin() as session:
            database.add_rows(session, messages)
        with sessions.begin() as session:
            found = session.scalars(sa.select(tables.OutboxRow).order_by(tables.OutboxRow.id))
            assert [row.payload["place"] for row in found] == list(range(20))

    def test_stores_all_or_nothing(self, sessions: database.Sessions) -> None:
        moment = datetime(2026, 3, 29, tzinfo=UTC)
        rows = [project("a", moment), tables.AuditRow(id="aud_1", project_id="prj_b", at=moment)]
        with (
            pytest.raises(sqlalchemy.exc.IntegrityError),
            sessions.begin() as session,
        ):
            database.add_rows(session, rows)
        with sessions.begin() as session:
            assert session.scalars(sa.select(tables.ProjectRow)).all() == []

    def test_refuses_naive_times(self, sessions: database.Sessions) -> None:
        with (
            pytest.raises((TypeError, sqlalchemy.exc.StatementError)),
            sessions.begin() as session,
        ):
            database.add_rows(session, [project("a", datetime(2026, 1, 1))])


class TestWriters:
    def test_wait_for_each_other_and_lose_nothing(self, sessions: database.Sessions) -> None:
        with sessions.begin() as session:
            session.add(project("0", datetime.now(UTC)))
        row = tables.ProjectRow

        def count() -> None:
            for _ in range(25):
                with sessions.begin() as session:
                    # Reads first: on SQLite, the moment at which a transaction that turns from
                    # reader to writer would fail at once, and not wait.
                    mine = session.scalars(sa.select(row).with_for_update()).one()
                    time.sleep(0.0005)
                    mine.name = str(int(mine.name) + 1)

        racing.together([count, count])
        with sessions.begin() as session:
            assert session.scalars(sa.select(row.name)).one() == "50"

    def test_do_not_hold_up_readers(self, engine: sa.Engine, sessions: database.Sessions) -> None:
        readers = database.readers(engine)
        with sessions.begin() as session:
            session.add(project("a", datetime.now(UTC)))
            session.flush()
            # One that waited for the writer would give up, with an error.
            with readers.begin() as reading:
                assert reading.scalars(sa.select(tables.ProjectRow)).all() == []

    @POSTGRES_ONLY
    def test_leave_no_transaction_open_when_they_only_read(self, engine: sa.Engine) -> None:
        number = sa.text("SELECT pg_backend_pid()")
        state = sa.text("SELECT state FROM pg_stat_activity WHERE pid = :it")
        for factory, expected in (
            (database.readers(engine), "idle"),
            (database.sessions(engine), "idle in transaction"),
        ):
            with factory() as session, engine.connect() as other:
                mine = session.scalar(number)
                assert other.scalar(state, {"it": mine}) == expected

    def test_that_fail_leave_nothing_behind(self, sessions: database.Sessions) -> None:
        def broken(session: Session) -> None:
            session.add(project("a", datetime.now(UTC)))
            session.flush()
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError), sessions.begin() as session:
            broken(session)
        with sessions.begin() as session:
            assert session.scalars(sa.select(tables.ProjectRow)).all() == []

    def test_of_many_threads_share_the_pool(self, sessions: database.Sessions) -> None:
        lock = threading.Lock()
        made: list[str] = []

        def one(number: int) -> Callable[[], None]:
            def add() -> None:
                with sessions.begin() as session:
                    session.add(project(f"p{number}", database.now(session)))
                with lock:
                    made.append(str(number))

            return add

        racing.together([one(number) for number in range(30)])
        assert len(made) == 30

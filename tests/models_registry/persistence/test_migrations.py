"""The migrations lead to the tables, and back, on both kinds of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from models_registry.access import keys
from models_registry.artifacts import synthetic_datasets
from models_registry.persistence import database, outbox, schema, tables
from models_registry.persistence.storage import LocalStorage
from tests import factories, services


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A database without tables."""
    if request.param == "sqlite":
        engine = database.connect(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
        yield engine
        engine.dispose()
        return
    with services.database(request.getfixturevalue("postgres_server")) as url:
        engine = database.connect(url)
        yield engine
        engine.dispose()


def names(engine: sa.Engine) -> set[str]:
    return set(sa.inspect(engine).get_table_names())


class TestUpgrade:
    def test_makes_exactly_the_tables_that_are_mapped(self, empty_engine: sa.Engine) -> None:
        schema.upgrade(empty_engine)
        with empty_engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, tables.Row.metadata) == []
        assert names(empty_engine) == {*tables.Row.metadata.tables, "alembic_version"}

    def test_names_every_constraint(self, empty_engine: sa.Engine) -> None:
        # A constraint without a name could not be changed by a later migration.
        schema.upgrade(empty_engine)
        found = sa.inspect(empty_engine)
        for name, table in tables.Row.metadata.tables.items():
            assert found.get_pk_constraint(name)["name"] == table.primary_key.name
            for key in found.get_foreign_keys(name):
                assert str(key["name"]).startswith(f"fk_{name}_")
            for unique in found.get_unique_constraints(name):
                assert str(unique["name"]).startswith(f"uq_{name}_")

    def test_repeated_changes_nothing(self, empty_engine: sa.Engine) -> None:
        schema.upgrade(empty_engine)
        before = names(empty_engine)
        schema.upgrade(empty_engine)
        assert names(empty_engine) == before


class TestDowngrade:
    def test_takes_everything_back_and_can_be_undone(self, empty_engine: sa.Engine) -> None:
        schema.upgrade(empty_engine)
        schema.downgrade(empty_engine, "base")
        assert names(empty_engine) <= {"alembic_version"}
        schema.upgrade(empty_engine)
        assert names(empty_engine) == {*tables.Row.metadata.tables, "alembic_version"}


class TestStudies:
    def test_come_and_go_without_a_job_or_its_events_being_lost(
        self, empty_engine: sa.Engine, tmp_path: Path
    ) -> None:
        schema.upgrade(empty_engine)
        sessions = database.sessions(empty_engine)
        with sessions.begin() as session:
            project = keys.create_project(session, name="laboratory")
            factories.teacher(session, LocalStorage(tmp_path / "s"), project_id=project.id)
            alone = factories.job(session, project_id=project.id).id
            study = factories.study(session, project_id=project.id, seeds=[0]).id
        with empty_engine.connect() as connection:
            before = kept(connection)
        schema.downgrade(empty_engine, "0001")
        with empty_engine.connect() as connection:
            assert kept(connection) == before
        schema.upgrade(empty_engine)
        with sessions.begin() as session:
            assert session.get_one(tables.JobRow, alone).study_id is None
            assert session.get(tables.StudyRow, study) is None
            # References are watched again.
            with pytest.raises(sa.exc.IntegrityError):
                session.execute(sa.update(tables.JobRow).values(study_id="stu_nothing"))
            session.rollback()


class TestDatasetsFromJobs:
    def test_come_and_go_without_a_data_set_or_its_files_being_lost(
        self, empty_engine: sa.Engine, tmp_path: Path
    ) -> None:
        schema.upgrade(empty_engine)
        sessions, storage = database.sessions(empty_engine), LocalStorage(tmp_path / "s")
        with sessions.begin() as session:
            project = keys.create_project(session, name="laboratory")
            factories.teacher(session, storage, project_id=project.id)
            job = factories.synthetic_job(session, storage, project_id=project.id)
            new = synthetic_datasets.NewSyntheticDataset(name="dreams", job_id=job.id)
            made = synthetic_datasets.register(session, storage, project_id=project.id, new=new).id
        with empty_engine.connect() as connection:
            before = kept_of_datasets(connection)
        assert len(before[1]) == len(factories.IMAGES)
        schema.downgrade(empty_engine, "0002")
        with empty_engine.connect() as connection:
            assert kept_of_datasets(connection) == before
        schema.upgrade(empty_engine)
        with sessions.begin() as session:
            row = session.get_one(tables.DatasetVersionRow, made)
            assert (row.lineage, row.job_id) == ({}, None)


class TestOutboxClaims:
    def test_come_and_go_without_a_message_being_lost(self, empty_engine: sa.Engine) -> None:
        waiting = (
            "INSERT INTO outbox (task, queue, payload, priority, created_at)"
            " VALUES ('jobs.run', 'cpu', '{}', 7, '2026-01-01')"
        )
        claimed = "UPDATE outbox SET claim_expires_at = '9999-01-01'"
        schema.upgrade(empty_engine, "0003")
        with empty_engine.begin() as connection:
            connection.exec_driver_sql(waiting)
        schema.upgrade(empty_engine)
        with empty_engine.begin() as connection:
            connection.exec_driver_sql(claimed)
        schema.downgrade(empty_engine, "0003")
        schema.upgrade(empty_engine)
        sent: list[object] = []
        sessions = database.sessions(empty_engine)
        assert outbox.relay(sessions, lambda *message: sent.append(message)) == 1
        assert sent == [("jobs.run", "cpu", {}, 7)]


def kept_of_datasets(connection: sa.Connection) -> list[list[object]]:
    """Return what must survive a change of the data sets' tables."""
    queries = (
        "SELECT id, version, state, sha256 FROM dataset_versions ORDER BY id",
        "SELECT version_id, path, sha256 FROM dataset_files ORDER BY version_id, path",
    )
    return [list(map(tuple, connection.exec_driver_sql(query))) for query in queries]


def kept(connection: sa.Connection) -> list[list[object]]:
    """Return what must survive any change of the schema."""
    queries = (
        "SELECT id, spec, state, retry_of FROM jobs ORDER BY id",
        "SELECT job_id, sequence, type FROM job_events ORDER BY job_id, sequence",
    )
    return [list(map(tuple, connection.exec_driver_sql(query))) for query in queries]


class TestChanging:
    def test_leaves_no_row_that_refers_to_nothing(self, tmp_path: Path) -> None:
        engine = database.connect(f"sqlite:///{tmp_path / 'some.sqlite3'}")
        schema.upgrade(engine)
        insert = "INSERT INTO job_events VALUES ('job_0', 1, 'x', '2026-01-01', '{}')"
        refused = pytest.raises(RuntimeError, match="1 rows would refer to nothing")
        with refused, schema.changing(engine) as connection:
            connection.exec_driver_sql(insert)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT * FROM job_events").all() == []
        engine.dispose()


class TestIsCurrent:
    def test_tells_whether_the_newest_revision_is_there(self, empty_engine: sa.Engine) -> None:
        with empty_engine.connect() as connection:
            assert not schema.is_current(connection)
        schema.upgrade(empty_engine)
        with empty_engine.connect() as connection:
            assert schema.is_current(connection)
        schema.downgrade(empty_engine, "base")
        with empty_engine.connect() as connection:
            assert not schema.is_current(connection)


class TestRevisions:
    def test_follow_each_other_in_one_line(self) -> None:
        scripts = ScriptDirectory(str(Path(schema.__file__).parents[2] / "migrations"))
        assert len(scripts.get_heads()) == 1
        assert len(scripts.get_bases()) == 1
        assert all(not script.is_merge_point for script in scripts.walk_revisions())

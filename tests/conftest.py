"""Fixtures of all tests: a fresh database each, on both kinds, and the app over it.

Migrations run once for each kind, so that a test's database costs milliseconds.
"""

import atexit
import gc
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import hypothesis
import jaxtyping
import psycopg
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from sqlalchemy.engine import Dialect
from starlette.routing import BaseRoute
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # xdist has no types

from api.app import create_app
from models_registry.access import keys
from models_registry.persistence import database, schema, tables
from models_registry.persistence.storage import LocalStorage, Storage
from models_registry.settings import Settings
from tests import factories, services

# Its 0.2 s an example pass on a busy machine without anything being wrong.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# What SQLAlchemy has compiled of statements, by the kind of database and by statement.
DIALECTS: dict[type[Dialect], Dialect] = {}
COMPILED: dict[type[Dialect], dict[Any, Any]] = {}


@sa.event.listens_for(sa.Engine, "engine_connect")
def share_compiled(connection: sa.Connection) -> None:
    """Let all engines of a process use what the first one has compiled.

    Each test has engines of its own; to compile every statement for them anew took a third of a
    test. The key of what is compiled holds the dialect, so that is shared as well; the first one
    has asked its server what it can by the time of this event.
    """
    kind = type(connection.dialect)
    connection.dialect = DIALECTS.setdefault(kind, connection.dialect)
    connection.execution_options(compiled_cache=COMPILED.setdefault(kind, {}))


MakeApp = Callable[[Settings], FastAPI]
PROJECT = "laboratory"
NOBODY_LISTENS = "redis://127.0.0.1:1/0"
# Without this, rows would have to come and go in the order of their references.
IN_ANY_ORDER = b"SET session_replication_role = replica"
# What one process runs in a row, so that what its tests share is started once: a file, except for
# these units, by the ids of tests. All but the last wait most, and come first, in this order.
UNITS = (
    # Whole running services.
    (re.compile(r"tests/journeys/.*\[(embedded|production)\b"), r"\1"),
    # Engines are forked from one process that has imported torch.
    (re.compile(r"tests/workers/test_(?:runner|shared_engine|traces)\.py"), "engines"),
    # One PostgreSQL server.
    (re.compile(r".*\[.*\bpostgresql\b"), "postgresql"),
    (re.compile(r"tests/(?:workers/test_outages|.*/test_migrations)\.py"), "postgresql"),
    # The networks of a method.
    (
        re.compile(r"tests/distill/methods/test_every_method\.py::TestEveryMethod::.*\[(.+)\]"),
        r"\1",
    ),
)
# The kinds of databases and stores that are servers, and the fixtures that start one.
SERVERS = {"postgresql", "s3"}
SERVER_FIXTURES = {"postgres_server", "postgres_database", "s3_settings"}


# Tests that `make test-fast` leaves out beside slow ones, by their names without parameters.
MEDIUM_FILE = Path(__file__).with_name("medium.txt")
MEDIUM = frozenset(MEDIUM_FILE.read_text().split())
MEDIUM_SECONDS = 0.03
STARTED = pytest.StashKey[float]()
SPENT = "processor seconds"


def processor_seconds() -> float:
    """Return what this process and those that it has waited for have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Medium:
    """Writes the list of medium tests: those whose cases compute longer than `MEDIUM_SECONDS`.

    Processor time is nearly the same on a busy machine, which the clock's is not.
    """

    def __init__(self) -> None:
        self.cases: dict[str, list[float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what a test has computed in setup, call and teardown."""
        for name, spent in report.user_properties:
            if name == SPENT and isinstance(spent, float):
                self.cases.setdefault(report.nodeid.partition("[")[0], []).append(spent)

    def pytest_sessionfinish(self) -> None:
        """Write the names of tests whose cases compute too long in the mean."""
        medium = [name for name, each in self.cases.items() if fmean(each) > MEDIUM_SECONDS]
        MEDIUM_FILE.write_text("".join(f"{name}\n" for name in sorted(medium)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the list of medium tests anew."""
    parser.addoption(
        "--write-medium",
        action="store_true",
        help="write tests/medium.txt (with -m 'not slow and not journey' --jaxtyping-packages=)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Measure where it is asked for, once for all processes."""
    if config.option.write_medium and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Medium())


def unit_of(nodeid: str) -> tuple[int, str] | None:
    """Return place and name of the unit that a test belongs to, or None where that is its file."""
    for place, (pattern, name) in enumerate(UNITS):
        if found := pattern.match(nodeid):
            return place, found.expand(name)
    return None


class Together(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Keeps the tests of a unit in one process, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        unit = unit_of(nodeid)
        return unit[1] if unit else str(super()._split_scope(nodeid))

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Forget a unit that is complete: xdist would count all of them again after each test."""
        nodeid = self.registered_collections[node][item_index]
        scope, assigned = self._split_scope(nodeid), self.assigned_work[node]
        assigned[scope][nodeid] = True
        if all(assigned[scope].values()):
            del assigned[scope]
        self._reschedule(node)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one process more than there are cores: many slow tests wait for other processes."""
    cores = len(os.sched_getaffinity(0))
    return cores if "not slow" in config.option.markexpr else cores + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell what a test has computed, for `Medium`, in the process that hears of all tests."""
    report = yield
    if call.when == "teardown":
        report.user_properties.append((SPENT, processor_seconds() - item.stash[STARTED]))
    return report


@pytest.hookimpl(tryfirst=True)  # what fixtures compute counts
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes in quick tests: slow ones repeat in whole runs what those call."""
    item.stash[STARTED] = processor_seconds()
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs a server of its own as slow, which takes seconds to start; and the medium."""
    if item.nodeid.partition("[")[0] in MEDIUM:
        item.add_marker(pytest.mark.medium)
    callspec = getattr(item, "callspec", None)
    chosen = [one for one in callspec.params.values() if isinstance(one, str)] if callspec else []
    needed = getattr(item, "fixturenames", ())
    if SERVERS.intersection(chosen) or SERVER_FIXTURES.intersection(needed):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while everything is imported: it is a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Keep what all imports have made out of every garbage collection: it takes seconds.

    Also of the last ones, which pytest asks for at its end; the interpreter ends as it would have.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.hookimpl(trylast=True)  # after the tests were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long units and slow tests first, so that no process waits at the end for another's."""

    def rank(item: pytest.Item) -> tuple[int, bool]:
        unit = unit_of(item.nodeid) or (len(UNITS), "")
        return min(unit[0], len(UNITS) - 1), item.get_closest_marker("slow") is None

    items.sort(key=rank)


# Any: xdist has no types.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    """Schedule with units where files are asked for."""
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    engine = database.connect(f"sqlite:///{path}")
    schema.upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def sqlite_project_template(sqlite_template: Path) -> Path:
    """A migrated SQLite file with the project of the tests, to be copied."""
    path = sqlite_template.with_name("project.sqlite3")
    shutil.copy(sqlite_template, path)
    make_project(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of our own; the URL of its default database."""
    with services.postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_database(postgres_server: str) -> Iterator[str]:
    """The URL of a migrated database, to be emptied after each test.

    Copying it for each test would take a third of a second; for a test of the schema itself,
    `services.database(postgres_server)` makes another one.
    """
    with services.database(postgres_server) as url:
        engine = database.connect(url, pool_size=1)
        schema.upgrade(engine)
        engine.dispose()
        yield url


@pytest.fixture(scope="session")
def postgres_project_rows(postgres_database: str) -> dict[str, bytes]:
    """The rows that make the project of the tests, by table, as PostgreSQL copies them."""
    make_project(postgres_database)
    rows: dict[str, bytes] = {}
    with psycopg.connect(postgres_database.replace("+psycopg", "")) as connection:
        for table in tables.Row.metadata.tables:
            with connection.cursor().copy(f'COPY "{table}" TO STDOUT'.encode()) as copied:
                content = b"".join(copied)
            if content:
                rows[table] = content
    empty(postgres_database)
    return rows


def make_project(url: str) -> None:
    """Make the project of the tests in an empty database."""
    engine = database.connect(url, pool_size=1)
    with database.sessions(engine).begin() as session:
        keys.create_project(session, name=PROJECT)
    engine.dispose()


def fill(postgres_url: str, rows: dict[str, bytes]) -> None:
    """Write rows into a database."""
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        connection.execute(IN_ANY_ORDER)
        for table, content in rows.items():
            with connection.cursor().copy(f'COPY "{table}" FROM STDIN'.encode()) as copy:
                copy.write(content)


def empty(postgres_url: str) -> None:
    """Delete every row, after ending whatever a test has left behind."""
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        deletions = [f'DELETE FROM "{table}"' for table in tables.Row.metadata.tables]
        connection.execute("; ".join([IN_ANY_ORDER.decode(), *deletions]).encode())


@pytest.fixture
def ready_made() -> None:
    """The wish that `database_url` comes with the project of the tests."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, migrated database: each test runs on both kinds.

    It has the project of the tests where a test, or a fixture of it, asks for `ready_made`.
    """
    with_project = "ready_made" in request.fixturenames
    if request.param == "sqlite":
        path = tmp_path / "retort.sqlite3"
        template = "sqlite_project_template" if with_project else "sqlite_template"
        shutil.copy(request.getfixturevalue(template), path)
        yield f"sqlite:///{path}"
        return
    url = request.getfixturevalue("postgres_database")
    if with_project:
        fill(url, request.getfixturevalue("postgres_project_rows"))
    yield url
    empty(url)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """Connections of the test itself, apart from those of the app.

    One that idles while the machine is busy elsewhere is not cut off.
    """
    engine = database.connect(database_url, idle_transaction_seconds=600)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> database.Sessions:
    """The factory of sessions of the test itself."""
    return database.sessions(engine)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """The store that the app uses as well."""
    return LocalStorage(tmp_path / "storage")


class GivenSettings(Settings):
    """Settings that a test gives, and defaults: of the environment that tests run in, nothing."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings without a broker: nothing that the API does may need one."""
    return GivenSettings(
        environment="test",
        data_dir=tmp_path,
        database_url=database_url,
        broker_url=NOBODY_LISTENS,
        storage_url=(tmp_path / "storage").as_uri(),
        cursor_secret="a secret of the tests, 32 bytes long",
    )


@pytest.fixture
def project(ready_made: None, sessions: database.Sessions) -> tables.ProjectRow:
    """The project that `client` belongs to, which `database_url` comes with."""
    with sessions.begin() as session:
        return session.query(tables.ProjectRow).one()


@pytest.fixture
def teacher(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.ModelVersionRow:
    """A version that is ready to teach, and that jobs and studies name unless told otherwise."""
    with sessions.begin() as session:
        return factories.teacher(session, storage, project_id=project.id)


@pytest.fixture
def job(
    sessions: database.Sessions, project: tables.ProjectRow, teacher: tables.ModelVersionRow
) -> tables.JobRow:
    """A queued job, of that teacher."""
    with sessions.begin() as session:
        return factories.job(session, project_id=project.id)


@pytest.fixture
def api_key(sessions: database.Sessions, project: tables.ProjectRow) -> str:
    """The text of an administrator's key."""
    with sessions.begin() as session:
        return factories.key(session, project_id=project.id)


@pytest.fixture(scope="session")
def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of the first application; not to be changed."""
    return {}


@pytest.fixture(scope="session")
def make_app(openapi_document: dict[str, Any]) -> MakeApp:
    """Make applications, not started.

    FastAPI works out the parameters of all routes at an application's first request, and query
    parameters are checked by its document, each of which takes longer than most tests; what they
    have worked out holds nothing of the application, and is kept.
    """
    routes: dict[int, BaseRoute] = {}

    def make(settings: Settings) -> FastAPI:
        made = create_app(settings)
        if not openapi_document:
            openapi_document.update(made.openapi())
        # FastAPI's own way to replace the document.
        made.openapi = lambda: openapi_document  # type: ignore[method-assign]
        for place, route in enumerate(made.router.routes):
            if hasattr(route, "original_router"):
                made.router.routes[place] = routes.setdefault(place, route)
        return made

    return make


@pytest.fixture
def app(settings: Settings, make_app: MakeApp) -> FastAPI:
    """The application, not started."""
    return make_app(settings)


@pytest.fixture
def client(app: FastAPI, api_key: str) -> Iterator[TestClient]:
    """A client with an administrator's key, to the started application."""
    with TestClient(app, headers={"authorization": f"Bearer {api_key}"}) as client:
        yield client

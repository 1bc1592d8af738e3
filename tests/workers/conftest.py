"""Fixtures of the worker's tests: a context as a worker process has one, with quick clocks."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from models_registry.settings import Settings
from tests import conftest
from tests.workers import scenes
from workers import context as contexts
from workers.engine_launcher import EngineLauncher
from workers.isolation import Isolation


def quick_settings(database_url: str, folder: Path, broker_url: str | None = None) -> Settings:
    """Return settings under which a test need not wait for a poll or a sweep."""
    return conftest.GivenSettings(
        environment="test",
        data_dir=folder,
        database_url=database_url,
        broker_url=broker_url or conftest.NOBODY_LISTENS,
        storage_url=(folder / "storage").as_uri(),
        heartbeat_seconds=0.5,
        poll_seconds=0.1,
        sweep_seconds=0.5,
        republish_after_seconds=1,
    )


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return quick_settings(database_url, tmp_path)


@pytest.fixture(scope="session")
def warm_launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineLauncher]:
    """Forks the engines of all tests in this process: torch is imported once for them.

    They are isolated, as those of a worker are.
    """
    isolated = Isolation.of(Settings(data_dir=tmp_path_factory.mktemp("isolated")))
    made = EngineLauncher(is_warm=True, isolation=isolated)
    yield made
    made.close()


@pytest.fixture
def context(settings: Settings, warm_launcher: EngineLauncher) -> Iterator[contexts.Context]:
    made = contexts.build(settings, worker_id="wrk_tests", launcher=warm_launcher)
    yield made
    made.engine.dispose()


@pytest.fixture
def cold(context: contexts.Context) -> contexts.Context:
    """The same worker, whose engines take seconds to start, so that a test can come between."""
    return dataclasses.replace(context, launcher=EngineLauncher(is_warm=False))


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    warm_launcher: EngineLauncher,
) -> Iterator[contexts.Context]:
    """A worker over one database for all tests of a module: jobs do not know of each other."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copy(sqlite_template, folder / "retort.sqlite3")
    settings = quick_settings(f"sqlite:///{folder}/retort.sqlite3", folder)
    made = contexts.build(settings, worker_id="wrk_1", launcher=warm_launcher)
    yield made
    made.engine.dispose()


@pytest.fixture
def tidiness(workshop: contexts.Context) -> Iterator[None]:
    """Whatever happens: no engine, no working folder, no thread of an attempt is left."""
    yield
    assert scenes.engines() == []
    assert [path for path in workshop.settings.scratch_dir.iterdir() if path.is_dir()] == []
    names = {thread.name for thread in threading.enumerate()}
    assert names & {"heartbeat", "engine-reports"} == set()

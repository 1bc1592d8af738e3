"""A home of one's own for each test, and servers to talk to."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import typer.testing
from fastapi import FastAPI

from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from retort import client, transport
from tests import serving
from tests.retort import wire as wires
from tests.retort import workers


@pytest.fixture(autouse=True, scope="session")
def built_once() -> Iterator[None]:
    """Build the tree of all commands once: Typer's runner does so anew for each call."""
    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(typer.main.get_command)
        patch.setattr(typer.testing, "_get_command", cached)
        yield


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in an empty folder, with an empty configuration and environment."""
    for name in ("RETORT_URL", "RETORT_API_KEY", "RETORT_DATA_DIR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    (folder / "here").mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.chdir(folder / "here")
    return folder


@pytest.fixture
def wire() -> Iterator[wires.Wire]:
    """A server that says what the test tells it to."""
    with wires.running() as server:
        yield server


@pytest.fixture
def naps() -> list[float]:
    """The pauses that the client would have made."""
    return []


@pytest.fixture
def http(wire: wires.Wire, naps: list[float]) -> Iterator[transport.Transport]:
    """A transport to that server which notes its pauses instead of making them."""
    made = transport.Transport(wire.url, "secret-key", timeout=60, sleep=naps.append)
    yield made
    made.close()


@pytest.fixture
def database_url(tmp_path: Path, sqlite_project_template: Path) -> str:
    """A fresh database; the client cannot tell which kind it is, so one kind is enough."""
    path = tmp_path / "retort.sqlite3"
    shutil.copy(sqlite_project_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def service(app: FastAPI) -> Iterator[str]:
    """The real service on a port of this machine; its address."""
    with serving.served(app) as running:
        yield running.url


@pytest.fixture
def retort(service: str, api_key: str) -> Iterator[client.Client]:
    """A client of the real service."""
    with client.Client(service, api_key) as made:
        yield made


@pytest.fixture
def staff(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> workers.Staff:
    """Whoever does the work behind the service."""
    return workers.Staff(sessions, storage, project.id)

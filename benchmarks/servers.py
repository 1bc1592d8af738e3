"""Servers that requests are measured against: the service's API, the bare route, and MLflow.

All use one PostgreSQL server and one folder, and each is one process of this machine.
"""

import contextlib
import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import psutil

from models_registry.access import keys
from models_registry.persistence import database, schema
from tests import services

MLFLOW = pathlib.Path(".venv/mlflow")
"""MLflow's environment: its pins are not those of the service."""
MLFLOW_PACKAGES = ("mlflow==3.17.0", "psycopg2-binary")


@dataclass(frozen=True)
class Server:
    """A process that answers HTTP on this machine."""

    port: int
    process: psutil.Process

    def seconds(self) -> float:
        """Return the processor time that the process and its children have used."""
        return used([self.process, *self.process.children(recursive=True)])


@dataclass(frozen=True)
class Servers:
    """The API with a key of its only project, and what else is asked beside it."""

    api: Server
    api_key: str
    postgres: psutil.Process
    database_url: str
    folder: pathlib.Path
    bare: Server | None = None
    mlflow: Server | None = None

    def database_seconds(self) -> float:
        """Return the processor time of PostgreSQL's processes for connections."""
        return used(self.postgres.children())


@contextlib.contextmanager
def started(
    folder: pathlib.Path,
    *,
    bare: bool = False,
    mlflow: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Servers]:
    """Run PostgreSQL, Redis, the API and, where wanted, the bare route and MLflow.

    `environment` has further settings of the API.
    """
    with contextlib.ExitStack() as stack:
        server_url = stack.enter_context(services.postgres(folder))
        url = stack.enter_context(services.database(server_url))
        broker_url = stack.enter_context(services.redis_server(folder))
        for_api = {
            **os.environ,
            "RETORT_ENVIRONMENT": "test",
            "RETORT_DATA_DIR": str(folder),
            "RETORT_DATABASE_URL": url,
            "RETORT_BROKER_URL": broker_url,
            "RETORT_STORAGE_URL": (folder / "storage").as_uri(),
            "RETORT_QUOTA_REQUESTS_PER_MINUTE": "1000000000",
            "RETORT_QUOTA_STORAGE_BYTES": str(2**50),
            "RETORT_CURSOR_SECRET": "of no importance in a benchmark",
            "BARE_DATABASE_URL": url,
            **(environment or {}),
        }
        api_key = _prepared(url)
        api = stack.enter_context(_served(["api.server"], for_api, folder))
        asked_bare = (
            stack.enter_context(_served(["uvicorn", "benchmarks.bare_api:app"], for_api, folder))
            if bare
            else None
        )
        asked_mlflow = stack.enter_context(_mlflow(server_url, folder)) if mlflow else None
        yield Servers(api, api_key, _postmaster(server_url), url, folder, asked_bare, asked_mlflow)


def used(processes: Iterable[psutil.Process]) -> float:
    """Return the seconds of processor time that processes have used; those that ended count 0."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _prepared(url: str) -> str:
    """Make the tables and a project, and return a key of it."""
    engine = database.connect(url)
    schema.upgrade(engine)
    with database.sessions(engine).begin() as session:
        project = keys.create_project(session, name="benchmark")
        _, text = keys.create_key(
            session, project_id=project.id, name="benchmark", role="editor", environment="test"
        )
    engine.dispose()
    return text


def _postmaster(server_url: str) -> psutil.Process:
    folder = pathlib.Path(server_url.partition("?host=")[2])
    return psutil.Process(int((folder / "cluster" / "postmaster.pid").read_text().split()[0]))


def _served(
    module: list[str], environment: Mapping[str, str], folder: pathlib.Path
) -> contextlib.AbstractContextManager[Server]:
    port = _free_port()
    command = [sys.executable, "-m", *module, "--port", str(port), "--no-access-log"]
    return _running(command, port, environment, folder)


@contextlib.contextmanager
def _mlflow(server_url: str, folder: pathlib.Path) -> Iterator[Server]:
    """Run MLflow's tracking server with one process that serves, on a database of its own."""
    _install_mlflow()
    port = _free_port()
    with services.database(server_url) as url:
        command = [str(MLFLOW / "bin" / "mlflow"), "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", url.replace("+psycopg", "+psycopg2")]
        command += ["--artifacts-destination", str(folder / "mlflow")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        path = f"{(MLFLOW / 'bin').resolve()}{os.pathsep}{os.environ['PATH']}"
        with _running(command, port, {**environment, "PATH": path}, folder) as server:
            yield server


def _install_mlflow() -> None:
    if (MLFLOW / "bin" / "mlflow").exists():
        return
    uv = shutil.which("uv", path=str(pathlib.Path(sys.executable).parent))
    if uv is None:
        raise RuntimeError("uv is not beside this Python: run `make .venv/.installed`")
    python = str(MLFLOW / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(MLFLOW)], check=True)
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
    subprocess.run([*install, *MLFLOW_PACKAGES], check=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(
    command: list[str], port: int, environment: Mapping[str, str], folder: pathlib.Path
) -> Iterator[Server]:
    """Run a server, and yield it once it answers; it ends with the block, and its children too."""
    log_path = folder / f"{port}.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as child,
    ):
        process = psutil.Process(child.pid)
        try:
            _wait(port, child, log_path)
            yield Server(port, process)
        finally:
            below = process.children(recursive=True) if process.is_running() else []
            child.terminate()
            for one in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.terminate()


def _wait(port: int, child: "subprocess.Popen[bytes]", log_path: pathlib.Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        connection.close()
        if child.poll() is not None:
            raise RuntimeError(f"a server ended with {child.returncode}:\n{_tail(log_path)}")
        time.sleep(0.1)
    raise RuntimeError(f"a server does not answer:\n{_tail(log_path)}")


def _tail(log_path: pathlib.Path) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])

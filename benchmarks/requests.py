"""What requests cost: create a job, read one, list 100, beside the least that an answer costs.

    python -m benchmarks.requests [--rounds 3] [--seconds 5] [--clients 8]

PostgreSQL, Redis, one API process, and clients in processes of their own that share the cores with
it. Requests a second therefore say more of the machine than the processor time of the API process,
which is given beside them: with it, machines and branches can be compared while others work.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import rich.console

from benchmarks.service import SPEC
from models_registry.access import keys
from models_registry.persistence import database, schema
from tests import services

LISTED = 100


@dataclass(frozen=True)
class Load:
    """Requests of one kind, sent over and over."""

    name: str
    port: int
    method: str
    path: str
    body: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Measure in rounds, and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind in each round")
    parser.add_argument("--clients", type=int, default=8, help="processes that send")
    parser.add_argument("--serve", action="store_true", help="start, print what to call, and wait")
    wanted = parser.parse_args()
    say = rich.console.Console(stderr=True).print
    with tempfile.TemporaryDirectory(prefix="retort-requests-") as name, _servers(name) as servers:
        loads = _loads(servers)
        if wanted.serve:
            say(servers, *loads)
            input()
            return
        found: dict[str, list[dict[str, float]]] = {load.name: [] for load in loads}
        for number in range(wanted.rounds):
            for load in loads:
                say(f"round {number + 1} of {wanted.rounds}: {load.name}")
                found[load.name].append(_measure(load, servers, wanted.seconds, wanted.clients))
    sys.stdout.write(_table(found))


def _table(found: dict[str, list[dict[str, float]]]) -> str:
    columns = ["requests a second", "p50 ms", "p95 ms", "API ms of processor", "PostgreSQL ms"]
    lines = [f"| request | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, rounds in found.items():
        cells = []
        for column in columns:
            values = [one[column] for one in rounds]
            cells.append(
                f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# -- servers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Servers:
    """Where the two APIs answer, and whose processor time counts."""

    port: int
    bare_port: int
    api_key: str
    api: psutil.Process
    bare: psutil.Process
    postgres: psutil.Process


@contextlib.contextmanager
def _servers(folder_name: str) -> Iterator[Servers]:
    folder = pathlib.Path(folder_name)
    with (
        services.postgres(folder) as server_url,
        services.database(server_url) as url,
        services.redis_server(folder) as broker_url,
    ):
        environment = {
            **os.environ,
            "RETORT_ENVIRONMENT": "test",
            "RETORT_DATA_DIR": str(folder),
            "RETORT_DATABASE_URL": url,
            "RETORT_BROKER_URL": broker_url,
            "RETORT_STORAGE_URL": (folder / "storage").as_uri(),
            "RETORT_QUOTA_REQUESTS_PER_MINUTE": "1000000000",
            "RETORT_CURSOR_SECRET": "of no importance in a benchmark",
            "BARE_DATABASE_URL": url,
        }
        with (
            _served("api.app:create_app", environment, folder) as (port, api),
            _served("benchmarks.bare_api:app", environment, folder) as (bare_port, bare),
        ):
            yield Servers(port, bare_port, _api_key(url), api, bare, _postmaster(server_url))


def _api_key(url: str) -> str:
    engine = database.connect(url)
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


@contextlib.contextmanager
def _served(
    app: str, environment: dict[str, str], folder: pathlib.Path
) -> Iterator[tuple[int, psutil.Process]]:
    """Run an application under uvicorn, and yield its port and process once it answers."""
    is_service = app.startswith("api.")
    if is_service:
        engine = database.connect(environment["RETORT_DATABASE_URL"])
        schema.upgrade(engine)
        engine.dispose()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--no-access-log"]
    command += ["--factory"] if is_service else []
    with (
        (folder / f"{port}.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as child,
    ):
        try:
            _wait(port, child)
            yield port, psutil.Process(child.pid)
        finally:
            child.terminate()


def _wait(port: int, child: "subprocess.Popen[bytes]") -> None:
    for _ in range(3000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if child.poll() is not None:
            raise RuntimeError(f"the server at {port} ended with {child.returncode}")
        time.sleep(0.1)
    raise RuntimeError(f"the server at {port} does not answer")


# -- requests ----------------------------------------------------------------------------------


def _loads(servers: Servers) -> list[Load]:
    """Return what is measured, after the jobs that it reads are made."""
    headers = {
        "authorization": f"Bearer {servers.api_key}",
        "content-type": "application/json",
        # A cookie jar or a proxy adds more; this is what the product's own client sends.
        "accept": "application/json",
    }
    body = json.dumps(SPEC)
    create = Load("create a job", servers.port, "POST", "/v1/jobs", body, 202, headers)
    connection = http.client.HTTPConnection("127.0.0.1", servers.port)
    for _ in range(LISTED):
        job_id = json.loads(_send(connection, create))["id"]
    listing = f"/v1/jobs?limit={LISTED}"
    return [
        Load("bare route, one query", servers.bare_port, "GET", f"/jobs/{job_id}"),
        Load("read a job", servers.port, "GET", f"/v1/jobs/{job_id}", headers=headers),
        Load(f"list {LISTED} jobs", servers.port, "GET", listing, headers=headers),
        create,
    ]


def _send(connection: http.client.HTTPConnection, load: Load) -> bytes:
    connection.request(load.method, load.path, load.body, load.headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != load.status:
        raise RuntimeError(f"{load.name}: {response.status} {content[:500]!r}")
    return content


def _repeat(load: Load, seconds: float, start_at: float, told: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", load.port)
    _send(connection, load)
    time.sleep(max(0.0, start_at - time.time()))
    latencies = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        _send(connection, load)
        latencies.append(time.perf_counter() - began)
    told.put(latencies)


def _measure(load: Load, servers: Servers, seconds: float, clients: int) -> dict[str, float]:
    process = servers.api if load.port == servers.port else servers.bare
    told: Any = multiprocessing.Queue()
    start_at = time.time() + 1.0
    senders = [
        multiprocessing.Process(target=_repeat, args=(load, seconds, start_at, told))
        for _ in range(clients)
    ]
    for sender in senders:
        sender.start()
    time.sleep(max(0.0, start_at - time.time()))
    used, database_used = _used([process]), _used(servers.postgres.children())
    latencies = sorted(one for _ in senders for one in told.get(timeout=seconds + 60))
    for sender in senders:
        sender.join()
    count = len(latencies)
    return {
        "requests a second": count / seconds,
        "p50 ms": 1000 * latencies[count // 2],
        "p95 ms": 1000 * latencies[int(0.95 * count)],
        "API ms of processor": 1000 * (_used([process]) - used) / count,
        "PostgreSQL ms": 1000 * (_used(servers.postgres.children()) - database_used) / count,
    }


def _used(processes: list[psutil.Process]) -> float:
    """Return the seconds of processor time that processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


if __name__ == "__main__":
    main()

"""What requests cost: create a job, read one, list 100, beside the least that an answer costs.

    python -m benchmarks.requests [--rounds 3] [--seconds 5] [--clients 8] [--mlflow]

PostgreSQL, Redis, one API process, and clients in processes of their own that share the cores with
it. Requests a second therefore say more of the machine than the processor time of the API process,
which is given beside them: with it, machines and branches can be compared while others work.

With `--mlflow`, MLflow's server (one process, the same PostgreSQL, an environment that is made on
first use) is asked by the same client in the same rounds for what is nearest: a run is created,
read, and found among 100.
"""

import argparse
import http.client
import json
import multiprocessing
import pathlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import rich.console

from benchmarks import servers, tables
from benchmarks.service import SPEC

LISTED = 100
COLUMNS = ("requests a second", "p50 ms", "p95 ms", "server ms of processor", "PostgreSQL ms")


@dataclass(frozen=True)
class Load:
    """Requests of one kind, sent over and over."""

    name: str
    server: servers.Server
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
    parser.add_argument("--mlflow", action="store_true", help="ask MLflow's server as well")
    parser.add_argument("--serve", action="store_true", help="start, print what to call, and wait")
    wanted = parser.parse_args()
    say = rich.console.Console(stderr=True).print
    with (
        tempfile.TemporaryDirectory(prefix="retort-requests-") as name,
        servers.started(pathlib.Path(name), bare=True, mlflow=wanted.mlflow) as running,
    ):
        loads = _loads(running)
        if wanted.serve:
            say(running, *loads)
            input()
            return
        found: dict[str, list[dict[str, float]]] = {load.name: [] for load in loads}
        for number in range(wanted.rounds):
            for load in loads:
                say(f"round {number + 1} of {wanted.rounds}: {load.name}")
                found[load.name].append(_measure(load, running, wanted.seconds, wanted.clients))
    sys.stdout.write(tables.of_rounds(found, COLUMNS, "request"))


# -- requests ----------------------------------------------------------------------------------


def _loads(running: servers.Servers) -> list[Load]:
    """Return what is measured, after the jobs and runs that it reads are made."""
    if running.bare is None:
        raise RuntimeError("the bare route was not started")
    headers = {
        "authorization": f"Bearer {running.api_key}",
        "content-type": "application/json",
        # A cookie jar or a proxy adds more; this is what the product's own client sends.
        "accept": "application/json",
    }
    api = running.api
    create = Load("create a job", api, "POST", "/v1/jobs", json.dumps(SPEC), 202, headers)
    job_id = [json.loads(_asked(create))["id"] for _ in range(LISTED)][-1]
    listing = f"/v1/jobs?limit={LISTED}"
    loads = [
        Load("bare route, one query", running.bare, "GET", f"/jobs/{job_id}"),
        Load("read a job", api, "GET", f"/v1/jobs/{job_id}", headers=headers),
        Load(f"list {LISTED} jobs", api, "GET", listing, headers=headers),
        create,
    ]
    return loads if running.mlflow is None else [*loads, *_mlflow_loads(running.mlflow)]


def _mlflow_loads(server: servers.Server) -> list[Load]:
    headers = {"content-type": "application/json"}
    wanted = json.dumps({"name": "requests"})
    path = "/api/2.0/mlflow/experiments/create"
    experiment = Load("", server, "POST", path, wanted, headers=headers)
    experiment_id = json.loads(_asked(experiment))["experiment_id"]
    wanted = json.dumps({"experiment_id": experiment_id, "start_time": 0, "run_name": "run"})
    path = "/api/2.0/mlflow/runs/create"
    create = Load("MLflow: create a run", server, "POST", path, wanted, headers=headers)
    answers = [json.loads(_asked(create)) for _ in range(LISTED)]
    run_id = answers[-1]["run"]["info"]["run_id"]
    searched = json.dumps({"experiment_ids": [experiment_id], "max_results": LISTED})
    listing = "/api/2.0/mlflow/runs/search"
    return [
        Load("MLflow: read a run", server, "GET", f"/api/2.0/mlflow/runs/get?run_id={run_id}"),
        Load(f"MLflow: list {LISTED} runs", server, "POST", listing, searched, headers=headers),
        create,
    ]


def _asked(load: Load) -> bytes:
    """Send a request once, over a connection of its own, and return the body of its response."""
    connection = http.client.HTTPConnection("127.0.0.1", load.server.port)
    content = _send(connection, load)
    connection.close()
    return content


def _send(connection: http.client.HTTPConnection, load: Load) -> bytes:
    connection.request(load.method, load.path, load.body, load.headers)
    response = connection.getresponse()
    content = response.read()
    if response.status != load.status:
        raise RuntimeError(f"{load.name}: {response.status} {content[:500]!r}")
    return content


def _repeat(load: Load, seconds: float, start_at: float, told: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", load.server.port)
    _send(connection, load)
    time.sleep(max(0.0, start_at - time.time()))
    latencies = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        _send(connection, load)
        latencies.append(time.perf_counter() - began)
    told.put(latencies)


def _measure(
    load: Load, running: servers.Servers, seconds: float, clients: int
) -> dict[str, float]:
    told: Any = multiprocessing.Queue()
    start_at = time.time() + 1.0
    senders = [
        multiprocessing.Process(target=_repeat, args=(load, seconds, start_at, told))
        for _ in range(clients)
    ]
    for sender in senders:
        sender.start()
    time.sleep(max(0.0, start_at - time.time()))
    used, database_used = load.server.seconds(), running.database_seconds()
    latencies = sorted(one for _ in senders for one in told.get(timeout=seconds + 60))
    for sender in senders:
        sender.join()
    count = len(latencies)
    figures = (
        count / seconds,
        1000 * latencies[count // 2],
        1000 * latencies[int(0.95 * count)],
        1000 * (load.server.seconds() - used) / count,
        1000 * (running.database_seconds() - database_used) / count,
    )
    return dict(zip(COLUMNS, figures, strict=True))


if __name__ == "__main__":
    main()

"""How fast a file is uploaded and downloaded, with every digest checked.

    python -m benchmarks.transfers [--mib 256] [--rounds 5] [--mlflow]

One API process with PostgreSQL and a folder as its byte store, and the product's own client in a
process of its own. An upload ends when the server has checked the SHA-256 of the whole; a download
when the client has. With `--mlflow`, MLflow's server and client move the same file in turns with
these, in the same run (its environment is made on first use).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import psutil
import rich.console
import sqlalchemy as sa

from benchmarks import servers
from benchmarks import tables as markdown
from models_registry.persistence import database, storage, tables
from retort import client, digests, downloads, transport
from tests import factories

COLUMNS = ("MiB/s", "seconds", "client s of processor", "server s of processor")
REFERENCE = "served-model"
# MLflow's own client, in MLflow's environment: it answers each line with seconds and processor
# time. A line names what to do.
MLFLOW_CLIENT = """
import json, os, shutil, sys, time
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
path, folder = sys.argv[2:]
client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("transfers")).info.run_id
for line in sys.stdin:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    began, own = time.perf_counter(), time.process_time()
    if line.strip() == "upload":
        client.log_artifact(run, path)
    else:
        client.download_artifacts(run, os.path.basename(path), folder)
    print(json.dumps([time.perf_counter() - began, time.process_time() - own]), flush=True)
"""


def main() -> None:
    """Measure in rounds, and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers")
    parser.add_argument("--mib", type=int, default=256, help="size of the file")
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    parser.add_argument("--mlflow", action="store_true", help="take turns with MLflow")
    parser.add_argument("--answer", nargs=3, metavar=("URL", "KEY", "FILE"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.answer:
        _answer(*wanted.answer)
        return
    say = rich.console.Console(stderr=True).print
    with tempfile.TemporaryDirectory(prefix="retort-transfers-") as name:
        folder = pathlib.Path(name)
        path = folder / "large.bin"
        _write(path, wanted.mib)
        with servers.started(folder, mlflow=wanted.mlflow) as running:
            sides = {"Retort": _Side(_own(running, path), running.api)}
            if running.mlflow is not None:
                sides["MLflow"] = _Side(_theirs(running.mlflow, path), running.mlflow)
            found: dict[str, list[dict[str, float]]] = {}
            for number in range(wanted.rounds + 1):
                # Each is first as often as the other: what disturbs the machine disturbs both.
                order = list(sides.items())
                for side_name, side in order if number % 2 else reversed(order):
                    for what in ("upload", "download"):
                        figures = side.measure(what, wanted.mib)
                        say(f"round {number}: {side_name}, {what}: {figures['MiB/s']:.0f} MiB/s")
                        if number:
                            found.setdefault(f"{side_name}, {what}", []).append(figures)
            for side in sides.values():
                side.end()
    sys.stdout.write(markdown.of_rounds(found, COLUMNS, "transfer"))


class _Side:
    """A client that waits for orders, and the server that it asks."""

    def __init__(self, client_process: "subprocess.Popen[str]", server: servers.Server) -> None:
        self._client, self._server = client_process, server

    def measure(self, what: str, mib: int) -> dict[str, float]:
        """Have it move the file once."""
        before = self._server.seconds()
        if self._client.stdin is None or self._client.stdout is None:
            raise RuntimeError("the client was started without pipes")
        self._client.stdin.write(f"{what}\n")
        self._client.stdin.flush()
        line = self._client.stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with {self._client.wait()}: see above")
        seconds, own = json.loads(line)
        figures = (mib / seconds, seconds, own, self._server.seconds() - before)
        return dict(zip(COLUMNS, figures, strict=True))

    def end(self) -> None:
        self._client.communicate()


def _write(path: pathlib.Path, mib: int) -> None:
    block = os.urandom(2**20)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + block[8:])


def _own(running: servers.Servers, path: pathlib.Path) -> "subprocess.Popen[str]":
    engine = database.connect(running.database_url)
    store = storage.from_url((running.folder / "storage").as_uri())
    with database.sessions(engine).begin() as session:
        project_id = session.scalars(sa.select(tables.ProjectRow.id)).one()
        factories.teacher(
            session, store, project_id=project_id, name=REFERENCE, content=path.read_bytes()
        )
    engine.dispose()
    url = f"http://127.0.0.1:{running.api.port}"
    command = [sys.executable, "-m", "benchmarks.transfers", "--answer", url, running.api_key]
    return _client([*command, str(path)])


def _theirs(server: servers.Server, path: pathlib.Path) -> "subprocess.Popen[str]":
    url = f"http://127.0.0.1:{server.port}"
    python = str(servers.MLFLOW / "bin" / "python")
    return _client([python, "-c", MLFLOW_CLIENT, url, str(path), str(path.parent / "theirs")])


def _client(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _answer(url: str, api_key: str, file: str) -> None:
    """Move the file as each line of standard input says, and answer with the seconds."""
    path = pathlib.Path(file)
    own = psutil.Process()
    with client.Client(url, api_key) as retort:
        http = transport.Transport(url, api_key)
        sha256 = digests.measure(path).sha256
        target = path.parent / "ours" / "model.safetensors"

        def upload() -> None:
            retort.uploads.discard(retort.uploads.send(path, purpose="model").id)

        def download() -> None:
            target.unlink(missing_ok=True)
            route = f"/v1/models/{REFERENCE}/versions/1/files/model.safetensors"
            downloads.save(http, route, target, sha256=sha256)

        works: dict[str, Callable[[], None]] = {"upload": upload, "download": download}
        for line in sys.stdin:
            began, before = time.perf_counter(), servers.used([own])
            works[line.strip()]()
            figures = [time.perf_counter() - began, servers.used([own]) - before]
            sys.stdout.write(json.dumps(figures) + "\n")
            sys.stdout.flush()
        http.close()


if __name__ == "__main__":
    main()

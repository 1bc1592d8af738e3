"""A federation of real client processes: seconds a round, server memory, and clients that die.

    python -m benchmarks.remote_clients [--clients 20] [--rounds 10] [--kill 5]

DS-FL on handwritten digits (Dirichlet, alpha 0.5), each client `retort client join` in a process of
its own. With `--kill`, so many clients are killed one after the other, and started again.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rich.console
import torch

from retort import client, types
from retort.cli import up
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.data.builtin import digits

ALPHA, OPEN, HELD_OUT = 0.5, 300, 360
INPUT = Input(channels=1, height=8, width=8, mean=[0.3], std=[0.3])
CLASSES = [str(label) for label in range(10)]


def main() -> None:
    """Measure, print the figures as JSON on stdout, and say on stderr what is going on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote_clients")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kill", type=int, default=5, help="clients killed in the second run")
    parser.add_argument("--port", type=int, default=8795)
    asked = parser.parse_args()
    say = rich.console.Console(stderr=True).print
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as name:
        folder = Path(name)
        write_data(folder, asked.clients)
        with (
            up.started(
                data_dir=folder / "up", host="127.0.0.1", port=asked.port, device="cpu"
            ) as service,
            client.Client(service.url, service.api_key) as retort,
        ):
            upload = retort.uploads.send(folder / "open.npz", purpose="dataset")
            made = retort.datasets.register("open", upload, format="npz")
            retort.datasets.wait(made.name, made.version, timeout=120)
            figures = {}
            for kill in sorted({0, asked.kill}):
                say(f"{asked.clients} clients, {asked.rounds} rounds, {kill} killed")
                figures[f"killed {kill}"] = Federation(
                    retort, folder / f"kill-{kill}", folder, asked.clients, asked.rounds
                ).run(kill)
                say(json.dumps(figures[f"killed {kill}"]))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def write_data(folder: Path, clients: int) -> None:
    """Write the open set with the server's validation and test images, and each client's own."""
    images, labels = digits.read()
    pixels = images[:, None]
    draw = np.random.default_rng(0)
    order = draw.permutation(len(labels))
    opened, held, own = np.split(order, [OPEN, OPEN + HELD_OUT])
    np.savez(
        folder / "open.npz",
        x_train=pixels[opened, 0, ..., None],
        y_train=labels[opened],
        x_val=pixels[held[::2], 0, ..., None],
        y_val=labels[held[::2]],
        x_test=pixels[held[1::2], 0, ..., None],
        y_test=labels[held[1::2]],
    )
    for number, rows in enumerate(divided(own, labels, clients, draw)):
        cut = max(1, len(rows) // 10)
        parts = {"validation": rows[:cut], "test": rows[cut : 2 * cut], "train": rows[2 * cut :]}
        record = dataset.DatasetRecord(
            classes=CLASSES,
            splits={name: len(part) for name, part in parts.items()},
            input=INPUT,
        )
        tensors = {
            name: (torch.from_numpy(pixels[part]), torch.from_numpy(labels[part]))
            for name, part in parts.items()
        }
        dataset.write(folder / f"data-{number}", record, tensors)


def divided(
    rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], clients: int, draw: Any
) -> list[np.ndarray[Any, Any]]:
    """Divide rows by labels; draw again until each client has ten."""
    while True:
        parts: list[list[int]] = [[] for _ in range(clients)]
        for label in range(10):
            chosen = rows[labels[rows] == label]
            cuts = (np.cumsum(draw.dirichlet([ALPHA] * clients)) * len(chosen)).astype(int)
            for part, piece in zip(parts, np.split(chosen, cuts[:-1]), strict=True):
                part.extend(piece.tolist())
        if min(map(len, parts)) >= 10:
            return [draw.permutation(part) for part in parts]


class Federation:
    """One federated job and the programs of its clients."""

    def __init__(
        self, retort: client.Client, folder: Path, data_folder: Path, clients: int, rounds: int
    ) -> None:
        folder.mkdir()
        self.retort = retort
        self.folder = folder
        self.data_folder = data_folder
        job = retort.jobs.submit(
            {
                "name": "remote",
                "student": {"network": "retort/mlp"},
                "dataset": "open@1",
                "method": {
                    "name": "dsfl",
                    "federation": {
                        "clients": "remote",
                        "min_clients": clients,
                        "local_epochs": 5,
                    },
                },
                "training": {
                    "epochs": rounds,
                    "batch_size": 32,
                    "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0},
                    "schedule": {"name": "constant"},
                    "augmentation": "none",
                },
                "report": False,
            }
        )
        self.job_id = job.id
        self.found = next(retort.federations.list(job=job.id))
        self.keys = [
            retort.federations.invite(self.found.id, f"client {number:02d}").client_key
            for number in range(clients)
        ]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def run(self, kill: int) -> dict[str, Any]:
        """Run all rounds, and return the figures."""
        peak = 0
        with self._stopping():
            for number in range(len(self.keys)):
                self._start(number)
            left, draw = kill, random.Random(0)
            while not self.retort.jobs.get(self.job_id).is_final:
                peak = max(peak, server_bytes())
                now = self.retort.federations.get(self.found.id).round
                if left and now > 1 and now > kill - left:
                    victim = draw.randrange(len(self.keys))
                    self.processes[victim].kill()
                    self.processes[victim].wait()
                    self._start(victim)
                    left -= 1
                time.sleep(0.5)
        return self._figures(peak, kill - left)

    def _figures(self, peak: int, killed: int) -> dict[str, Any]:
        job = self.retort.jobs.get(self.job_id)
        rounds = self.retort.federations.rounds(self.found.id)
        seconds = [round_seconds(one) for one in rounds]
        clients = list(self.retort.federations.clients(self.found.id))
        scores = job.result.scores.get("student") if job.result else None
        return {
            "state": job.state,
            "killed": killed,
            "seconds_a_round": {
                "median": statistics.median(seconds),
                "longest": max(seconds),
            },
            "replies": [one.replies for one in rounds],
            "server_accuracy": (scores or {}).get("accuracy"),
            "client_accuracy": statistics.mean(one.metrics["accuracy"] for one in clients),
            "server_peak_mib": peak / 2**20,
            "bytes_up_a_reply": sum(one.bytes_up for one in rounds)
            / sum(one.replies for one in rounds),
        }

    def _start(self, number: int) -> None:
        command = [
            *(sys.executable, "-m", "retort", "client", "join", self.found.id),
            *("--url", self.retort.url, "--data", str(self.data_folder / f"data-{number}")),
            *("--folder", str(self.folder / f"client-{number}"), "--device", "cpu"),
        ]
        variables = {"RETORT_CLIENT_KEY": self.keys[number], "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{number}.log").open("ab") as log:
            self.processes[number] = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=log, stderr=log
            )

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
            for process in self.processes.values():
                process.wait(60)
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()


def round_seconds(one: types.FederationRound) -> float:
    """Return how long a round took, from its task to its consensus."""
    if one.opened_at is None or one.published_at is None:
        raise ValueError(f"round {one.number} was not published")
    return (one.published_at - one.opened_at).total_seconds()


def server_bytes() -> int:
    """Return the memory of all processes of the service: resident sets, shared pages twice."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not {"client", CLIENT_MODULE} & set(process.cmdline()):
                total += process.memory_info().rss
    return total


CLIENT_MODULE = "workers.distill.run.client_process"


if __name__ == "__main__":
    main()

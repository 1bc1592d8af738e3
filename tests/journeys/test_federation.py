"""Federations with real clients in processes of their own, some of which are killed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from retort import errors, types
from retort.client import Client
from tests import waiting
from tests.journeys.stacks import ON_EMBEDDED, PATIENCE_SECONDS, Stack
from workers.distill.data.builtin import digits as handwritten
from workers.distill.networks import weights

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

PARTIES = 2
ROUNDS = 3


def digits(seed: int, count: int) -> dict[str, Any]:
    """Return arrays of so many handwritten digits."""
    pixels, labels = handwritten.read()
    chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
    return {"x_train": pixels[chosen, ..., None], "y_train": labels[chosen]}


def submit(retort: Client, folder: Path) -> types.Federation:
    """Submit a federated job on an open set of digits, and return its federation."""
    path = folder / "open.npz"
    np.savez(path, **digits(99, 200))
    upload = retort.uploads.send(path, purpose="dataset")
    made = retort.datasets.register("open-digits", upload, format="npz", task="classification")
    reference = retort.datasets.wait(made.name, made.version, timeout=PATIENCE_SECONDS).reference
    job = retort.jobs.submit(
        {
            "name": "remote-dsfl",
            "student": {"network": "retort/convnet", "arguments": {"widths": [8, 16]}},
            "dataset": reference,
            "method": {
                "name": "dsfl",
                "federation": {"clients": "remote", "min_clients": PARTIES},
            },
            "training": {"epochs": ROUNDS, "batch_size": 32},
            "report": False,
        }
    )
    return next(retort.federations.list(job=job.id))


class Parties:
    """The programs of the clients."""

    def __init__(self, stack: Stack, found: types.Federation, folder: Path, keys: list[str]):
        self.stack = stack
        self.federation_id = found.id
        self.folder = folder
        self.keys = keys
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int) -> None:
        """Start a client, or start it again."""
        path = self.folder / f"{number}.npz"
        if not path.exists():
            np.savez(path, **digits(number, 60))
        command = [
            *(sys.executable, "-m", "retort", "client", "join", self.federation_id),
            *("--url", self.stack.url, "--data", str(path)),
            *("--folder", str(self.folder / f"client-{number}"), "--device", "cpu"),
        ]
        environment = {
            **os.environ,
            "RETORT_CLIENT_KEY": self.keys[number],
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / f"client-{number}.log").open("ab") as log:
            self.processes[number] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log
            )

    def kill(self, number: int) -> None:
        """Kill a client."""
        self.processes[number].kill()
        self.processes[number].wait()

    def wait(self) -> None:
        """Wait until all have ended well."""
        for number, process in self.processes.items():
            code = process.wait(PATIENCE_SECONDS)
            assert code == 0, (self.folder / f"client-{number}.log").read_text()[-2000:]

    def stop(self) -> None:
        """Kill those that still run."""
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextlib.contextmanager
def parties(
    stack: Stack, retort: Client, found: types.Federation, folder: Path
) -> Iterator[Parties]:
    """Invite and start all clients."""
    keys = [
        retort.federations.invite(found.id, f"party {number}").client_key
        for number in range(PARTIES)
    ]
    started = Parties(stack, found, folder, keys)
    try:
        for number in range(PARTIES):
            started.start(number)
        yield started
    finally:
        started.stop()


def has_opened(retort: Client, federation_id: str, number: int) -> Callable[[], bool]:
    def has() -> bool:
        try:
            found = retort.federations.get(federation_id)
        except errors.ConnectionFailed:  # it was killed, and is about to be started again
            return False
        assert not found.is_final, found
        return found.round >= number

    return has


def kill(stack: Stack, *words: str) -> None:
    """Kill the processes of the service whose command line has these words."""
    (top,) = stack.processes.values()
    killed = 0
    for process in psutil.Process(top.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if all(any(word in part for part in process.cmdline()) for word in words):
                process.send_signal(signal.SIGKILL)
                killed += 1
    assert killed, words


@ON_EMBEDDED
class TestRemoteClients:
    def test_lose_nothing_when_server_worker_broker_or_a_client_are_killed_in_a_round(
        self, stack: Stack, retort: Client, tmp_path: Path
    ):
        found = submit(retort, tmp_path)
        with parties(stack, retort, found, tmp_path) as started:
            waiting.until(has_opened(retort, found.id, 1), "round 1 is open")
            kill(stack, "api.server")
            kill(stack, "redis")
            waiting.until(has_opened(retort, found.id, 2), "round 2 is open")
            stack.kill_worker_and_engine()
            started.kill(0)
            started.start(0)
            started.wait()
        ended = retort.jobs.wait(found.job, timeout=PATIENCE_SECONDS)
        assert ended.state == "succeeded", ended
        assert ended.attempt == 2
        rounds = retort.federations.rounds(found.id)
        assert [one.number for one in rounds] == list(range(1, ROUNDS + 1))
        assert {one.replies for one in rounds} == {PARTIES}
        clients = list(retort.federations.clients(found.id))
        assert {one.last_round for one in clients} == {ROUNDS}
        assert all(one.metrics["accuracy"] >= 0 for one in clients)
        path = retort.jobs.download_student(found.job, tmp_path / "student.safetensors")
        for model in (path, tmp_path / "client-0" / "model.safetensors"):
            network, _ = weights.rebuild(model)
            assert network.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        shown = stack.run("federation", "show", found.job)
        assert shown.returncode == 0, shown.stderr
        assert "party 1" in shown.stdout

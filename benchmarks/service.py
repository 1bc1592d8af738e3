"""What the service itself costs: start, memory, latency, and the overhead of a job.

    python -m benchmarks.service [--pairs 3] [--upload-mib 2048]

Everything is measured in one run on this machine: jobs through the service alternate with the
same recipe run by the engine alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import rich.console

from retort import client, types
from retort.cli import up

SPEC: dict[str, Any] = {
    "name": "benchmark",
    "student": {"network": "retort/resnet8"},
    "dataset": "digits@1",
    "method": {"name": "ce"},
    "training": {"epochs": 40},
    "report": False,
}


def main() -> None:
    """Measure, print the figures as JSON on stdout, and say on stderr what is going on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service")
    parser.add_argument("--pairs", type=int, default=3, help="jobs, each beside the engine alone")
    parser.add_argument("--upload-mib", type=int, default=2048, help="size of the upload")
    parser.add_argument("--port", type=int, default=8790)
    asked = parser.parse_args()
    say = rich.console.Console(stderr=True).print
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as name:
        folder = Path(name)
        say("API start and memory")
        figures: dict[str, Any] = {"api": _api(folder, asked.port + 1)}
        with (
            up.started(
                data_dir=folder / "data", host="127.0.0.1", port=asked.port, device="cpu"
            ) as service,
            client.Client(service.url, service.api_key) as retort,
        ):
            say("jobs, each beside the engine alone")
            figures["job"] = _jobs(retort, folder, asked.pairs)
            say(f"an upload of {asked.upload_mib} MiB")
            figures["upload"] = _upload(retort, service, folder, asked.upload_mib)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def _api(folder: Path, port: int) -> dict[str, Any]:
    """Start an API of its own three times; return seconds to the first answer, and memory."""
    seconds, memory = [], []
    for _ in range(3):
        with _lone_api(folder, port) as (process, started_seconds):
            seconds.append(started_seconds)
            memory.append(process.memory_info().rss / 2**20)
    return {"start_seconds": _spread(seconds), "resident_mib": _spread(memory)}


@contextmanager
def _lone_api(folder: Path, port: int) -> Iterator[tuple[psutil.Process, float]]:
    environment = {
        **os.environ,
        "RETORT_DATA_DIR": str(folder / "lone"),
        "RETORT_DATABASE_URL": f"sqlite:///{folder / 'lone.sqlite3'}",
        "RETORT_STORAGE_URL": (folder / "lone").as_uri(),
        "RETORT_CURSOR_SECRET": "of no importance in a benchmark",
    }
    command = [sys.executable, "-m", "api.server"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "error"],
        env=environment,
        stderr=subprocess.DEVNULL,
    ) as child:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.005)
        yield psutil.Process(child.pid), time.perf_counter() - began
        child.terminate()


def _jobs(retort: client.Client, folder: Path, pairs: int) -> dict[str, Any]:
    """Alternate jobs with the engine alone, after one of each that is not counted."""
    waited, through, alone, starts, slower = [], [], [], [], []
    recipe = None
    for index in range(pairs + 1):
        job = retort.jobs.wait(retort.jobs.submit(SPEC).id, poll_seconds=0.1)
        if job.state != "succeeded":
            raise RuntimeError(f"the benchmark's job {job.state}: {job.failure}")
        recipe = recipe or _recipe(job, folder)
        engine_seconds, engine_rate = _engine_alone(recipe)
        if index == 0 or job.result is None:
            continue
        waited.append(_seconds(job, "queued_at", "started_at"))
        through.append(_seconds(job, "created_at", "finished_at"))
        alone.append(engine_seconds)
        starts.append(through[-1] - (job.result.wall_seconds or 0.0))
        slower.append(100 * (1 - (job.result.images_per_second or 0.0) / engine_rate))
    overhead = [service - engine for service, engine in zip(through, alone, strict=True)]
    return {
        "submit_to_running_seconds": _spread(waited),
        "job_seconds": _spread(through),
        "engine_alone_seconds": _spread(alone),
        "overhead_seconds": _spread(overhead),
        "outside_training_seconds": _spread(starts),
        "throughput_lost_percent": _spread(slower),
    }


def _seconds(job: types.Job, since: str, until: str) -> float:
    seconds: float = (getattr(job, until) - getattr(job, since)).total_seconds()
    return seconds


def _recipe(job: types.Job, folder: Path) -> Path:
    """Write the recipe that the worker made of the job, and the data set, into a folder."""
    workdir = folder / "engine"
    workdir.mkdir()
    request = workdir / "request.json"
    request.write_text(json.dumps({"kind": "builtin", "name": "digits"}))
    prepare = [sys.executable, "-m", "workers.distill.inspection.uploads", str(request)]
    subprocess.run([*prepare, "--workdir", str(workdir)], check=True, stdout=subprocess.DEVNULL)
    dataset = json.loads((workdir / "dataset" / "dataset.json").read_text())
    recipe = {
        "version": 1,
        "task": job.spec["task"],
        "teacher": None,
        "student": {
            "network": job.spec["student"]["network"],
            "arguments": job.spec["student"]["arguments"],
            "classes": len(dataset["classes"]),
            "input": dataset["input"],
        },
        "initial": False,
        "method": job.spec["method"],
        "training": job.spec["training"],
        "baseline": False,
        "report": job.spec["report"],
        "accelerator": "cpu",
        "provenance": {},
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


def _engine_alone(recipe: Path) -> tuple[float, float]:
    """Return seconds from start to end, and images a second while training."""
    with tempfile.TemporaryDirectory(dir=recipe.parent.parent) as name:
        (Path(name) / "dataset").symlink_to(recipe.parent / "dataset")
        command = [sys.executable, "-m", "workers.distill", str(recipe), "--workdir", name]
        began = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - began
    return seconds, float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])


def _upload(
    retort: client.Client, service: up.LocalService, folder: Path, mib: int
) -> dict[str, Any]:
    """Upload a large file and watch the memory of the API process."""
    path = folder / "large.bin"
    block = os.urandom(2**20)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + block[8:])
    api = next(part for part in service.parts if part.name == "api")
    if api.process is None:
        raise RuntimeError("the API is not running")
    process = psutil.Process(api.process.pid)
    before = process.memory_info().rss
    highest, done = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    retort.uploads.send(path, purpose="dataset")
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return {
        "mib": mib,
        "seconds": round(seconds, 1),
        "mib_per_second": round(mib / seconds, 1),
        "resident_before_mib": round(before / 2**20, 1),
        "resident_highest_mib": round(highest / 2**20, 1),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


if __name__ == "__main__":
    main()

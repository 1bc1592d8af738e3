"""Small working folders for the engine: a learnable set, a recipe, and ways to run it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests import waiting
from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.networks import catalog, weights
from workers.distill.run import run
from workers.distill.runtime import events, signals

ROOT = Path(__file__).parents[2]
NETWORK = "retort/resnet8"
INPUT = {"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.3]}
COUNTS = {"train": 41, "validation": 12, "test": 20}
SEARCHED = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SEARCHED}


def images(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy pictures, each with a bright row whose place is its class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(count), 0, 2 * labels + 1] = 250
    return pixels, labels


def network(classes: int = 3, **changes: Any) -> dict[str, Any]:
    """Return a recipe's choice of a network."""
    return {"network": NETWORK, "arguments": {}, "classes": classes, "input": INPUT, **changes}


def make_dataset(folder: Path, classes: int = 3, counts: dict[str, int] | None = None) -> None:
    """Write the set in its canonical form."""
    sizes = counts or COUNTS
    record = dataset.DatasetRecord(
        classes=[f"row {number}" for number in range(classes)],
        splits=sizes,
        input=Input.model_validate(INPUT),
    )
    dataset.write(folder, record, {name: images(sizes[name], classes, len(name)) for name in sizes})


def teacher(folder: Path, classes: int = 3) -> None:
    """Write the weights of an untrained network as a teacher."""
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    built = catalog.build(NETWORK, classes=classes, channels=1, height=8, width=8, arguments={})
    weights.save_student(folder / "model.safetensors", built, {"format": "pt"})


def prepare(workdir: Path, **changes: Any) -> Path:
    """Write a whole working folder, and return the path of its recipe."""
    make_dataset(workdir / "dataset")
    training = {"epochs": 3, "batch_size": 8, **changes.pop("training", {})}
    recipe = {
        "version": 1,
        "task": "classification",
        "teacher": network(),
        "student": network(),
        "method": {"name": "dkd", "warmup_epochs": 2},
        "training": training,
        "report": False,
        "accelerator": "cpu",
        "provenance": {"job": "job_1", "attempt": 1, "teacher": "rows@1"},
        **changes,
    }
    if recipe["teacher"] is not None:
        teacher(workdir / "teacher", recipe["teacher"]["classes"])
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


def start(recipe_path: Path) -> subprocess.Popen[str]:
    """Start the engine in a fresh interpreter."""
    workdir = recipe_path.parent
    with (workdir / "stderr.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "workers.distill", recipe_path, "--workdir", workdir],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=workdir,
            env=ENVIRONMENT,
        )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Wait for the engine, and return its exit code and the lines not yet read."""
    with process:
        try:
            output, _ = process.communicate(timeout=2 * waiting.PATIENCE_SECONDS)
        finally:
            process.kill()  # of one that has ended: nothing
    return process.returncode, [json.loads(line) for line in output.splitlines()]


class StopsAt(signals.Stop):
    """Asked to stop when the loop looks for the so-and-so-many-th time."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self.looks_left = look

    def check(self) -> None:
        """Raise `Interrupted` at that look."""
        self.looks_left -= 1
        if self.looks_left == 0:
            raise errors.Interrupted


def run_here(
    recipe_path: Path, stop: signals.Stop | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Carry a recipe out in this process, and return exit code and lines."""
    path = recipe_path.parent / "lines.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        code = run.execute(
            recipe_path, recipe_path.parent, events.Reporter(descriptor), stop or signals.Stop()
        )
    finally:
        os.close(descriptor)
    return code, [json.loads(line) for line in path.read_text().splitlines()]


def of_type(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the lines of a type."""
    return [line for line in lines if line["type"] == kind]

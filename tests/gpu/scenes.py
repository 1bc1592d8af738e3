"""The same recipe on the device and on the CPU, and how far the two students are apart."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests.distill import folders
from workers.distill.networks import catalog, weights

DEVICE = os.environ.get("RETORT_TEST_DEVICE", "cuda")
TRAINING: dict[str, Any] = {
    "epochs": 1,
    "max_steps": 2,
    "batch_size": 8,
    "checkpoint_seconds": 1000,
    "precision": "float32",
    "compile": "off",
}
"""Explicit where `auto` would choose differently on each device."""


@dataclass(frozen=True)
class Outcome:
    """What a run has printed, and the student that it has left."""

    workdir: Path
    # Any: JSON. Too long to be shown where a test fails.
    lines: list[dict[str, Any]] = field(repr=False)

    @property
    def result(self) -> dict[str, Any]:
        """Return the last line."""
        return self.lines[-1]

    @property
    def student(self) -> dict[str, torch.Tensor]:
        """Return the student's weights and statistics."""
        return floats(self.workdir / "student.safetensors")


def is_available() -> bool:
    """Whether there is a device to test."""
    return DEVICE == "cpu" or torch.cuda.is_available()


def floats(path: Path) -> dict[str, torch.Tensor]:
    """Return the floating-point tensors of a file, in float64."""
    content = safetensors.torch.load_file(path)
    return {name: t.double() for name, t in content.items() if t.is_floating_point()}


@contextlib.contextmanager
def surroundings(*, on_device: bool) -> Iterator[None]:
    """Undo what an earlier run has set for its process.

    Where the CPU takes the place of the device, it does so with other kernels than its usual ones:
    they round differently, as a device does.
    """
    torch.use_deterministic_algorithms(False)
    if not on_device or DEVICE != "cpu":
        yield
        return
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)


def prepare(workdir: Path, accelerator: str, **changes: Any) -> Path:
    """Write a working folder whose student starts from given weights."""
    training = {**TRAINING, **changes.pop("training", {})}
    start(workdir / "initial")
    return folders.prepare(
        workdir, accelerator=accelerator, initial=True, training=training, **changes
    )


def start(folder: Path) -> Path:
    """Write the weights that students start from."""
    folder.mkdir(parents=True)
    torch.manual_seed(11)
    network = catalog.build(folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={})
    path = folder / "model.safetensors"
    weights.save_student(path, network, {"format": "pt"})
    return path


def run(path: Path, *, on_device: bool) -> Outcome:
    """Carry out a recipe, or those of a group."""
    with surroundings(on_device=on_device):
        code, lines = folders.run_here(path)
    assert code == 0, lines[-1]
    started = folders.of_type(lines, "started")[0]
    assert started["device"] == (DEVICE if on_device else "cpu")
    return Outcome(path.parent, lines)


def parsed(output: str) -> list[dict[str, Any]]:
    """Return the lines that a process has printed."""
    return [json.loads(line) for line in output.splitlines()]


def on_device(workdir: Path, **changes: Any) -> Outcome:
    """Carry a recipe out on the device."""
    return run(prepare(workdir, DEVICE, **changes), on_device=True)


def on_both(workdir: Path, **changes: Any) -> tuple[Outcome, Outcome]:
    """Carry a recipe out on the device, then on the CPU."""
    outcome = on_device(workdir / "device", **changes)
    expected = prepare(workdir / "cpu", "cpu", **changes)
    return outcome, run(expected, on_device=False)


def distance(
    actual: Outcome | dict[str, torch.Tensor], expected: Outcome, initial: Path | None = None
) -> float:
    """Return how far two students are apart, as a share of how far they came from the start."""
    mine = actual.student if isinstance(actual, Outcome) else actual
    theirs = expected.student
    assert mine.keys() == theirs.keys()
    begun = floats(initial or expected.workdir / "initial" / "model.safetensors")
    apart = sum(float((mine[name] - theirs[name]).square().sum()) for name in theirs)
    came = sum(
        float((theirs[name] - begun.get(name, torch.zeros(()))).square().sum()) for name in theirs
    )
    return (apart / came) ** 0.5

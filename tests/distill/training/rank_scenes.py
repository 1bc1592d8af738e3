"""Every method for a few steps on two ranks, and on one process with the same batch.

`python -m tests.distill.training.rank_scenes FOLDER` writes `FOLDER/differences.json`: by method
and by how it was run, the largest relative difference of losses and of parameters. In float64, so
that rounding is far below any mistake (losses are reported in float32); the slices are uneven.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.distill.methods.test_every_method import NAMES, Scene
from workers.distill.config.descriptions import FEATURES
from workers.distill.config.devices import AcrossDevices, Share
from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment
from workers.distill.methods.combination import NAME as COMBINE
from workers.distill.runtime import events, rank_processes, signals
from workers.distill.runtime.precision import Precision
from workers.distill.runtime.ranks import ALONE, Ranks, join
from workers.distill.training.meters import LossMeter
from workers.distill.training.optimizers import TrainOptimizer
from workers.distill.training.parallel import Parallel, SharedNorms, gathers_maps
from workers.distill.training.step import DistillationStep
from workers.distill.training.teachers import OnlineTeacher

RANKS = 2
STEPS = 3
CPU = torch.device("cpu")
DIFFERENCES = "differences.json"
COUNTEREXAMPLE = "rkd"
"""Compares the images of a batch with each other, so that slices of it give another loss."""
TRAINING = expand({"optimizer": {"learning_rate": 0.01}, "schedule": {"name": "constant"}})


class DoublePreprocessor(Preprocessor):
    """Gives images in float64."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return normalised images."""
        return super().__call__(images).double()


def names() -> list[str]:
    """Return the methods that run on several devices, on the task that their scene is of."""
    several = [name for name in NAMES if catalog.METHODS[name].across_devices != "one"]
    return [
        *(name for name in several if set(catalog.METHODS[name].tasks) != {"detection"}),
        COMBINE,
    ]


def declared(name: str) -> AcrossDevices:
    """Return what a method of `names` declares."""
    return "gathers" if name == COMBINE else catalog.METHODS[name].across_devices


def ways(name: str) -> list[AcrossDevices]:
    """Return how a method is run: gathered in any case, and on slices where it declares that."""
    if declared(name) == "slices" or name == COUNTEREXAMPLE:
        return ["gathers", "slices"]
    return ["gathers"]


def train(name: str, ranks: Ranks, *, gathers: bool, synchronise: bool = True) -> dict[str, Tensor]:
    """Make a few steps, and return the losses and all parameters and running statistics."""
    scene = Scene(name)
    student, teacher, method = scene.student, scene.teacher, scene.method
    for module in (student, teacher, method):
        module.double()
    student.train()
    method.train()
    size = Input.model_validate(scene.input)
    preprocess = DoublePreprocessor("student", size, size, CPU)
    parallel = Parallel(ranks, gathers=gathers, with_maps=gathers_maps(method))
    norms = SharedNorms([student] if gathers else [student, method], ranks, synchronise=synchronise)
    precision = Precision("float32", CPU)
    step = DistillationStep(
        student,
        method,
        OnlineTeacher(teacher.observe, preprocess, precision, keeps=FEATURES),
        preprocess,
        precision,
        parallel=parallel,
    )
    optimizer = TrainOptimizer([student, method], TRAINING, precision, ranks)
    meter = LossMeter(CPU, ranks=ALONE if gathers else ranks)
    torch.manual_seed(5)
    whole = scene.batch
    batch = whole.part(*ranks.share.bounds(0, len(whole.labels)))
    results: dict[str, Tensor] = {}
    for number in range(1, STEPS + 1):
        moment = Moment(epoch=1, step=number, steps_per_epoch=STEPS)
        output = step(batch, moment)
        total = optimizer.step(output.terms, moment)
        norms.average()
        method.after_step(moment)
        meter.update(number, total, output.terms)
        losses = meter.compute_and_reset()
        results |= {f"loss {key} of step {number}": torch.tensor(losses[key]) for key in losses}
    norms.release()
    for module in (student, method):
        results |= {
            f"{type(module).__name__}.{key}": value.clone()
            for key, value in module.state_dict().items()
            if value.is_floating_point()
        }
    return results


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Any]:
    """Return the largest differences, relative to the largest value of a tensor, and where."""
    worst = {"losses": (0.0, ""), "parameters": (0.0, "")}
    for key, value in one.items():
        kind = "losses" if key.startswith("loss ") else "parameters"
        scale = max(float(value.abs().max()) if value.numel() else 0.0, 1e-3)
        found = float((value - other[key]).abs().max()) / scale if value.numel() else 0.0
        if not found <= worst[kind][0]:
            worst[kind] = (found, key)
    return worst


def require_equal(ranks: Ranks, results: dict[str, Tensor]) -> None:
    """Raise ValueError unless both ranks have the same losses and weights, bit for bit."""
    first = ranks.from_first(results)
    differs = [key for key, value in results.items() if not torch.equal(value, first[key])]
    if not ranks.from_all(not differs):
        raise ValueError(f"the ranks differ in {differs}")


def compare(share: Share, folder: Path, only: list[str]) -> int:
    """Run every method in this rank; the first one compares, and writes what it finds."""
    torch.set_num_threads(1)
    ranks = join(share, folder / "meeting", CPU)
    found: dict[str, Any] = {}
    for name in only or names():
        for way in ways(name):
            together = train(name, ranks, gathers=way == "gathers")
            require_equal(ranks, together)
            if ranks.is_first:
                alone = train(name, ALONE, gathers=False)
                found[f"{name} {way}"] = difference(alone, together)
    # Each normalises its own slice; what is kept is the same on both all the same.
    require_equal(ranks, train("kd", ranks, gathers=True, synchronise=False))
    if ranks.is_first:
        (folder / DIFFERENCES).write_text(json.dumps(found))
    return 0


def main() -> int:
    """Run two ranks."""
    folder, only = Path(sys.argv[1]), sys.argv[2:]
    reporter = events.open_stream()
    processes = rank_processes.RankProcesses(RANKS, reporter, signals.Stop())
    return processes.run(lambda rank: compare(Share(rank, RANKS), folder, only))


if __name__ == "__main__":
    sys.exit(main())

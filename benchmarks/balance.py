"""What measuring and balancing two gradients costs beside the step that it belongs to.

    python -m benchmarks.balance [--steps 40] [--methods at,rkd,reviewkd] [--large]

Every step is timed in two parts, one right after the other: the measurement, and all the rest. The
median of their ratios, times how often a training measures, is the cost. Times are of the
processor, on one thread.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import torch

from workers.distill.config.training import expand
from workers.distill.data.types import Batch
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment
from workers.distill.networks import catalog as networks
from workers.distill.runtime.precision import Precision
from workers.distill.training import balance
from workers.distill.training.balance import EVERY, FIRST
from workers.distill.training.optimizers import TrainOptimizer

Pair = tuple[str, dict[str, Any], str, dict[str, Any], int, int, int]
CPU = torch.device("cpu")
SMALL: Pair = ("retort/resnet20", {}, "retort/resnet8", {"widths": [4, 4, 8, 16]}, 1, 8, 10)
LARGE: Pair = ("retort/resnet32x4", {}, "retort/resnet8x4", {}, 3, 32, 100)
"""Teacher and its arguments, student and its arguments, channels, side, classes."""
SHORT_STEPS = 300
WARM_STEPS = 3


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balance")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--methods", default="at,rkd,dist,reviewkd")
    parser.add_argument("--large", action="store_true", help="the networks of CIFAR-100")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.methods.split(","):
        ratios = measured_ratios(name, asked.steps, large=asked.large)
        ratio = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios)
        short = ratio * (FIRST + SHORT_STEPS // EVERY) / SHORT_STEPS
        sys.stdout.write(
            f"{name}: a measurement takes {ratio:.2f} of a step ({low:.2f} to {high:.2f}): "
            f"{ratio / EVERY:.1%} of a long training, {short:.1%} of {SHORT_STEPS} steps\n"
        )


def measured_ratios(name: str, count: int, *, large: bool) -> list[float]:
    """Return the time of a measurement over that of the rest of its step, step by step."""
    teacher_name, given, student_name, chosen, channels, side, classes = LARGE if large else SMALL
    size = {"classes": classes, "channels": channels, "height": side, "width": side}
    student = networks.build(student_name, arguments=chosen, **size)
    teacher = networks.build(teacher_name, arguments=given, **size).eval()
    method = catalog.build({"name": name, "balance": "auto"}, student, teacher)
    measured = balance.of_method(method, student, CPU)
    if measured is None:
        raise SystemExit(f"method {name} has nothing to balance under auto")
    optimizer = TrainOptimizer([student, method], expand({}), Precision("float32", CPU))
    images, index = torch.randn(64, channels, side, side), torch.arange(64)
    batch = Batch(torch.zeros(64, channels, side, side).byte(), index % classes, index)
    found = []
    for _ in range(count + WARM_STEPS):
        began = time.process_time()
        with torch.no_grad():
            target = teacher.observe(images)
        moment = Moment(epoch=1, step=1, steps_per_epoch=1)  # one that is measured
        terms = method.terms(student.observe(images), target, batch, moment)
        forward = time.process_time()
        terms = measured(terms, moment, optimizer.scaled)
        weighed = time.process_time()
        optimizer.step(terms, moment)
        rest = forward - began + time.process_time() - weighed
        found.append((weighed - forward) / rest)
    return found[WARM_STEPS:]


if __name__ == "__main__":
    main()

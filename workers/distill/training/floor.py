"""The arithmetic of one training step alone, on a batch that is already on the device.

Teacher forward, student forward and backward; what a run spends beyond it is overhead.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from workers.distill.networks.interface import Network
from workers.distill.runtime import device
from workers.distill.runtime.precision import Precision
from workers.distill.training.optimizers import trainable_parameters


def forward(network: Network, images: Tensor, precision: Precision) -> Callable[[], object]:
    """Return a forward pass as it runs beside a student."""

    def run() -> object:
        with torch.inference_mode(), precision.autocast():
            return network.observe(images)

    return run


class Floor:
    """A student's arithmetic of one step, forward and backward, on a copy that learns nothing."""

    def __init__(self, student: Network, precision: Precision) -> None:
        self._student = copy.deepcopy(student).train()  # its running statistics move
        self._parameters = trainable_parameters([self._student])
        self._precision = precision

    def __call__(self, images: Tensor) -> None:
        """Compute a step's gradient, uncompiled."""
        with self._precision.autocast():
            features = self._student.observe(images)
        # A detector whose head classifies proposals has no logits of its own.
        outputs = (features.logits, features.pooled)
        total = torch.stack([output.float().sum() for output in outputs]).sum()
        torch.autograd.grad(total, self._parameters, allow_unused=True)


def floor_seconds(
    student: Network,
    images: Tensor,
    teacher: Callable[[], object] | None,
    precision: Precision,
) -> float:
    """Return the seconds that the arithmetic of one step takes, uncompiled."""
    floor = Floor(student, precision)

    def step() -> None:
        if teacher is not None:
            teacher()
        floor(images)

    return device.median_seconds(step, images.device)

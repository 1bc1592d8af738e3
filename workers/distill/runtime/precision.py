"""Number formats: which one a run computes in, and the context in which networks compute in it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.training import Training

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """The number format of the networks' arithmetic; weights and losses stay float32."""

    name: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which networks compute at this precision."""
        context: AbstractContextManager[None] = torch.autocast(
            self.device.type, dtype=_DTYPES[self.name], enabled=self.name != "float32"
        )
        return context


def choose_precision(training: Training, device: torch.device) -> Precision:
    """Resolve `auto`: bfloat16 on CUDA, float32 on the CPU.

    Raises `BadRecipe` for a format that the device does not have.
    """
    errors.refuse(rules.of_precision(training.model_dump(), device.type))
    name: str = training.precision
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return Precision(name, device)

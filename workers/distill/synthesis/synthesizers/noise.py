"""Images of noise: nothing is optimised."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill.config.synthesis import NoiseSynthesis
from workers.distill.methods.base import Terms
from workers.distill.methods.datafree.base import BufferStats
from workers.distill.synthesis.synthesizers.base import (
    SynthesisContext,
    SynthesisResult,
    unchanged,
)


class NoiseSynthesizer:
    """Draws images of Gaussian or uniform noise."""

    def __init__(self, context: SynthesisContext) -> None:
        self._context = context
        self._distribution = context.budget_of(NoiseSynthesis).distribution
        self._call: int | None = None
        self._buffer: BufferStats | None = None

    @property
    def steps_done(self) -> int | None:
        """Return 0 in an open call, which has no optimizer steps, and None between calls."""
        return None if self._call is None else 0

    def start_round(self, call: int) -> None:
        """Open a call."""
        self._call = call

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Return a loss of zero without terms."""
        self._buffer = buffer
        return torch.zeros((), device=self._context.device), {}

    @torch.no_grad()
    def finish_round(self) -> SynthesisResult:
        """Return one batch of noise for the buffer."""
        if self._call is None or self._buffer is None:
            raise RuntimeError("no call of synthesis is open")
        images = self.sample(self._context.budget.batch_size)
        targets = self._context.targets(len(images))
        last = self._context.forward(
            images,
            targets,
            buffer=self._buffer,
            call=self._call,
            uses_student=False,
            augment=unchanged,
        )
        self._call = self._buffer = None
        return SynthesisResult(images, targets, last)

    def sample(self, count: int) -> Float[Tensor, "N c h w"]:
        """Return new noise; Gaussian pixels are not clamped to 0..1."""
        context = self._context
        shape = (count, *context.method.image_shape)
        if self._distribution == "uniform":
            return torch.rand(shape).to(context.device)
        noise = torch.randn(shape).to(context.device)
        return noise * context.per_channel(context.std) + context.per_channel(context.mean)

    def state(self) -> dict[str, Any]:
        """Return the number of the open call."""
        return {"call": self._call}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self._call = state["call"]

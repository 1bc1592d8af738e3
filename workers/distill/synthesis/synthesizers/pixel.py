"""Pixels themselves, optimised from noise (DeepInversion)."""

from typing import Any

import torch
from torch import Tensor, nn

from workers.distill.config.synthesis import PixelSynthesis
from workers.distill.methods.base import Terms
from workers.distill.methods.datafree.base import BufferStats, SynthesisBatch
from workers.distill.synthesis.synthesizers.base import (
    LowestLoss,
    SynthesisContext,
    SynthesisResult,
    detached,
    detached_terms,
    optimizer_step,
    total_loss,
)


class PixelSynthesizer:
    """Optimises pixels in the teacher's normalised space; the call's best images are kept."""

    def __init__(self, context: SynthesisContext) -> None:
        self._context = context
        self._budget = budget = context.budget_of(PixelSynthesis)
        self._augment = context.random_roll(budget.shift)
        self._mean, self._std = context.per_channel(context.mean), context.per_channel(context.std)
        self._number: int | None = None
        self._step = 0
        self._targets = torch.empty(0, dtype=torch.int64)
        self._inputs = nn.Parameter(torch.empty(0))
        self._optimizer: torch.optim.Optimizer | None = None
        self._best = LowestLoss()
        self._last: SynthesisBatch | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the number of steps made in the open call, or None between calls."""
        return None if self._number is None else self._step

    def start_round(self, call: int) -> None:
        """Open a call with new targets and new noise."""
        method = self._context.method
        targets = method.targets(self._budget.batch_size)
        self._open(call, targets, torch.randn(len(targets), *method.image_shape))

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Update the pixels once and clamp them to the range of images.

        Returns the loss and its terms, detached.
        """
        context, optimizer = self._context, self._optimizer
        if optimizer is None or self._number is None:
            raise RuntimeError("no call of synthesis is open")
        self._last = None  # frees its graph before the next one is built
        images = self._inputs * self._std + self._mean
        batch = context.forward(
            images,
            self._targets,
            buffer=buffer,
            call=self._number,
            uses_student=uses_student,
            augment=self._augment,
        )
        terms = context.method.synthesis_terms(batch)
        loss = total_loss(terms)
        self._best.update(images.detach(), loss.detach())
        optimizer_step(optimizer, loss, clip_norm=None)
        with torch.no_grad():
            self._inputs.clamp_(-self._mean / self._std, (1 - self._mean) / self._std)
        self._step += 1
        self._last = batch
        return loss.detach(), detached_terms(terms)

    def finish_round(self) -> SynthesisResult:
        """Close the call and return its images of the lowest loss."""
        if self._last is None or self._best.images is None:
            raise RuntimeError("a call of synthesis ended before its first step")
        images = self._best.images.clamp(0, 1)
        result = SynthesisResult(images, self._targets, detached(self._last))
        self._number = self._optimizer = self._last = None
        self._best = LowestLoss()
        return result

    def sample(self, count: int) -> None:
        """Return None: the student gets the buffer's images."""

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        if self._optimizer is None:
            return {"number": None}
        return {
            "number": self._number,
            "step": self._step,
            "targets": self._targets,
            "inputs": self._inputs.detach(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best.images,
            "cost": self._best.loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self._number = None
        if state["number"] is None:
            return
        optimizer = self._open(state["number"], state["targets"], state["inputs"])
        optimizer.load_state_dict(state["optimizer"])
        self._step = state["step"]
        self._best.load(state["best"], state["cost"], self._context.device)

    def _open(self, number: int, targets: Tensor, inputs: Tensor) -> torch.optim.Optimizer:
        device, budget = self._context.device, self._budget
        self._number, self._step = number, 0
        self._targets = targets.to(device)
        self._inputs = nn.Parameter(inputs.to(device).clone())
        self._optimizer = torch.optim.Adam(
            [self._inputs], lr=budget.learning_rate, betas=(budget.beta1, budget.beta2), fused=True
        )
        self._best = LowestLoss()
        return self._optimizer

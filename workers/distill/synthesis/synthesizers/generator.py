"""One generator that is trained for the whole job (DAFL, ZSKT, DFAD, DFQ, MAD)."""

import copy
import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.methods.base import Terms
from workers.distill.methods.datafree.base import BufferStats, SynthesisBatch
from workers.distill.networks.generators import Generator
from workers.distill.synthesis.synthesizers.base import (
    SynthesisContext,
    SynthesisResult,
    detached,
    detached_terms,
    generator_adam,
    optimizer_step,
    total_loss,
    unchanged,
)
from workers.distill.training.ema import EMA


class GeneratorSynthesizer:
    """A generator with one optimizer; every step draws new latent vectors.

    The student gets new images at each of its steps.
    """

    def __init__(self, context: SynthesisContext) -> None:
        self._context = context
        self._budget = budget = context.budget_of(StreamSynthesis)
        self._generator = context.make_generator()
        groups = [{"params": list(self._generator.parameters())}]
        self._optimizer = generator_adam(budget, groups)
        self._augment = context.random_crop()
        self._ema_generator: Generator | None = None
        self._ema: EMA | None = None
        if budget.average_decay is not None:
            self._ema_generator = copy.deepcopy(self._generator)
            self._ema = EMA({"generator": self._generator}, budget.average_decay)
        self._call: int | None = None
        self._step = 0
        self._latent: Tensor | None = None
        self._images: Tensor | None = None
        self._last: SynthesisBatch | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the number of steps made in the open call, or None between calls."""
        return None if self._call is None else self._step

    def start_round(self, call: int) -> None:
        """Open a call."""
        self._call, self._step = call, 0

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Update the generator once on new images; return the loss and its terms, detached."""
        context = self._context
        if self._call is None:
            raise RuntimeError("no call of synthesis is open")
        self._last = None  # frees its graph before the next one is built
        self._generator.train()
        targets = context.targets(self._budget.batch_size)
        latent = self._generator.sample_latent(targets)
        images = context.generate(self._generator, latent)
        batch = context.forward(
            images,
            targets,
            buffer=buffer,
            call=self._call,
            uses_student=uses_student,
            augment=self._augment,
        )
        terms = context.method.synthesis_terms(batch)
        loss = total_loss(terms)
        optimizer_step(self._optimizer, loss, clip_norm=self._budget.clip_norm)
        self._step += 1
        self._latent, self._images, self._last = latent, images.detach(), batch
        return loss.detach(), detached_terms(terms)

    def finish_round(self) -> SynthesisResult:
        """Close the call and return the images of its last step."""
        if self._last is None or self._images is None:
            raise RuntimeError("a call of synthesis ended before its first step")
        last, self._last, self._call = detached(self._last), None, None
        if self._ema is not None:
            self._ema.update(last.call)
        # Without augmentation the last step's outputs are those of the images themselves. A call
        # has often no more than one step, so this saves much of its forward passes.
        reusable = last.second_view is None and self._augment is unchanged
        outputs = dataclasses.replace(last, student=None) if reusable else None
        return SynthesisResult(self._images, last.targets, last, outputs)

    def sample(self, count: int) -> Float[Tensor, "N c h w"]:
        """Return images of the generator's present weights, as the budget's `reuse` asks."""
        reuse = self._budget.reuse
        if reuse == "images" and self._images is not None:
            return self._images
        if reuse == "latent" and self._latent is not None:
            return self._generated(self._generator, self._latent)
        if self._ema_generator is None or self._ema is None:
            return self._generated(self._generator, self._sample_latent(count))
        self._ema.copy_to({"generator": self._ema_generator})
        own = self._generated(self._generator, self._sample_latent(count - count // 2))
        averaged = self._generated(self._ema_generator, self._sample_latent(count // 2))
        return torch.cat([own, averaged])

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "generator": self._generator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._ema is None else self._ema.state_dict(),
            "call": self._call,
            "step": self._step,
            "latent": self._latent,
            "images": self._images,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self._generator.load_state_dict(state["generator"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["average"])
        self._call, self._step = state["call"], state["step"]
        self._latent, self._images = (
            None if saved is None else saved.to(self._context.device)
            for saved in (state["latent"], state["images"])
        )

    def _sample_latent(self, count: int) -> Tensor:
        return self._generator.sample_latent(self._context.targets(count))

    @torch.no_grad()
    def _generated(self, generator: Generator, latent: Tensor) -> Tensor:
        generator.train()
        return self._context.generate(generator, latent)

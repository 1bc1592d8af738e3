"""A generator optimised together with the latent vectors of one batch.

CMI, Fast-DFKD, SSD-KD, NAYER, SpaceshipNet. The generator is new for each call, continues from
call to call, or is meta-learned: then each call optimises a copy of it.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workers.distill.config.synthesis import LatentSynthesis, MetaSynthesis
from workers.distill.methods.base import Terms
from workers.distill.methods.datafree.base import BufferStats, SynthesisBatch
from workers.distill.networks.generators import Generator
from workers.distill.synthesis.synthesizers.base import (
    BETA2,
    LowestLoss,
    SynthesisContext,
    SynthesisResult,
    detached,
    detached_terms,
    generator_adam,
    optimizer_step,
    total_loss,
)

REPTILE_SCALE = 67.0
"""Factor of the step from the meta-learned generator to its optimised copy (Fast-DFKD's code)."""


@dataclass
class _Call:
    """An open call: what it optimises, and the best images so far."""

    number: int
    targets: Int[Tensor, " N"]
    latent: Tensor
    generator: Generator
    optimizer: torch.optim.Optimizer
    best: LowestLoss = field(default_factory=LowestLoss)
    gradient_sums: list[Tensor] | None = None
    """Sums of the generator's gradients over the steps, for FOMAML."""
    step: int = 0
    last: SynthesisBatch | None = None


class LatentSynthesizer:
    """Optimises a generator and one batch of latent vectors; the call's best images are kept."""

    def __init__(self, context: SynthesisContext) -> None:
        self._context = context
        self._budget = budget = context.budget_of(LatentSynthesis)
        self._generator = context.make_generator()
        self._augment = context.random_crop()
        self._meta = budget.meta if isinstance(budget, MetaSynthesis) else "none"
        self._meta_optimizer: torch.optim.Optimizer | None = None
        if isinstance(budget, MetaSynthesis) and budget.meta != "none":
            rate = budget.meta_learning_rate or budget.learning_rate * budget.steps
            parameters = list(self._generator.parameters())
            self._meta_optimizer = torch.optim.Adam(
                parameters, lr=rate, betas=(budget.beta1, BETA2), fused=True
            )
        self._call: _Call | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the number of steps made in the open call, or None between calls."""
        return None if self._call is None else self._call.step

    def start_round(self, call: int) -> None:
        """Open a call: draw targets and latent vectors, and a new generator where due."""
        method, budget = self._context.method, self._budget
        if method.renews_at(call):
            self._generator.reset_parameters()
        if call == self._reset_call():
            self._generator.reset_first_layer()
        self._generator.start_round()
        targets = self._context.targets(budget.batch_size)
        self._call = self._opened(call, targets, self._generator.sample_latent(targets).detach())

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Update generator and latent vectors once; return the loss and its terms, detached."""
        context, call = self._context, self._call
        if call is None:
            raise RuntimeError("no call of synthesis is open")
        call.last = None  # frees its graph before the next one is built
        call.generator.train()
        images = context.generate(call.generator, call.latent)
        batch = context.forward(
            images,
            call.targets,
            buffer=buffer,
            call=call.number,
            uses_student=uses_student,
            augment=self._augment,
        )
        terms = context.method.synthesis_terms(batch)
        loss = total_loss(terms)
        call.best.update(images.detach(), loss.detach(), always=self._budget.keep == "last")
        optimizer_step(call.optimizer, loss, clip_norm=self._budget.clip_norm)
        if call.gradient_sums is not None:
            gradients = [_gradient(parameter) for parameter in call.generator.parameters()]
            torch._foreach_add_(call.gradient_sums, gradients)
        call.step += 1
        call.last = batch
        return loss.detach(), detached_terms(terms)

    def finish_round(self) -> SynthesisResult:
        """Close the call, make the meta-learning step if there is one, and return its images."""
        call, self._call = self._call, None
        if call is None or call.last is None or call.best.images is None:
            raise RuntimeError("a call of synthesis ended before its first step")
        self._meta_step(call)
        return SynthesisResult(call.best.images, call.targets, detached(call.last))

    def sample(self, count: int) -> None:
        """Return None: the student gets the buffer's images."""

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        call, learner = self._call, self._meta_optimizer
        return {
            "generator": self._generator.state_dict(),
            "learner": None if learner is None else learner.state_dict(),
            "call": None
            if call is None
            else {
                "number": call.number,
                "targets": call.targets,
                "latent": call.latent.detach(),
                "worker": None
                if call.generator is self._generator
                else call.generator.state_dict(),
                "optimizer": call.optimizer.state_dict(),
                "best": call.best.images,
                "cost": call.best.loss,
                "gathered": call.gradient_sums,
                "step": call.step,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self._generator.load_state_dict(state["generator"])
        if self._meta_optimizer is not None:
            self._meta_optimizer.load_state_dict(state["learner"])
        saved = state["call"]
        self._call = None
        if saved is None:
            return
        device = self._context.device
        call = self._opened(
            saved["number"], saved["targets"].to(device), saved["latent"].to(device)
        )
        if saved["worker"] is not None:
            call.generator.load_state_dict(saved["worker"])
        call.optimizer.load_state_dict(saved["optimizer"])
        call.step = saved["step"]
        call.best.load(saved["best"], saved["cost"], device)
        if saved["gathered"] is not None:
            call.gradient_sums = [sums.to(device) for sums in saved["gathered"]]
        self._call = call

    def _opened(self, number: int, targets: Tensor, latent: Tensor) -> _Call:
        budget = self._budget
        generator = self._generator if self._meta == "none" else copy.deepcopy(self._generator)
        groups: list[dict[str, Any]] = [{"params": list(generator.parameters())}]
        latent = latent.clone()
        if budget.latent_learning_rate > 0:
            latent.requires_grad_()
            groups.append({"params": [latent], "lr": budget.latent_learning_rate})
        for module, options in self._context.method.synthesis_modules().values():
            groups.append({"params": list(module.parameters()), **options})
        call = _Call(number, targets, latent, generator, generator_adam(budget, groups))
        if self._meta == "fomaml":
            call.gradient_sums = [torch.zeros_like(weight) for weight in generator.parameters()]
        return call

    def _meta_step(self, call: _Call) -> None:
        """Update the meta-learned generator by the call's gradients (FOMAML) or weights."""
        if self._meta_optimizer is None:
            return
        pairs = zip(self._generator.parameters(), call.generator.parameters(), strict=True)
        for place, (own, optimised) in enumerate(pairs):
            if call.gradient_sums is not None:
                own.grad = call.gradient_sums[place]
            else:
                own.grad = REPTILE_SCALE * (own.detach() - optimised.detach())
        self._meta_optimizer.step()
        self._meta_optimizer.zero_grad(set_to_none=True)
        # Running moments are no parameters: they are copied from the generator of the call.
        buffers = zip(self._generator.buffers(), call.generator.buffers(), strict=True)
        for own_buffer, updated in buffers:
            own_buffer.copy_(updated)

    def _reset_call(self) -> int | None:
        """Return the call before which the first layer is drawn anew, or None."""
        budget = self._budget
        if not isinstance(budget, MetaSynthesis) or budget.restart_epoch is None:
            return None
        return budget.warmup_calls + (budget.restart_epoch - 1) * budget.calls_per_epoch + 1


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

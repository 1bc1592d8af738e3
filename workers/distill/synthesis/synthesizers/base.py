"""How images are invented: what a synthesis call moves, step by step.

Each inverter moves something else against the same loss, a method's `synthesis_terms`: a generator
that learns all along (`Stream`), a generator with one batch of latent vectors (`Latent`), pixels
(`Pixels`), or nothing (`Noise`). All can be saved between any two steps, inside a call too.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.synthesis import (
    GeneratorSynthesis,
    LatentSynthesis,
    MetaSynthesis,
    NoiseSynthesis,
    PixelSynthesis,
    StreamSynthesis,
    Synthesis,
)
from workers.distill.data.loader import crop_padding
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.methods.base import Terms
from workers.distill.methods.datafree.base import (
    BufferStats,
    DataFreeMethod,
    ForwardResult,
    SynthesisBatch,
)
from workers.distill.networks import interface
from workers.distill.networks.generators import Generator
from workers.distill.networks.interface import Features, Network
from workers.distill.synthesis import augmentation
from workers.distill.training import optimizers
from workers.distill.training.ema import EMA

REPTILE = 67.0
"""Factor of the step from the meta-learned generator to its moved copy (Fast-DFKD's code)."""
BETA2 = 0.999
SECOND_AREA = 0.25
"""Smallest share of an image's area that its second view shows (CMI)."""

Augmentation: TypeAlias = Callable[[Tensor], Tensor]
"""What is done to images before the networks see them; gradients flow through it."""


@dataclass(frozen=True)
class SynthesisContext:
    """The networks, and how they see invented images."""

    method: DataFreeMethod
    teacher: Network
    student: Network
    teacher_view: Preprocessor
    student_view: Preprocessor
    precision: optimizers.Precision
    device: torch.device
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the teacher's normalisation."""
    flip: bool

    @property
    def budget(self) -> Synthesis:
        """Return the method's budget."""
        return self.method.params.synthesis

    def forward(
        self,
        images: Float[Tensor, "N c h w"],
        targets: Int[Tensor, " N"],
        *,
        buffer: BufferStats,
        call: int,
        uses_student: bool,
        change: Augmentation,
    ) -> SynthesisBatch:
        """Return what the networks show of images with pixels of 0..1; all leads back to them."""
        method, changed = self.method, change(images)
        seen = self.teacher_view(255 * changed)
        reads = method.uses_bn_statistics or method.uses_second_view
        student = second = None
        if uses_student:
            student = self._look(
                self.student,
                self.student_view(255 * changed),
                norms=method.uses_student_bn_statistics,
            )
        teacher = self._look(self.teacher, seen, norms=reads)
        if method.uses_second_view:
            cropped = augmentation.resized_crop(images, smallest=SECOND_AREA, flip=self.flip)
            second = self._look(self.teacher, self.teacher_view(255 * cropped), norms=reads)
        return SynthesisBatch(
            images=images,
            seen=seen,
            targets=targets,
            teacher=teacher,
            student=student,
            second=second,
            buffer=buffer,
            call=call,
        )

    def crops(self) -> Augmentation:
        """Return the change of `synthesis.augmentation`."""
        if self.budget.augmentation == "none":
            return unchanged
        _, height, width = self.method.image_shape
        pad_y, pad_x = crop_padding(height), crop_padding(width)
        return lambda images: augmentation.crop(images, pad_y=pad_y, pad_x=pad_x, flip=self.flip)

    def rolls(self, shift: int | None) -> Augmentation:
        """Return the change of DeepInversion: the whole batch rolls, and may be mirrored."""
        if self.budget.augmentation == "none":
            return unchanged
        _, height, width = self.method.image_shape
        most = crop_padding(min(height, width)) if shift is None else shift
        return lambda images: augmentation.roll(images, shift=most, flip=self.flip)

    def per_channel(self, values: tuple[float, ...]) -> Float[Tensor, "c 1 1"]:
        """Return a number for each channel, ready to meet images."""
        return torch.tensor(values, device=self.device)[:, None, None]

    def _look(self, network: Network, seen: Tensor, *, norms: bool) -> ForwardResult:
        with self.precision.autocast():
            if norms:
                shown, received = interface.observe_norms(network, seen)
            else:
                shown, received = network.observe(seen), ()
        if self.precision.name == "float32":
            return ForwardResult(shown, received)
        # Losses are sums over classes or moments over a batch: too much for 16 bits.
        return ForwardResult(
            dataclasses.replace(shown, logits=shown.logits.float(), pooled=shown.pooled.float()),
            tuple(dataclasses.replace(norm, received=norm.received.float()) for norm in received),
        )


def unchanged(images: Tensor) -> Tensor:
    """Return the images."""
    return images


@dataclass(frozen=True)
class SynthesisResult:
    """What a finished call leaves: its images with pixels of 0..1, and what they were to show."""

    images: Float[Tensor, "N c h w"]
    targets: Int[Tensor, " N"]
    last: SynthesisBatch
    """The call's last step, detached."""
    outputs: SynthesisBatch | None = None
    """What the teacher shows of these very images, unchanged; None where it is yet to look."""


class Synthesizer(Protocol):
    """Invents images, call by call."""

    @property
    def steps_done(self) -> int | None:
        """Return the steps made in the call that is open, or None between calls."""
        ...

    def start_round(self, call: int) -> None:
        """Open a call; calls count from 1."""
        ...

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Make a step of the open call, and return the loss and its terms, detached."""
        ...

    def finish_round(self) -> SynthesisResult:
        """End the call."""
        ...

    def sample(self, count: int) -> Float[Tensor, "N c h w"] | None:
        """Return new images for a student's step, or None where it is to see the buffer's."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        ...


def make(sight: SynthesisContext) -> Synthesizer:
    """Return the inverter that a method names."""
    budget = sight.budget
    match sight.method.synthesizer, budget:
        case "noise", NoiseSynthesis():
            return NoiseSynthesizer(sight, budget)
        case "stream", StreamSynthesis():
            return GeneratorSynthesizer(sight, budget)
        case "latent", LatentSynthesis():
            return LatentSynthesizer(sight, budget)
        case "pixels", PixelSynthesis():
            return PixelSynthesizer(sight, budget)
    raise TypeError(
        f"method {sight.method.name} has the synthesizer {sight.method.synthesizer!r} and a budget "
        f"for another ({type(budget).__name__})"
    )


class NoiseSynthesizer:
    """Images of noise; nothing is moved."""

    def __init__(self, sight: SynthesisContext, budget: NoiseSynthesis) -> None:
        self._sight = sight
        self._distribution = budget.distribution
        self._call: int | None = None
        self._buffer: BufferStats | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the steps made in the open call: none, as there are no others."""
        return None if self._call is None else 0

    def start_round(self, call: int) -> None:
        """Open a call."""
        self._call = call

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Do nothing that could be a loss."""
        self._buffer = buffer
        return torch.zeros((), device=self._sight.device), {}

    def finish_round(self) -> SynthesisResult:
        """Draw a batch to be shown."""
        if self._call is None or self._buffer is None:
            raise RuntimeError("no call of synthesis is open")
        images = self.sample(self._sight.budget.batch_size)
        targets = self._sight.method.targets(len(images)).to(self._sight.device)
        last = _examine_quietly(self._sight, images, targets, self._buffer, self._call)
        self._call = self._buffer = None
        return SynthesisResult(images, targets, last)

    def sample(self, count: int) -> Float[Tensor, "N c h w"]:
        """Draw images; Gaussian ones leave 0..1, as they must."""
        sight = self._sight
        shape = (count, *sight.method.image_shape)
        if self._distribution == "uniform":
            return torch.rand(shape).to(sight.device)
        drawn = torch.randn(shape).to(sight.device)
        return drawn * sight.per_channel(sight.std) + sight.per_channel(sight.mean)

    def state(self) -> dict[str, Any]:
        """Return the number of the open call."""
        return {"call": self._call}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._call = state["call"]


class GeneratorSynthesizer:
    """One generator with one optimizer for the whole job; every step draws new latent vectors.

    DAFL, ZSKT, DFAD, DFQ, MAD. The student sees new images at each of its steps.
    """

    def __init__(self, sight: SynthesisContext, budget: StreamSynthesis) -> None:
        self._sight = sight
        self._budget = budget
        self._generator = _on_device(sight.method.make_generator(), sight.device)
        self._optimizer = _adam(budget, [{"params": list(self._generator.parameters())}])
        self._change = sight.crops()
        self._mean: Generator | None = None
        self._average: EMA | None = None
        if budget.average_decay is not None:
            self._mean = copy.deepcopy(self._generator)
            self._average = EMA({"generator": self._generator}, budget.average_decay)
        self._call: int | None = None
        self._step = 0
        self._latent: Tensor | None = None
        self._images: Tensor | None = None
        self._last: SynthesisBatch | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the steps made in the open call."""
        return None if self._call is None else self._step

    def start_round(self, call: int) -> None:
        """Open a call."""
        self._call, self._step = call, 0

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Move the generator once, on new images."""
        sight, call = self._sight, _open(self._call)
        self._last = None  # its graph is let go before the next one is built
        self._generator.train()
        targets = sight.method.targets(self._budget.batch_size).to(sight.device)
        latent = self._generator.draw(targets)
        images = _generate(sight, self._generator, latent)
        shown = sight.forward(
            images,
            targets,
            buffer=buffer,
            call=call,
            uses_student=uses_student,
            change=self._change,
        )
        terms = sight.method.synthesis_terms(shown)
        total = _total(terms)
        _move(self._optimizer, total, self._budget.clip_norm)
        self._step += 1
        self._latent, self._images, self._last = latent, images.detach(), shown
        return total.detach(), {name: term.detach() for name, term in terms.items()}

    def finish_round(self) -> SynthesisResult:
        """End the call; its last images are shown, not learned from, unless they are reused."""
        if self._last is None or self._images is None:
            raise RuntimeError("a call of synthesis ended before its first step")
        last, self._last, self._call = _detached(self._last), None, None
        if self._average is not None:
            self._average.follow(last.call)
        # Unchanged images are not looked at again: a call has often no more than one step.
        seen = last.second is None and self._change is unchanged
        shown = dataclasses.replace(last, student=None) if seen else None
        return SynthesisResult(self._images, last.targets, last, shown)

    def sample(self, count: int) -> Float[Tensor, "N c h w"]:
        """Return images as the generator makes them by now."""
        reuse = self._budget.reuse
        if reuse == "images" and self._images is not None:
            return self._images
        if reuse == "latent" and self._latent is not None:
            return self._made(self._generator, self._latent)
        if self._mean is None or self._average is None:
            return self._made(self._generator, self._draw(count))
        self._average.lend_to({"generator": self._mean})
        own = self._made(self._generator, self._draw(count - count // 2))
        return torch.cat([own, self._made(self._mean, self._draw(count // 2))])

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        return {
            "generator": self._generator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else self._average.state(),
            "call": self._call,
            "step": self._step,
            "latent": self._latent,
            "images": self._images,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._generator.load_state_dict(state["generator"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.restore(state["average"])
        self._call, self._step = state["call"], state["step"]
        self._latent, self._images = (
            None if kept is None else kept.to(self._sight.device)
            for kept in (state["latent"], state["images"])
        )

    def _draw(self, count: int) -> Tensor:
        return self._generator.draw(self._sight.method.targets(count).to(self._sight.device))

    @torch.no_grad()
    def _made(self, generator: Generator, latent: Tensor) -> Tensor:
        generator.train()
        return _generate(self._sight, generator, latent)


@dataclass
class _Call:
    """A call of `Latent` that is open: what it moves, and the best that it has found."""

    number: int
    targets: Int[Tensor, " N"]
    latent: Tensor
    worker: Generator
    optimizer: torch.optim.Optimizer
    best: Float[Tensor, "N c h w"] | None = None
    cost: Float[Tensor, ""] | None = None
    gathered: list[Tensor] | None = None
    """Sums of the worker's gradients, where a generator is to learn from them."""
    step: int = 0
    last: SynthesisBatch | None = None


class LatentSynthesizer:
    """A generator moved together with the latent vectors of one batch, whose best images stay.

    CMI, Fast-DFKD, SSD-KD, NAYER, SpaceshipNet. The generator is drawn anew for each call, goes on
    from call to call, or is meta-learned: then each call moves a copy of it.
    """

    def __init__(self, sight: SynthesisContext, budget: LatentSynthesis) -> None:
        self._sight = sight
        self._budget = budget
        self._generator = _on_device(sight.method.make_generator(), sight.device)
        self._change = sight.crops()
        self._meta = budget.meta if isinstance(budget, MetaSynthesis) else "none"
        self._learner: torch.optim.Optimizer | None = None
        if isinstance(budget, MetaSynthesis) and budget.meta != "none":
            rate = budget.meta_learning_rate or budget.learning_rate * budget.steps
            parameters = list(self._generator.parameters())
            self._learner = torch.optim.Adam(
                parameters, lr=rate, betas=(budget.beta1, BETA2), fused=True
            )
        self._call: _Call | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the steps made in the open call."""
        return None if self._call is None else self._call.step

    def start_round(self, call: int) -> None:
        """Open a call: draw targets and latent vectors, and a new generator where due."""
        method, budget = self._sight.method, self._budget
        if method.renews_at(call):
            self._generator.restart()
        if call == self._restart_call():
            self._generator.restart_start()
        self._generator.renew()
        targets = method.targets(budget.batch_size).to(self._sight.device)
        self._call = self._opened(call, targets, self._generator.draw(targets).detach())

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Move generator and latent vectors once; remember the images if none cost less."""
        sight, call = self._sight, self._call
        if call is None:
            raise RuntimeError("no call of synthesis is open")
        call.last = None  # its graph is let go before the next one is built
        call.worker.train()
        images = _generate(sight, call.worker, call.latent)
        shown = sight.forward(
            images,
            call.targets,
            buffer=buffer,
            call=call.number,
            uses_student=uses_student,
            change=self._change,
        )
        terms = sight.method.synthesis_terms(shown)
        total = _total(terms)
        self._remember(call, images.detach(), total.detach())
        _move(call.optimizer, total, self._budget.clip_norm)
        if call.gathered is not None:
            gradients = [_gradient(parameter) for parameter in call.worker.parameters()]
            torch._foreach_add_(call.gathered, gradients)
        call.step += 1
        call.last = shown
        return total.detach(), {name: term.detach() for name, term in terms.items()}

    def finish_round(self) -> SynthesisResult:
        """End the call, and let the generator learn from it where it does."""
        call, self._call = self._call, None
        if call is None or call.last is None or call.best is None:
            raise RuntimeError("a call of synthesis ended before its first step")
        self._learn(call)
        return SynthesisResult(call.best, call.targets, _detached(call.last))

    def sample(self, count: int) -> None:
        """Return nothing: the student sees the buffer's images."""

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        call = self._call
        return {
            "generator": self._generator.state_dict(),
            "learner": None if self._learner is None else self._learner.state_dict(),
            "call": None
            if call is None
            else {
                "number": call.number,
                "targets": call.targets,
                "latent": call.latent.detach(),
                "worker": None if call.worker is self._generator else call.worker.state_dict(),
                "optimizer": call.optimizer.state_dict(),
                "best": call.best,
                "cost": call.cost,
                "gathered": call.gathered,
                "step": call.step,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._generator.load_state_dict(state["generator"])
        if self._learner is not None:
            self._learner.load_state_dict(state["learner"])
        saved = state["call"]
        self._call = None
        if saved is None:
            return
        device = self._sight.device
        call = self._opened(
            saved["number"], saved["targets"].to(device), saved["latent"].to(device)
        )
        if saved["worker"] is not None:
            call.worker.load_state_dict(saved["worker"])
        call.optimizer.load_state_dict(saved["optimizer"])
        call.step = saved["step"]
        if saved["best"] is not None:
            call.best, call.cost = saved["best"].to(device), saved["cost"].to(device)
        if saved["gathered"] is not None:
            call.gathered = [kept.to(device) for kept in saved["gathered"]]
        self._call = call

    def _opened(self, number: int, targets: Tensor, latent: Tensor) -> _Call:
        budget = self._budget
        worker = self._generator if self._meta == "none" else copy.deepcopy(self._generator)
        groups: list[dict[str, Any]] = [{"params": list(worker.parameters())}]
        moved = latent.clone()
        if budget.latent_learning_rate > 0:
            moved.requires_grad_()
            groups.append({"params": [moved], "lr": budget.latent_learning_rate})
        for module, differs in self._sight.method.synthesis_modules().values():
            groups.append({"params": list(module.parameters()), **differs})
        gathered = None
        if self._meta == "fomaml":
            gathered = [torch.zeros_like(parameter) for parameter in worker.parameters()]
        return _Call(number, targets, moved, worker, _adam(budget, groups), gathered=gathered)

    def _remember(self, call: _Call, images: Tensor, cost: Tensor) -> None:
        if call.best is None or call.cost is None or self._budget.keep == "last":
            call.best, call.cost = images, cost
            return
        better = cost < call.cost  # stays on the device: no step waits for it
        call.best = torch.where(better, images, call.best)
        call.cost = torch.where(better, cost, call.cost)

    def _learn(self, call: _Call) -> None:
        if self._learner is None:
            return
        pairs = zip(self._generator.parameters(), call.worker.parameters(), strict=True)
        for place, (own, moved) in enumerate(pairs):
            if call.gathered is not None:
                own.grad = call.gathered[place]
            else:
                own.grad = REPTILE * (own.detach() - moved.detach())
        self._learner.step()
        self._learner.zero_grad(set_to_none=True)
        # Running moments are no parameters: the generator takes those that its copy has seen.
        for own_buffer, seen in zip(self._generator.buffers(), call.worker.buffers(), strict=True):
            own_buffer.copy_(seen)

    def _restart_call(self) -> int | None:
        budget = self._budget
        if not isinstance(budget, MetaSynthesis) or budget.restart_epoch is None:
            return None
        return budget.warmup_calls + (budget.restart_epoch - 1) * budget.calls_per_epoch + 1


class PixelSynthesizer:
    """The pixels themselves, in the teacher's normalised space, from noise (DeepInversion)."""

    def __init__(self, sight: SynthesisContext, budget: PixelSynthesis) -> None:
        self._sight = sight
        self._budget = budget
        self._change = sight.rolls(budget.shift)
        self._mean, self._std = sight.per_channel(sight.mean), sight.per_channel(sight.std)
        self._number: int | None = None
        self._step = 0
        self._targets = torch.empty(0, dtype=torch.int64)
        self._inputs = nn.Parameter(torch.empty(0))
        self._optimizer: torch.optim.Optimizer | None = None
        self._best: Tensor | None = None
        self._cost: Tensor | None = None
        self._last: SynthesisBatch | None = None

    @property
    def steps_done(self) -> int | None:
        """Return the steps made in the open call."""
        return None if self._number is None else self._step

    def start_round(self, call: int) -> None:
        """Open a call with new targets and new noise."""
        method = self._sight.method
        targets = method.targets(self._budget.batch_size)
        self._open(call, targets, torch.randn(len(targets), *method.image_shape))

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Move the pixels once, and back into the range that images have."""
        sight, optimizer = self._sight, self._optimizer
        if optimizer is None or self._number is None:
            raise RuntimeError("no call of synthesis is open")
        self._last = None  # its graph is let go before the next one is built
        images = self._inputs * self._std + self._mean
        shown = sight.forward(
            images,
            self._targets,
            buffer=buffer,
            call=self._number,
            uses_student=uses_student,
            change=self._change,
        )
        terms = sight.method.synthesis_terms(shown)
        total = _total(terms)
        self._remember(images.detach(), total.detach())
        _move(optimizer, total, None)
        with torch.no_grad():
            self._inputs.clamp_(-self._mean / self._std, (1 - self._mean) / self._std)
        self._step += 1
        self._last = shown
        return total.detach(), {name: term.detach() for name, term in terms.items()}

    def finish_round(self) -> SynthesisResult:
        """End the call."""
        if self._last is None or self._best is None:
            raise RuntimeError("a call of synthesis ended before its first step")
        kept = SynthesisResult(self._best.clamp(0, 1), self._targets, _detached(self._last))
        self._number = self._optimizer = self._last = self._best = self._cost = None
        return kept

    def sample(self, count: int) -> None:
        """Return nothing: the student sees the buffer's images."""

    def state(self) -> dict[str, Any]:
        """Return everything that moves."""
        if self._optimizer is None:
            return {"number": None}
        return {
            "number": self._number,
            "step": self._step,
            "targets": self._targets,
            "inputs": self._inputs.detach(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "cost": self._cost,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._number = None
        if state["number"] is None:
            return
        optimizer = self._open(state["number"], state["targets"], state["inputs"])
        optimizer.load_state_dict(state["optimizer"])
        self._step = state["step"]
        if state["best"] is not None:
            self._best = state["best"].to(self._sight.device)
            self._cost = state["cost"].to(self._sight.device)

    def _open(self, number: int, targets: Tensor, inputs: Tensor) -> torch.optim.Optimizer:
        device, budget = self._sight.device, self._budget
        self._number, self._step = number, 0
        self._targets = targets.to(device)
        self._inputs = nn.Parameter(inputs.to(device).clone())
        self._optimizer = torch.optim.Adam(
            [self._inputs], lr=budget.learning_rate, betas=(budget.beta1, budget.beta2), fused=True
        )
        self._best = self._cost = None
        return self._optimizer

    def _remember(self, images: Tensor, cost: Tensor) -> None:
        if self._best is None or self._cost is None:
            self._best, self._cost = images, cost
            return
        better = cost < self._cost
        self._best = torch.where(better, images, self._best)
        self._cost = torch.where(better, cost, self._cost)


def _generate(sight: SynthesisContext, generator: Generator, latent: Tensor) -> Tensor:
    with sight.precision.autocast():
        images: Tensor = generator(latent)
    return images.float()


def _total(terms: Terms) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _adam(budget: GeneratorSynthesis, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    betas = (budget.beta1, BETA2)
    return torch.optim.Adam(groups, lr=budget.learning_rate, betas=betas, fused=True)


def _move(optimizer: torch.optim.Optimizer, total: Tensor, clip_norm: float | None) -> None:
    """Make a step against a loss; networks that are only looked through get no gradient."""
    if not total.requires_grad:
        raise errors.BadRecipe(
            "no term of the synthesis loss moves the images: their weights are 0, or the only one "
            "that is not waits for the student to learn; raise a weight, or set "
            "method.synthesis.warmup_calls to 0"
        )
    moved = list(_parameters(optimizer))
    gradients = torch.autograd.grad(total, moved, allow_unused=True)
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.grad = gradient
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(moved, clip_norm)
    optimizer.step()


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _open(call: int | None) -> int:
    if call is None:
        raise RuntimeError("no call of synthesis is open")
    return call


def _on_device(generator: Generator, device: torch.device) -> Generator:
    placed: Generator = generator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return placed


@torch.no_grad()
def _examine_quietly(
    sight: SynthesisContext, images: Tensor, targets: Tensor, buffer: BufferStats, call: int
) -> SynthesisBatch:
    return sight.forward(
        images, targets, buffer=buffer, call=call, uses_student=False, change=unchanged
    )


def _detached(shown: SynthesisBatch) -> SynthesisBatch:
    return dataclasses.replace(
        shown,
        images=shown.images.detach(),
        seen=shown.seen.detach(),
        teacher=_detached_look(shown.teacher),
        student=None if shown.student is None else _detached_look(shown.student),
        second=None if shown.second is None else _detached_look(shown.second),
    )


def _detached_look(look: ForwardResult) -> ForwardResult:
    features = look.features
    return ForwardResult(
        Features(logits=features.logits.detach(), pooled=features.pooled.detach()),
        tuple(dataclasses.replace(norm, received=norm.received.detach()) for norm in look.norms),
    )

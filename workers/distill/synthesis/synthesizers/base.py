"""What every synthesizer shares: its protocol, the networks it works with, and one step's loss.

In a synthesis call, a synthesizer optimises generated images (or what they are generated from)
against a method's `synthesis_terms`. All synthesizers can be saved between any two steps, inside a
call too.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workers.distill.config.synthesis import GeneratorSynthesis, Synthesis
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
from workers.distill.runtime.precision import Precision
from workers.distill.synthesis import augmentation

BETA2 = 0.999
"""Adam's beta2 for generators."""
SECOND_VIEW_AREA = 0.25
"""Smallest share of an image's area that its second view covers (CMI)."""

Augmentation: TypeAlias = Callable[[Tensor], Tensor]
"""Differentiable change of images [N, c, h, w] before the networks' forward pass."""
Budget = TypeVar("Budget", bound=Synthesis)


@dataclass(frozen=True)
class SynthesisContext:
    """The method and both networks of a data-free job, with what their forward pass needs."""

    method: DataFreeMethod
    teacher: Network
    student: Network
    teacher_preprocessor: Preprocessor
    student_preprocessor: Preprocessor
    precision: Precision
    device: torch.device
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel of the teacher's normalisation."""
    flip: bool

    @property
    def budget(self) -> Synthesis:
        """Return the method's `synthesis` hyper-parameters."""
        return self.method.params.synthesis

    def budget_of(self, kind: type[Budget]) -> Budget:
        """Return the method's budget; raises TypeError unless it is of this kind."""
        if not isinstance(self.budget, kind):
            raise TypeError(
                f"synthesizer {self.method.synthesizer!r} needs a {kind.__name__}, and method "
                f"{self.method.name} has a {type(self.budget).__name__}"
            )
        return self.budget

    def forward(
        self,
        images: Float[Tensor, "N c h w"],
        targets: Int[Tensor, " N"],
        *,
        buffer: BufferStats,
        call: int,
        uses_student: bool,
        augment: Augmentation,
    ) -> SynthesisBatch:
        """Return the networks' outputs for images with pixels of 0..1.

        Gradients flow from all outputs back to the images. `uses_student` False skips the
        student's forward pass (`student` is None then).
        """
        method, augmented = self.method, augment(images)
        inputs = self.teacher_preprocessor(255 * augmented)
        with_norms = method.uses_bn_statistics or method.uses_second_view
        student = second_view = None
        if uses_student:
            student = self._forward(
                self.student,
                self.student_preprocessor(255 * augmented),
                with_norms=method.uses_student_bn_statistics,
            )
        teacher = self._forward(self.teacher, inputs, with_norms=with_norms)
        if method.uses_second_view:
            cropped = augmentation.resized_crop(images, smallest=SECOND_VIEW_AREA, flip=self.flip)
            second_view = self._forward(
                self.teacher, self.teacher_preprocessor(255 * cropped), with_norms=with_norms
            )
        return SynthesisBatch(
            images=images,
            inputs=inputs,
            targets=targets,
            teacher=teacher,
            student=student,
            second_view=second_view,
            buffer=buffer,
            call=call,
        )

    def random_crop(self) -> Augmentation:
        """Return the augmentation of each image by its own crop and flip, or `unchanged`."""
        if self.budget.augmentation == "none":
            return unchanged
        _, height, width = self.method.image_shape
        pad_y, pad_x = crop_padding(height), crop_padding(width)
        return lambda images: augmentation.crop(images, pad_y=pad_y, pad_x=pad_x, flip=self.flip)

    def random_roll(self, shift: int | None) -> Augmentation:
        """Return the augmentation of DeepInversion, or `unchanged`.

        The whole batch is rolled by up to `shift` pixels (None: an eighth of the side) and may be
        mirrored.
        """
        if self.budget.augmentation == "none":
            return unchanged
        _, height, width = self.method.image_shape
        largest = crop_padding(min(height, width)) if shift is None else shift
        return lambda images: augmentation.roll(images, shift=largest, flip=self.flip)

    def per_channel(self, values: tuple[float, ...]) -> Float[Tensor, "c 1 1"]:
        """Return one number per channel, to be broadcast over images."""
        return torch.tensor(values, device=self.device)[:, None, None]

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return the method's target classes for new images, on the device."""
        return self.method.targets(count).to(self.device)

    def make_generator(self) -> Generator:
        """Return the method's generator with fresh weights, on the device."""
        placed: Generator = self.method.make_generator().to(  # type: ignore[call-overload]  # torch's stub
            device=self.device, memory_format=torch.channels_last
        )
        return placed

    def generate(self, generator: Generator, latent: Tensor) -> Float[Tensor, "N c h w"]:
        """Return the generator's images in float32, pixels in 0..1."""
        with self.precision.autocast():
            images: Tensor = generator(latent)
        return images.float()

    def _forward(self, network: Network, inputs: Tensor, *, with_norms: bool) -> ForwardResult:
        with self.precision.autocast():
            if with_norms:
                features, norms = interface.observe_norms(network, inputs)
            else:
                features, norms = network.observe(inputs), ()
        if self.precision.name == "float32":
            return ForwardResult(features, norms)
        # Losses are sums over classes or moments over a batch: too much for 16 bits.
        return ForwardResult(
            dataclasses.replace(
                features, logits=features.logits.float(), pooled=features.pooled.float()
            ),
            tuple(dataclasses.replace(norm, received=norm.received.float()) for norm in norms),
        )


def unchanged(images: Tensor) -> Tensor:
    """Return the images: no augmentation."""
    return images


@dataclass(frozen=True)
class SynthesisResult:
    """Images of a finished call, pixels in 0..1, with their target classes."""

    images: Float[Tensor, "N c h w"]
    targets: Int[Tensor, " N"]
    last: SynthesisBatch
    """The call's last step, detached."""
    outputs: SynthesisBatch | None = None
    """The teacher's outputs for `images` without augmentation; None if not yet computed."""


class Synthesizer(Protocol):
    """Generates images, call by call."""

    @property
    def steps_done(self) -> int | None:
        """Return the number of steps made in the open call, or None between calls."""
        ...

    def start_round(self, call: int) -> None:
        """Open a synthesis call; calls count from 1."""
        ...

    def step(self, buffer: BufferStats, *, uses_student: bool) -> tuple[Tensor, Terms]:
        """Make one optimizer step of the open call; return the loss and its terms, detached."""
        ...

    def finish_round(self) -> SynthesisResult:
        """Close the call and return its images; raises RuntimeError before its first step."""
        ...

    def sample(self, count: int) -> Float[Tensor, "N c h w"] | None:
        """Return new images for one student step, or None where they come from the buffer."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        ...


@dataclass
class LowestLoss:
    """The images of the step with the lowest loss so far, kept on the device."""

    images: Float[Tensor, "N c h w"] | None = None
    loss: Float[Tensor, ""] | None = None

    def update(self, images: Tensor, loss: Tensor, *, always: bool = False) -> None:
        """Keep these images if their loss is lower; `always` keeps the newest ones."""
        if self.images is None or self.loss is None or always:
            self.images, self.loss = images, loss
            return
        lower = loss < self.loss  # stays on the device: no step waits for it
        self.images = torch.where(lower, images, self.images)
        self.loss = torch.where(lower, loss, self.loss)

    def load(self, images: Tensor | None, loss: Tensor | None, device: torch.device) -> None:
        """Take over saved images and their loss."""
        self.images = None if images is None else images.to(device)
        self.loss = None if loss is None else loss.to(device)


def total_loss(terms: Terms) -> Float[Tensor, ""]:
    """Return the sum of the terms."""
    return torch.stack(list(terms.values())).sum()


def detached_terms(terms: Terms) -> Terms:
    """Return the terms without their graph."""
    return {name: term.detach() for name, term in terms.items()}


def generator_adam(
    budget: GeneratorSynthesis, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Return Adam with the budget's learning rate and beta1 for these parameter groups."""
    betas = (budget.beta1, BETA2)
    return torch.optim.Adam(groups, lr=budget.learning_rate, betas=betas, fused=True)


def optimizer_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, *, clip_norm: float | None
) -> None:
    """Make one step of the optimizer's parameters alone; the networks get no gradient.

    The loss must depend on them, as the rules see to (`rules.of_method`).
    """
    parameters = list(_parameters(optimizer))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()


def detached(batch: SynthesisBatch) -> SynthesisBatch:
    """Return the batch with logits, pooled features and norm inputs that have no graph."""
    return dataclasses.replace(
        batch,
        images=batch.images.detach(),
        inputs=batch.inputs.detach(),
        teacher=_detached(batch.teacher),
        student=None if batch.student is None else _detached(batch.student),
        second_view=None if batch.second_view is None else _detached(batch.second_view),
    )


def _detached(result: ForwardResult) -> ForwardResult:
    features = result.features
    return ForwardResult(
        Features(logits=features.logits.detach(), pooled=features.pooled.detach()),
        tuple(dataclasses.replace(norm, received=norm.received.detach()) for norm in result.norms),
    )


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]

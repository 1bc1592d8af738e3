"""What a data-free method declares, and what it gets while images are generated.

A data-free job alternates two phases. In a synthesis call, a synthesizer (`synthesis/synthesizers`)
optimises a generator, its latent vectors or the pixels themselves against a method's
`synthesis_terms`; the resulting images go into the replay buffer. Then the student makes some steps
against `terms`, as it does with real images. No method reads an image of a data set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeAlias

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.descriptions import MethodDescription, NetworkDescription
from workers.distill.config.devices import AcrossDevices
from workers.distill.config.job import Task
from workers.distill.config.synthesis import GeneratorSynthesis, Synthesis
from workers.distill.data.types import Batch
from workers.distill.functional import divergences, priorities
from workers.distill.functional.statistics import MomentMemory
from workers.distill.methods import parameters
from workers.distill.methods.base import Method, Moment, Need, Terms
from workers.distill.networks import generators
from workers.distill.networks.interface import Features, Network, NormInput, batch_norms

Given = ParamSpec("Given")

SynthesizerName: TypeAlias = Literal["noise", "stream", "latent", "pixels"]
"""What is optimised: nothing; a generator; a generator and one batch of latent vectors; pixels."""
Eviction: TypeAlias = Literal["oldest", "lowest"]
"""Which images a full buffer replaces: the oldest ones, or those of the lowest priority."""


@dataclass(frozen=True)
class ForwardResult:
    """A network's outputs in evaluation mode, with the inputs of its batch norms.

    `norms` is empty for a student unless the method sets `uses_student_bn_statistics`.
    """

    features: Features
    norms: tuple[NormInput, ...] = ()


@dataclass(frozen=True)
class BufferStats:
    """Size and class shares of the replay buffer before the present call.

    `class_shares` are the shares of its images (in dense tasks: of their pixels) that the teacher
    assigns to each class; zeros while it is empty.
    """

    images: int
    class_shares: Float[Tensor, " C"]


@dataclass(frozen=True)
class SynthesisBatch:
    """Images of one step of a synthesis call with the networks' outputs.

    All but `buffer` depend on the images differentiably. `images` have pixels of about 0..1;
    `inputs` are what the teacher got, augmented and normalised. `student` is None during warm-up
    and where the method does not use it. `second_view` is the teacher's result for another, strong
    crop.
    """

    images: Float[Tensor, "N c h w"]
    inputs: Float[Tensor, "N c h w"]
    targets: Int[Tensor, " N"]
    teacher: ForwardResult
    student: ForwardResult | None
    second_view: ForwardResult | None
    buffer: BufferStats
    call: int
    """Counts from 1, through warm-up and epochs."""

    @property
    def zero(self) -> Float[Tensor, ""]:
        """Return a zero without gradient: a term that is switched off."""
        return self.teacher.features.logits.new_zeros(())

    def term(
        self,
        weight: float,
        loss: Callable[Given, Tensor],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Float[Tensor, ""]:
        """Return weight * loss(...); with weight 0 return `zero` without computing the loss."""
        return self.zero if weight == 0 else weight * loss(*arguments, **named)

    def student_term(
        self,
        weight: float,
        loss: Callable[Concatenate[Tensor, Tensor, Given], Tensor],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Float[Tensor, ""]:
        """Return weight * loss(student's logits, teacher's logits, ...).

        It is `zero` with weight 0, and without a student.
        """
        if self.student is None or weight == 0:
            return self.zero
        logits = self.student.features.logits, self.teacher.features.logits
        return weight * loss(*logits, *arguments, **named)


class DataFreeMethod(Method):
    """Base of the methods that use a teacher and no image of a data set.

    Student and teacher may be dense: `Features.logits` is [N, C] or [N, C, H, W], and a loss per
    class distribution is averaged over images and positions (`functional.rows`).
    """

    family = "datafree"
    across_devices: ClassVar[AcrossDevices] = "one"
    loop = "datafree"
    needs: ClassVar[tuple[Need, ...]] = ("teacher", "equal_classes", "batch_norm")
    has_task = False
    accepts_mixed = False
    combines = False
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation")
    synthesizer: ClassVar[SynthesizerName] = "latent"
    renews_generator: ClassVar[bool] = False
    """Whether each call begins with a new generator."""
    image_weights: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that weigh the terms of the synthesis loss which need no student."""
    adversarial_weights: ClassVar[tuple[str, ...]] = ()
    """Those that weigh its terms against the student."""
    norm_weights: ClassVar[tuple[str, ...]] = ()
    """Those that need the teacher's batch norms; without any, `needs` alone decides."""
    warms_up_alone: ClassVar[bool] = True
    """Whether no call of the warm-up uses the student; else the last one does."""
    learns_from_student_only: ClassVar[bool] = False
    """Whether nothing but the student's mistakes moves the images."""

    class Params(Method.Params):
        """The budget; each method has its own defaults, and a caller may set single fields."""

        synthesis: Synthesis = Field(
            Synthesis(), description="How images are generated: budget, synthesizer, buffer."
        )

        @field_validator("synthesis", mode="before")
        @classmethod
        def _over_defaults(cls, value: object) -> object:
            if not isinstance(value, dict):
                return value
            return {**cls.model_fields["synthesis"].default.model_dump(), **value}

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        if teacher is None:
            raise ValueError(f"method {self.name} learns from a teacher, and none is given")
        self.classes = teacher.classes
        self.image_shape = teacher.image_shape
        described, values = self.describe(), params.model_dump()
        self._reads_norms = described.needs_batch_norm(values)
        errors.refuse(
            rules.of_batch_norm(
                described,
                values,
                NetworkDescription(
                    teacher.reference or type(teacher).__name__,
                    has_batch_norm=bool(batch_norms(teacher)),
                ),
            ),
            errors.IncompatibleNetworks,
            teacher=teacher.reference,
            missing="batch_norm",
        )

    @classmethod
    def describe(cls) -> MethodDescription:
        """Return what the rules read of this method, as the catalog exports it."""
        return (
            super()
            .describe()
            .model_copy(
                update={
                    "image_weights": cls.image_weights,
                    "adversarial_weights": cls.adversarial_weights,
                    "norm_weights": cls.norm_weights,
                    "learns_from_student_only": cls.learns_from_student_only,
                }
            )
        )

    def make_generator(self) -> generators.Generator:
        """Return a new generator of images of the teacher's size, with fresh weights."""
        budget = self.params.synthesis
        if not isinstance(budget, GeneratorSynthesis):
            raise TypeError(f"method {self.name} has no generator")
        return generators.build(
            budget.generator,
            image_shape=self.image_shape,
            latent_size=budget.latent_size,
            width=budget.width,
        )

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self._reads_norms

    @property
    def uses_second_view(self) -> bool:
        """Whether the teacher also gets a second, strongly cropped view of the images."""
        return False

    @property
    def uses_student_bn_statistics(self) -> bool:
        """Whether the loss of synthesis uses the inputs of the student's batch norms."""
        return False

    def renews_at(self, call: int) -> bool:
        """Whether this call, counted from 1 through warm-up and epochs, gets a new generator."""
        return self.renews_generator

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return target classes for the images of a call, drawn from torch's random numbers."""
        return torch.randint(self.classes, (count,))

    def uses_student_at(self, call: int) -> bool:
        """Whether the loss of this call, counted from 1 through warm-up and epochs, uses it."""
        alone = self.params.synthesis.warmup_calls
        return self.uses_student and call > (alone if self.warms_up_alone else alone - 1)

    def in_turn(self, count: int) -> Int[Tensor, " N"]:
        """Return all classes in turn; of more classes than images, a random subset."""
        turns = torch.arange(count) % self.classes
        return torch.randperm(self.classes)[turns] if count < self.classes else turns

    @property
    def uses_student(self) -> bool:
        """Whether the loss of synthesis uses the student's outputs."""
        return False

    @property
    def priority(self) -> priorities.Priority | None:
        """Return how the student's images are drawn from the buffer; None draws uniformly."""
        return None

    @property
    def eviction(self) -> Eviction:
        """Return which images of a full buffer are replaced by new ones."""
        return "oldest"

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return the weighted terms of the loss that a synthesis call minimises."""
        raise NotImplementedError

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Update the method after a call, before its images go into the buffer.

        `last` is the call's last step. `kept` holds the images for the buffer with the teacher's
        outputs, without augmentation and without the student; its `second_view` is a new crop. Both
        are detached.
        """

    def synthesis_modules(self) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
        """Return modules that are trained with each call, with their own options for Adam.

        They are part of the method, so that checkpoints hold them; the student's optimizer does not
        update them.
        """
        return {}


class SoftTargetMethod(DataFreeMethod):
    """Data-free methods whose student is trained on the teacher's softened outputs."""

    class Params(DataFreeMethod.Params):
        """The temperature of the student's loss, and the budget."""

        temperature: parameters.SoftTargetTemperature = 1.0

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the KL divergence from the teacher's softened outputs.

        Units: nats times temperature squared.
        """
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}


class InversionMethod(SoftTargetMethod):
    """Methods that fit images to a target class and to the teacher's batch norms."""

    class Params(SoftTargetMethod.Params):
        """The weights of both terms, the temperature and the budget."""

        bn_weight: parameters.BNWeight = 1.0
        onehot_weight: parameters.OneHotWeight = 1.0

    params: Params


class AdversarialInversionMethod(InversionMethod):
    """Inversion methods whose images also maximise the divergence between student and teacher."""

    class Params(InversionMethod.Params):
        """Three weights, the temperature and the budget."""

        adversarial_weight: parameters.AdversarialWeight = 1.0

    params: Params

    @property
    def uses_student(self) -> bool:
        """Whether the loss of synthesis uses the student's outputs."""
        return self.params.adversarial_weight > 0


class SmoothedInversionMethod(AdversarialInversionMethod):
    """Adversarial inversion methods that smooth batch-norm moments over calls, as Fast-DFKD."""

    class Params(AdversarialInversionMethod.Params):
        """Three weights, the mask, the smoothing, the temperature and the budget."""

        masked: parameters.Masked = True
        bn_momentum: parameters.BNMomentum = 0.9

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        norms = batch_norms(teacher) if teacher is not None and self.uses_bn_statistics else {}
        self.memory = MomentMemory(norms, rate=params.bn_momentum)

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Add the moments of the call's last step to the running average."""
        if self.uses_bn_statistics:
            self.memory.remember(last.teacher.norms)

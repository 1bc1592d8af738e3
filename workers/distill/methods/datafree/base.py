"""What a method declares that invents its images, and what it is shown while it does.

A data-free job goes in turns. In a synthesis call, an inverter (`loops/inversion.py`) moves a
generator, its latent vectors or the pixels themselves against a method's `synthesis_terms`, and
what it keeps goes into the replay buffer. Then the student makes some steps against `terms`, as it
does with real images. No method reads an image of a data set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeAlias

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.config.synthesis import GeneratorSynthesis, Synthesis
from workers.distill.functional import priorities
from workers.distill.methods.base import Method, Need, Terms
from workers.distill.networks import generators
from workers.distill.networks.interface import Features, Network, NormInput, batch_norms

Given = ParamSpec("Given")

SynthesizerName: TypeAlias = Literal["noise", "stream", "latent", "pixels"]
"""What is moved: nothing; a generator; a generator and one batch of latent vectors; pixels."""
Eviction: TypeAlias = Literal["oldest", "lowest"]
"""Which images give way: those that came first, or those of the lowest priority."""


@dataclass(frozen=True)
class ForwardResult:
    """What a network shows of images in evaluation mode, with what its batch norms received.

    `norms` is empty for a student unless the method asks for them (`uses_student_bn_statistics`).
    """

    features: Features
    norms: tuple[NormInput, ...] = ()


@dataclass(frozen=True)
class BufferStats:
    """What the replay buffer held before the present call.

    `class_shares` says which share of its images (dense tasks: of their pixels) the teacher takes
    for each class; zeros while it is empty.
    """

    images: int
    class_shares: Float[Tensor, " C"]


@dataclass(frozen=True)
class SynthesisBatch:
    """What one step of a synthesis call shows; everything but `buffer` leads back to the images.

    `images` have pixels of about 0..1; `seen` is how the teacher saw them, augmented and
    normalised. `student` is None while the student has not begun to learn (warm-up) and where the
    method does not ask for it. `second` is the teacher's look at a second, strongly cropped view.
    """

    images: Float[Tensor, "N c h w"]
    seen: Float[Tensor, "N c h w"]
    targets: Int[Tensor, " N"]
    teacher: ForwardResult
    student: ForwardResult | None
    second: ForwardResult | None
    buffer: BufferStats
    call: int
    """Counted from 1, through warm-up and epochs."""

    @property
    def nothing(self) -> Float[Tensor, ""]:
        """Return a zero without gradient: a term that is switched off."""
        return self.teacher.features.logits.new_zeros(())

    def term(
        self,
        weight: float,
        loss: Callable[Given, Tensor],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Float[Tensor, ""]:
        """Return weight * loss(...); with weight 0 it is `nothing`, and costs nothing."""
        return self.nothing if weight == 0 else weight * loss(*arguments, **named)

    def against_student(
        self,
        weight: float,
        loss: Callable[Concatenate[Tensor, Tensor, Given], Tensor],
        *arguments: Given.args,
        **named: Given.kwargs,
    ) -> Float[Tensor, ""]:
        """Return weight * loss(student's logits, teacher's logits, ...).

        It is `nothing` with weight 0, and where no student is shown.
        """
        if self.student is None or weight == 0:
            return self.nothing
        logits = self.student.features.logits, self.teacher.features.logits
        return weight * loss(*logits, *arguments, **named)


class DataFreeMethod(Method):
    """Methods that learn from a teacher and from no image of a data set.

    Student and teacher may be dense: `Features.logits` is [N, C] or [N, C, H, W], and a loss per
    class distribution is averaged over images and positions (`functional.rows`).
    """

    family = "datafree"
    needs: ClassVar[tuple[Need, ...]] = ("teacher", "equal_classes", "batch_norm")
    has_task = False
    accepts_mixed = False
    combines = False
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation")
    synthesizer: ClassVar[SynthesizerName] = "latent"
    renews_generator: ClassVar[bool] = False
    """Whether each call begins with a new generator."""

    class Params(Method.Params):
        """The budget; each method has its own defaults, and a caller changes single fields."""

        synthesis: Synthesis = Field(
            Synthesis(), description="How images are invented: budget, inverter, buffer."
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
            raise errors.BadRecipe(f"method {self.name} needs a teacher, and the recipe has none")
        self.classes = teacher.classes
        self.image_shape = teacher.image_shape
        if self.uses_bn_statistics and not batch_norms(teacher):
            raise errors.IncompatibleNetworks(
                f"method {self.name} compares with the moments in the teacher's batch norms, and "
                f"the teacher {teacher.reference or type(teacher).__name__} has none; set "
                "bn_weight to 0, or choose a method that needs none, such as dafl",
                teacher=teacher.reference,
                missing="batch_norm",
            )

    def make_generator(self) -> generators.Generator:
        """Return a new generator of images of the teacher's size, with fresh weights."""
        budget = self.params.synthesis
        if not isinstance(budget, GeneratorSynthesis):
            raise TypeError(f"method {self.name} moves no generator")
        return generators.build(
            budget.generator,
            image_shape=self.image_shape,
            latent_size=budget.latent_size,
            width=budget.width,
        )

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return "batch_norm" in self.needs

    @property
    def uses_second_view(self) -> bool:
        """Whether the teacher is to look at a second, strongly cropped view of the images."""
        return False

    @property
    def uses_student_bn_statistics(self) -> bool:
        """Whether what the student's batch norms receive is shown, where the student is."""
        return False

    def renews_at(self, call: int) -> bool:
        """Whether this call, counted from 1 through warm-up and epochs, gets a new generator."""
        return self.renews_generator

    def targets(self, count: int) -> Int[Tensor, " N"]:
        """Return the classes that the images of a call are to show, drawn from torch's numbers."""
        return torch.randint(self.classes, (count,))

    def in_turn(self, count: int) -> Int[Tensor, " N"]:
        """Return all classes in turn; of more classes than images, different ones each time."""
        turns = torch.arange(count) % self.classes
        return torch.randperm(self.classes)[turns] if count < self.classes else turns

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return False

    @property
    def priority(self) -> priorities.Priority | None:
        """Return how the student's images are drawn from the buffer; None draws evenly."""
        return None

    @property
    def eviction(self) -> Eviction:
        """Return which images a full buffer gives up for new ones."""
        return "oldest"

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return the weighted terms of the loss that the images of a call are moved against."""
        raise NotImplementedError

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Do what follows a call, before its images go into the buffer; everything is detached.

        `last` is the call's last step. `kept` shows the images that are kept, unaugmented and
        without the student; its `second` is a view drawn for them alone.
        """

    def synthesis_modules(self) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
        """Return parts that learn with each call, each with what its Adam differs in.

        They are part of the method, so that checkpoints hold them; the student's optimizer leaves
        a data-free method alone.
        """
        return {}

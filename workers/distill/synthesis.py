"""What a method declares that invents its images, and what it is shown while it does.

A data-free job goes in turns. In a synthesis call, an inverter (`loops/inversion.py`) moves a
generator, its latent vectors or the pixels themselves against a method's `synthesis_terms`, and
what it keeps goes into the replay buffer. Then the student makes some steps against `terms`, as it
does with real images. No method reads an image of a data set.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeAlias

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from workers.distill import errors, recipe
from workers.distill.functional import priorities
from workers.distill.method import Method, Need, Task, Terms
from workers.distill.networks import generators
from workers.distill.networks.interface import Features, Network, NormInput, batch_norms

Given = ParamSpec("Given")

InverterName: TypeAlias = Literal["noise", "stream", "latent", "pixels"]
"""What is moved: nothing; a generator; a generator and one batch of latent vectors; pixels."""
Eviction: TypeAlias = Literal["oldest", "lowest"]
"""Which images give way: those that came first, or those of the lowest priority."""


class Synthesis(recipe.Values):
    """How many images are invented, and how often: the budget of a data-free job."""

    steps: int = Field(10, ge=1, le=100_000, description="Optimizer steps of one synthesis call.")
    batch_size: int = Field(256, ge=2, le=65_536, description="Images that one call makes.")
    student_steps: int | None = Field(
        400,
        ge=1,
        le=100_000,
        description="Steps of the student after each call; null: as many as `data_scale` asks for.",
    )
    data_scale: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Images that the student sees in an epoch, as a share of the teacher's "
        "training set; one of `student_steps` and this is null.",
    )
    original_images: int | None = Field(
        None,
        ge=1,
        le=10**10,
        description="Images of the teacher's training set, of which `data_scale` is a share; null "
        "takes their number from the data set's record.",
    )
    calls_per_epoch: int = Field(
        1, ge=1, le=100_000, description="Calls, each with its student steps, in an epoch."
    )
    warmup_calls: int = Field(
        0, ge=0, le=100_000, description="Calls before the first epoch, without the student."
    )
    buffer_images: int | None = Field(
        None,
        ge=2,
        le=10_000_000,
        description="Images that the replay buffer holds at most; null: as many as `data_scale` "
        "says where it counts, else all that are made.",
    )
    augmentation: Literal["none", "standard"] = Field(
        "standard",
        description="How invented images are changed before the networks see them while they are "
        "made. standard: random crop after zero padding (an eighth of the side), and a flip where "
        "`flip` allows it. What the student trains on follows `training.augmentation`.",
    )
    flip: bool | None = Field(
        None,
        description="Whether mirrored images mean the same; null asks the data set's record, and "
        "is false without one.",
    )
    keep_images: bool = Field(
        True,
        description="Keep the buffer beside the student: it can be downloaded, and registered as "
        "a data set.",
    )


class NoiseSynthesis(Synthesis):
    """A budget that moves nothing."""

    distribution: Literal["gaussian", "uniform"] = Field(
        "gaussian",
        description="gaussian: N(0, 1) after normalisation; uniform: pixels of 0..1 before it.",
    )


class PixelSynthesis(Synthesis):
    """A budget for moving pixels, which are rolled and mirrored as a whole batch."""

    augmentation: Literal["none", "standard"] = Field(
        "standard",
        description="How invented images are changed before the networks see them while they are "
        "made. standard: the whole batch is rolled by up to `shift`, and mirrored where `flip` "
        "allows it. What the student trains on follows `training.augmentation`.",
    )
    learning_rate: float = Field(0.1, gt=0, le=100, description="Step size of the pixels (Adam).")
    beta1: float = Field(0.5, ge=0, lt=1, description="Memory of Adam's mean gradient.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Memory of Adam's squared gradient.")
    shift: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="Pixels by which images are rolled at most; null: an eighth of the side.",
    )


class GeneratorSynthesis(Synthesis):
    """A budget for moving a generator."""

    generator: generators.Name = Field(
        "small",
        description="small: from a quarter of the side; large: small, twice as wide at its start; "
        "dcgan: transposed convolutions from a sixteenth; deep: from a map of latent values at a "
        "sixteenth.",
    )
    latent_size: int = Field(256, ge=1, le=65_536, description="Length of a latent vector.")
    width: int = Field(64, ge=1, le=4096, description="Channels of the generator's last block.")
    learning_rate: float = Field(
        1e-3, gt=0, le=100, description="Step size of the generator (Adam)."
    )
    beta1: float = Field(0.5, ge=0, lt=1, description="Memory of Adam's mean gradient.")
    clip_norm: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Largest norm of the generator's gradient; null does not clip.",
    )


class StreamSynthesis(GeneratorSynthesis):
    """A budget for one generator that learns all along, and shows the student new images."""

    reuse: Literal["none", "latent", "images"] = Field(
        "none",
        description="What the student's steps use again of the call before them. none: new latent "
        "vectors each step; latent: the call's vectors, seen by the generator as it is by then; "
        "images: the call's very images, so `batch_size` of them, not `training.batch_size`.",
    )
    average_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Half of each of the student's batches comes from a moving average of the "
        "generator that keeps this share of itself at a call, less in the first calls (at most "
        "(1 + n) / (10 + n) at call n); null has no average.",
    )

    @model_validator(mode="after")
    def _average_makes_new_images(self) -> "StreamSynthesis":
        if self.average_decay is not None and self.reuse != "none":
            raise ValueError(
                f"average_decay {self.average_decay:g} makes new images, and reuse {self.reuse} "
                "asks for those of the call; set average_decay to null, or reuse to none"
            )
        return self


class LatentSynthesis(GeneratorSynthesis):
    """A budget for moving a generator together with the latent vectors of a call."""

    latent_learning_rate: float = Field(
        0.01, ge=0, le=100, description="Step size of the latent vectors (Adam); 0 holds them."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Images of a call to keep: those of its lowest loss, or its last ones."
    )


class MetaSynthesis(LatentSynthesis):
    """A budget for a generator that may learn to be a good start of every call."""

    meta: Literal["none", "fomaml", "reptile"] = Field(
        "none",
        description="How the generator learns from the copy that a call moves. none: the call "
        "moves the generator itself; fomaml: by the sum of the copy's gradients; reptile: towards "
        "the copy.",
    )
    meta_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Step size of the meta-learned generator (Adam); null: `learning_rate` times "
        "`steps`.",
    )
    restart_epoch: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Epoch before which the generator's first layer and norm are drawn anew; null "
        "never.",
    )


@dataclass(frozen=True)
class Look:
    """What a network shows of images in evaluation mode, with what its batch norms received.

    `norms` is empty for a student unless the method asks for them (`wants_student_norms`).
    """

    features: Features
    norms: tuple[NormInput, ...] = ()


@dataclass(frozen=True)
class Stock:
    """What the replay buffer held before the present call.

    `class_shares` says which share of its images (dense tasks: of their pixels) the teacher takes
    for each class; zeros while it is empty.
    """

    images: int
    class_shares: Float[Tensor, " C"]


@dataclass(frozen=True)
class Invented:
    """What one step of a synthesis call shows; everything but `stock` leads back to the images.

    `images` have pixels of about 0..1; `seen` is how the teacher saw them, augmented and
    normalised. `student` is None while the student has not begun to learn (warm-up) and where the
    method does not ask for it. `second` is the teacher's look at a second, strongly cropped view.
    """

    images: Float[Tensor, "N c h w"]
    seen: Float[Tensor, "N c h w"]
    targets: Int[Tensor, " N"]
    teacher: Look
    student: Look | None
    second: Look | None
    stock: Stock
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
    inverter: ClassVar[InverterName] = "latent"
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
        if self.reads_norms and not batch_norms(teacher):
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
    def reads_norms(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return "batch_norm" in self.needs

    @property
    def wants_second(self) -> bool:
        """Whether the teacher is to look at a second, strongly cropped view of the images."""
        return False

    @property
    def wants_student_norms(self) -> bool:
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
    def competes(self) -> bool:
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

    def synthesis_terms(self, shown: Invented) -> Terms:
        """Return the weighted terms of the loss that the images of a call are moved against."""
        raise NotImplementedError

    def after_call(self, last: Invented, kept: Invented) -> None:
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


def settle(budget: Synthesis, *, batch_size: int, known_images: int | None) -> Synthesis:
    """Return the budget with the student's steps, and with the buffer's size where it is known.

    `known_images` is the number of training images that the data set's record states.
    """
    if budget.student_steps is not None and budget.data_scale is not None:
        raise errors.BadRecipe(
            f"method.synthesis: student_steps {budget.student_steps} and data_scale "
            f"{budget.data_scale:g} both say how many steps the student makes; set one of them to "
            "null"
        )
    if budget.student_steps is not None:
        return budget
    if budget.data_scale is None:
        raise errors.BadRecipe(
            "method.synthesis: student_steps and data_scale are both null; give one of them"
        )
    original = budget.original_images or known_images
    if original is None:
        raise errors.BadRecipe(
            "method.synthesis.original_images: data_scale is a share of the teacher's training "
            "set, whose size is not known without a data set; give original_images, or "
            "student_steps instead"
        )
    shown = max(2, round(budget.data_scale * original))
    steps = math.ceil(shown / batch_size / budget.calls_per_epoch)
    kept = budget.buffer_images or shown
    return budget.model_copy(update={"student_steps": steps, "buffer_images": kept})

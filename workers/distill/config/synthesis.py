"""How many images a data-free job synthesizes, how often, and by optimising what: its budget.

Each method has a budget with defaults of its own, as `synthesis` among its hyper-parameters; a
caller changes single fields of it.
"""

import math
from typing import Literal, TypeAlias

from pydantic import Field

from workers.distill.config.training import Values

GeneratorName: TypeAlias = Literal["small", "large", "dcgan", "deep"]
GENERATOR_STRIDES: dict[str, int] = {"small": 4, "large": 4, "dcgan": 16, "deep": 16}
"""By how much the first map of each generator is smaller than the image."""


class Synthesis(Values):
    """How many images are synthesized, and how often: the budget of a data-free job."""

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
        0,
        ge=0,
        le=100_000,
        description="Calls before the first epoch, without the student; of Fast-DFKD and SSD-KD "
        "the last of them already uses it, untrained, as in Fast-DFKD's code.",
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
        description="How synthetic images are augmented before the networks' forward pass while "
        "they are made. standard: random crop after zero padding (an eighth of the side), and a "
        "flip where `flip` allows it. What the student trains on follows `training.augmentation`.",
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
        description="How synthetic images are augmented before the networks' forward pass while "
        "they are made. standard: the whole batch is rolled by up to `shift`, and mirrored where "
        "`flip` allows it. What the student trains on follows `training.augmentation`.",
    )
    learning_rate: float = Field(0.1, gt=0, le=100, description="Step size of the pixels (Adam).")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's beta1.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Adam's beta2.")
    shift: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="Pixels by which images are rolled at most; null: an eighth of the side.",
    )


class GeneratorSynthesis(Synthesis):
    """A budget for moving a generator."""

    generator: GeneratorName = Field(
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
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's beta1.")
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


def resolve_budget(budget: Synthesis, *, batch_size: int, known_images: int | None) -> Synthesis:
    """Return the budget with the student's steps, and with the buffer's size where it is known.

    `known_images` is the number of training images that the data set's record states. The budget
    must follow the rules (`rules.of_method`, `rules.of_original_images`); raises `ValueError` for
    one that leaves the number of steps open.
    """
    if budget.student_steps is not None:
        return budget
    original = budget.original_images or known_images
    if budget.data_scale is None or original is None:
        raise ValueError("the budget says neither student_steps nor data_scale of how many images")
    images_per_epoch = max(2, round(budget.data_scale * original))
    steps = math.ceil(images_per_epoch / batch_size / budget.calls_per_epoch)
    buffer_images = budget.buffer_images or images_per_epoch
    return budget.model_copy(update={"student_steps": steps, "buffer_images": buffer_images})

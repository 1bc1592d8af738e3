"""Multi-level logit distillation: samples, batch and classes, at five temperatures, on two views.

Besides each sample's distribution, the student matches the similarities between samples of the
batch and between classes. Only the half of the samples, and of the classes, with the lower teacher
confidence is compared.

Source: Jin et al., CVPR 2023 (Multi-Level Logit Distillation; no preprint).
Differs: by default the masks select and both views count at all levels and temperatures, which is
what the code's names say; in the authors' code, `variant` reference, sums are taken before the
mask, so that it only scales them, two of the strong view's five temperatures use the weak view, and
the strong view's batch and class levels are computed and dropped. Published numbers come from that.
By default the batch level is multiplied by 0.64 C / N and the class level by its square, since they
grow with the samples of a class in a batch: both factors are 1 for the published N = 64, C = 100.
Mixed images are refused: the labels of a strong view of a mixed image are not defined.
Checked against: Jin-Ying/Multi-Level-Logit-Distillation, mdistiller/distillers/KD_ours.py
(published values).
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import divergences, standardization
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Temperature, Weight
from workers.distill.networks.interface import Features

FIXED_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)
"""Used besides the one that can be chosen."""
PUBLISHED_SAMPLES, PUBLISHED_CLASSES = 64, 100
"""The batch and the classes that the published weights are for."""


class Levels(NamedTuple):
    """The three parts of the loss at one temperature, or sums of them."""

    instance: Tensor
    batch: Tensor
    classes: Tensor


class Chosen(NamedTuple):
    """Which samples and which classes are compared."""

    samples: Bool[Tensor, " N"]
    classes: Bool[Tensor, " C"]

    @classmethod
    def unsure(cls, teacher_logits: Float[Tensor, "N C"]) -> "Chosen":
        """Choose samples and classes of at most the median confidence."""
        probabilities = teacher_logits.softmax(1)
        confidence, frequency = probabilities.amax(1), probabilities.sum(0)
        return cls(confidence <= confidence.median(), frequency <= frequency.median())

    @classmethod
    def everything(cls, logits: Float[Tensor, "N C"]) -> "Chosen":
        """Choose all samples and classes."""
        return cls(logits.new_ones(len(logits)).bool(), logits.new_ones(logits.shape[1]).bool())


def multi_level_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    chosen: Chosen,
    *,
    temperature: float,
    by: standardization.Deviation = "none",
) -> Levels:
    """Return the three levels at one temperature, over the chosen samples and classes.

    Units: the instance level in nats times temperature squared; the other two have no unit, and no
    such factor. Only the instance level is standardized, as LSKD's authors have it.
    """
    divergence = divergences.softened_kl(
        standardization.standardized(student_logits, by=by),
        standardization.standardized(teacher_logits, by=by),
        temperature=temperature,
    )
    student = (student_logits / temperature).softmax(1)
    teacher = (teacher_logits / temperature).softmax(1)
    return Levels(
        temperature**2 * (divergence * chosen.samples).sum() / chosen.samples.sum(),
        gram_distance(student, teacher, chosen.samples),
        gram_distance(student.mT, teacher.mT, chosen.classes),
    )


def gram_distance(
    student_rows: Float[Tensor, "N D"], teacher_rows: Float[Tensor, "N D"], kept: Bool[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Return the squared Frobenius distance of both Gram matrices of the kept rows, per row."""
    # Zeros instead of an index: shapes that depend on values stall a GPU and stop a compiler.
    student, teacher = student_rows * kept[:, None], teacher_rows * kept[:, None]
    return (teacher @ teacher.mT - student @ student.mT).square().sum() / kept.sum()


def relative_crowding(samples: int, classes: int) -> float:
    """Return how many samples of a batch share a class, where 64 samples of 100 classes do as 1.

    The similarity of two samples is the larger the fewer classes there are, and that of two
    classes is a sum over samples: their squared distances, per row, grow with samples / classes
    and with its square.
    """
    return samples / classes / (PUBLISHED_SAMPLES / PUBLISHED_CLASSES)


class MLLD(LogitMethod):
    """Match outputs, similarities of samples and similarities of classes, on two views."""

    name = "mlld"
    auto_balanced = True  # the sizes of Gram matrices grow with batch and classes
    title = "Multi-level logit distillation"
    source = Source("Multi-Level Logit Distillation", venue="CVPR 2023")
    accepts_mixed = False  # the labels of a mixed image's strong view are not defined
    uses_strong_view = True

    class Params(LogitMethod.Params):
        """A weight per level, one temperature of five, and two switches."""

        task_weight: Weight = Field(
            0.1,
            description="Weight of cross-entropy with the true labels, on each of the two views. "
            "Where balance holds the teacher (auto, a number), it is 1 unless it is given.",
        )
        instance_weight: Weight = Field(
            0.9,
            description="Weight of each sample's distribution, summed over views and temperatures.",
        )
        batch_weight: Weight = Field(0.9, description="Weight of the similarities between samples.")
        class_weight: Weight = Field(0.9, description="Weight of the similarities between classes.")
        temperature: Temperature = Field(
            4.0, description="One of five temperatures; the others are 2, 3, 5 and 6."
        )
        variant: Literal["clean", "reference"] = Field(
            "clean",
            description="clean: the masks select the samples and classes of lower teacher "
            "confidence, and both views count everywhere. reference: what the authors' code "
            "computes, and what published numbers need; there masks only scale.",
        )
        standardize: standardization.Deviation = Field(
            "none",
            description="Standard deviation by which the instance level divides each sample's "
            "centred logits (LSKD, arXiv 2403.01427): none leaves logits as they are; population "
            "is how its paper reads; sample is its authors' code, used there with all three "
            "weights at 9, temperature 2 and variant reference.",
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term of both views and the three levels."""
        params = self.params
        if student.strong is None or teacher.strong is None:
            raise errors.BadRecipe(
                "method mlld compares two views of every image, and got only one; train it "
                "without a teacher cache, on images that may be augmented"
            )
        task = self.task_loss(student, batch)
        task = task + self.task_loss(student.strong, batch)
        weak = (student.logits, teacher.logits)
        strong = (student.strong.logits, teacher.strong.logits)
        levels = (
            self._clean(weak, strong)
            if params.variant == "clean"
            else self._reference(weak, strong)
        )
        return {
            "task": params.task_weight * task,
            "instance": params.instance_weight * levels.instance,
            "batch": params.batch_weight * levels.batch,
            "class": params.class_weight * levels.classes,
        }

    def _clean(self, weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor]) -> Levels:
        chosen = Chosen.unsure(weak[1])
        whole = added(
            self._at(*view, chosen, temperature)
            for temperature in (self.params.temperature, *FIXED_TEMPERATURES)
            for view in (weak, strong)
        )
        crowding = relative_crowding(*weak[1].shape)
        return Levels(whole.instance, whole.batch / crowding, whole.classes / crowding**2)

    def _reference(self, weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor]) -> Levels:
        all_of_it, unsure = Chosen.everything(weak[1]), Chosen.unsure(weak[1])
        samples, classes = (mask.to(weak[1].dtype).mean() for mask in unsure)
        temperatures = (self.params.temperature, *FIXED_TEMPERATURES)
        first = [self._at(*weak, all_of_it, temperature) for temperature in temperatures]
        second = [self._at(*strong, all_of_it, temperature) for temperature in temperatures[:3]]
        whole = added(first)
        return Levels(
            # The strong view's sum takes its last two temperatures from the weak view.
            samples * whole.instance + added([*second, *first[3:]]).instance,
            samples * whole.batch,
            classes * whole.classes,
        )

    def _at(self, student: Tensor, teacher: Tensor, chosen: Chosen, temperature: float) -> Levels:
        by = self.params.standardize
        return multi_level_loss(student, teacher, chosen, temperature=temperature, by=by)


def added(levels: Iterable[Levels]) -> Levels:
    """Return the sums, level by level."""
    return Levels(*(torch.stack(parts).sum() for parts in zip(*levels, strict=True)))

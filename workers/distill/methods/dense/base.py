"""What methods of dense prediction share: pairs of maps of one size, and pixels that have a label.

Teacher and student may answer at different resolutions. Maps are compared at the smaller height and
the smaller width of both, averaged over cells; labels are never averaged.
"""

import itertools
import math
from typing import ClassVar

from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, divergences, maps
from workers.distill.methods.base import FeatureName, Need, SupervisedMethod
from workers.distill.networks.interface import Features
from workers.distill.networks.shapes import Shapes

SMALLEST_POOL = 2


class DenseMethod(SupervisedMethod):
    """Methods that compare maps of class logits, position by position."""

    family = "dense"
    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")
    accepts_mixed = False  # a pixel has the label of one image

    def class_maps(
        self, student: Features, teacher: Features
    ) -> tuple[Float[Tensor, "N C h w"], Float[Tensor, "N C h w"]]:
        """Return both networks' maps of class logits at the smaller of their resolutions."""
        return maps.pool_to_smaller(student.logits, teacher.logits)

    def pixel_labels(
        self, batch: Batch, logits: Float[Tensor, "N C h w"]
    ) -> tuple[Integer[Tensor, "N h w"], Bool[Tensor, "N h w"]]:
        """Return the class of each position of the logits, and whether it has one.

        Where it has none, the class is 0.
        """
        labels = maps.nearest(batch.labels, (logits.shape[2], logits.shape[3])).long()
        known = labels != dataset.IGNORE_INDEX
        return labels * known, known

    def pixel_kl(
        self,
        student: Features,
        teacher: Features,
        batch: Batch,
        *,
        temperature: float,
        only_labelled: bool = True,
    ) -> Float[Tensor, ""]:
        """Return temperature^2 * KL(teacher || student) of a pixel's classes, the mean of pixels.

        Pixels without a label are left out, or count as all others do.
        """
        student_logits, teacher_logits = self.class_maps(student, teacher)
        _, known = self.pixel_labels(batch, student_logits)
        return divergences.scaled_kl(
            student_logits,
            teacher_logits,
            temperature=temperature,
            counted=known if only_labelled else None,
        )


class DenseFeatureMethod(DenseMethod):
    """Methods that compare the last feature maps of both networks."""

    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    student_shapes: Shapes
    teacher_shapes: Shapes

    def final_maps(
        self, student: Features, teacher: Features, connector: nn.Module | None = None
    ) -> tuple[Float[Tensor, "N c h w"], Float[Tensor, "N d h w"]]:
        """Return both last maps at the smaller of their resolutions, the student's connected."""
        given, wanted = (classifiers.last_map(each.final) for each in (student, teacher))
        return maps.pool_to_smaller(given if connector is None else connector(given), wanted)


def pool_side(chosen: int | None, maps: Float[Tensor, "N c h w"], *, most: int) -> int:
    """Return the chosen side of pooled squares, or the least from 2 with at most `most` of them."""
    if chosen is not None:
        return chosen
    height, width = maps.shape[2:]
    return next(
        side
        for side in itertools.count(SMALLEST_POOL)
        if math.ceil(height / side) * math.ceil(width / side) <= most
    )

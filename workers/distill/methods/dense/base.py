"""What methods of dense prediction share: pairs of maps of one size, and pixels that have a label.

Teacher and student may answer at different resolutions. Maps are compared at the smaller height and
the smaller width of both, averaged over cells; labels are never averaged. Of detectors the levels
of their pyramids are compared, pair by pair; where channels differ, a trained 1x1 convolution
brings the student's to the teacher's.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, divergences, maps
from workers.distill.methods.base import FeatureName, Need, SupervisedMethod
from workers.distill.methods.parameters import Levels
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Shapes

SMALLEST_POOL = 2
USUAL_LEVELS = 4
"""The finest ones, P2 to P5 or P3 to P6; coarser maps have too few positions."""


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
        self, student: Features, teacher: Features
    ) -> tuple[Float[Tensor, "N c h w"], Float[Tensor, "N d h w"]]:
        """Return both last maps at the smaller of their resolutions."""
        return final_maps(student, teacher)


class LevelPairs(nn.Module):
    """Pairs of levels of two detectors' pyramids, with a connector where their channels differ.

    Its output for two networks' features are pairs of maps of equal shape, finest first.
    """

    def __init__(
        self,
        method: str,
        chosen: Sequence[int] | None,
        student: Shapes,
        teacher: Shapes,
        *,
        most: int | None = USUAL_LEVELS,
        kernel: int | None = None,
    ) -> None:
        """Pair levels; `chosen` None takes the first `most`, and all if that is None too.

        `kernel` is the side of the kernel that every level's connector has; None: 1x1 where
        channels differ, and no connector elsewhere. Raises `IncompatibleNetworks` for a chosen
        level that is not there.
        """
        super().__init__()
        pairs = maps.pair_by_size(student.stages, teacher.stages)
        for level in chosen or ():
            if level >= len(pairs):
                raise errors.IncompatibleNetworks(
                    f"method {method} compares level {level} (levels), and the student's pyramid "
                    f"has {len(student.stages)} levels, the teacher's {len(teacher.stages)}; "
                    f"choose levels from 0 to {len(pairs) - 1}",
                    field="method/levels",
                    level=level,
                )
        taken = list(range(len(pairs)))[:most] if chosen is None else list(chosen)
        self.pairs = [pairs[level] for level in taken]
        self.channels = [teacher.stages[index][0] for _, index in self.pairs]
        self.sizes = [
            (min(one[1], other[1]), min(one[2], other[2]))
            for one, other in (
                (student.stages[ours], teacher.stages[theirs]) for ours, theirs in self.pairs
            )
        ]
        self.connectors = nn.ModuleList()
        for (index, _), wanted in zip(self.pairs, self.channels, strict=True):
            given = student.stages[index][0]
            self.connectors.append(
                nn.Identity()
                if given == wanted and kernel is None
                else nn.Conv2d(given, wanted, kernel or 1, padding=(kernel or 1) // 2)
            )

    def forward(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of maps [N, c, h, w] of equal shape, in float32 or more."""
        found = []
        for (ours, theirs), connector in zip(self.pairs, self.connectors, strict=True):
            given, wanted = maps.pool_to_smaller(
                maps.at_least_float(student.stages[ours]),
                maps.at_least_float(teacher.stages[theirs]),
            )
            found.append((connector(given), wanted))
        return found


class MapsMethod(DenseMethod):
    """Methods that compare maps: a segmenter's of its classes, or the levels of two pyramids."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "detection")
    task_features: ClassVar[Mapping[Task, tuple[FeatureName, ...]]] = MappingProxyType(
        {"detection": ("stages",)}
    )

    class Params(DenseMethod.Params):
        """Which levels are compared."""

        levels: Levels = None

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.levels: LevelPairs | None = None
        given, wanted = self.student_shapes, self.teacher_shapes
        if student.task == "detection" and given is not None and wanted is not None:
            self.levels = LevelPairs(self.name, params.levels, given, wanted)
        elif params.levels is not None:
            raise errors.BadRecipe(
                f"method {self.name}: levels are those of a detector's pyramid, and the task is "
                f"{student.task}; leave levels out",
                field="method/levels",
            )

    def map_pairs(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of maps [N, c, h, w] that are compared; losses are summed over them."""
        if self.levels is None:
            return [self.segmenter_maps(student, teacher)]
        pairs: list[tuple[Tensor, Tensor]] = self.levels(student, teacher)
        return pairs

    def segmenter_maps(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """Return the maps of two segmenters that are compared, of equal shape."""
        return self.class_maps(student, teacher)


def final_maps(
    student: Features, teacher: Features, connector: nn.Module | None = None
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

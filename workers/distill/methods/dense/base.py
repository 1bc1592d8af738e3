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

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import boxes, dataset
from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, divergences, maps
from workers.distill.methods.base import FeatureName, Need, Source, SupervisedMethod
from workers.distill.methods.parameters import (
    Levels,
    NCKDWeight,
    TCKDWeight,
    Temperature,
    WarmupEpochs,
)
from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Locations, Shapes
from workers.distill.tasks import detection

SMALLEST_POOL = 2
BACKGROUND, IGNORED = -1, -2
"""What a location learns that learns no class."""
DKD_SOURCE = Source(
    "Decoupled Knowledge Distillation", venue="CVPR 2022", arxiv="2203.08679", equations="5-7"
)
USUAL_LEVELS = 4
"""The finest ones, P2 to P5 or P3 to P6; coarser maps have too few positions."""


def detection_features(*names: FeatureName) -> Mapping[Task, tuple[FeatureName, ...]]:
    """Return what both networks must show in detection, as `Method.task_features` has it."""
    return MappingProxyType({"detection": names})


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

    def pixel_weights(
        self, batch: Batch, teacher_logits: Float[Tensor, "N C h w"], *, only_labelled: bool = True
    ) -> Bool[Tensor, "N h w"] | Float[Tensor, "N h w"]:
        """Return which pixels count, or what each counts where classes have weights.

        A pixel counts what its class does in the loss of the labels. One without a label counts
        nothing, or, unless `only_labelled`, what the teacher's classes of it count on average.
        """
        labels, known = self.pixel_labels(batch, teacher_logits)
        weights = batch.class_weights
        if weights is None:
            return known if only_labelled else torch.ones_like(known)
        found = weights[labels]
        if only_labelled:
            return found * known
        expected = teacher_logits.softmax(1).movedim(1, 3) @ weights.to(teacher_logits.dtype)
        return torch.where(known, found, expected)

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

        Pixels count as `pixel_weights` says.
        """
        student_logits, teacher_logits = self.class_maps(student, teacher)
        return divergences.scaled_kl(
            student_logits,
            teacher_logits,
            temperature=temperature,
            counted=self.pixel_weights(batch, teacher_logits, only_labelled=only_labelled),
        )


class DenseFeatureMethod(DenseMethod):
    """Methods that compare the last feature maps of both networks."""

    auto_balanced = True
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

    auto_balanced = True
    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "detection")
    task_features = detection_features("stages")
    task_params: ClassVar[Mapping[str, tuple[Task, ...]]] = MappingProxyType(
        {"levels": ("detection",)}
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

    def map_pairs(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of maps [N, c, h, w] that are compared; losses are summed over them."""
        if self.levels is None:
            return [self.segmenter_maps(student, teacher)]
        pairs: list[tuple[Tensor, Tensor]] = self.levels(student, teacher)
        return pairs

    def segmenter_maps(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """Return the maps of two segmenters that are compared, of equal shape."""
        return self.class_maps(student, teacher)


class DecoupledParams(SupervisedMethod.Params):
    """Hyper-parameters of decoupled distillation with the defaults of its detectors."""

    alpha: TCKDWeight = 1.0
    beta: NCKDWeight = 0.25
    temperature: Temperature = 1.0
    warmup_epochs: WarmupEpochs = 0


class HeadMethod(SupervisedMethod):
    """Methods that compare what two dense heads say at each location or anchor.

    The locations of both networks must coincide: as many levels of the same sizes, and as many
    boxes per location.
    """

    family = "dense"
    tasks: ClassVar[tuple[Task, ...]] = ("detection",)
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")
    task_features = detection_features("locations")
    accepts_mixed = False  # a location learns the boxes of one image

    def __init__(
        self, params: SupervisedMethod.Params, student: Network, teacher: Network | None
    ) -> None:
        super().__init__(params, student, teacher)
        ours, theirs = self.student_shapes, self.teacher_shapes
        if ours is None or theirs is None or ours.locations is None or theirs.locations is None:
            raise ValueError(f"method {self.name} was not shown the locations of both heads")
        if ours.locations != theirs.locations:
            raise errors.IncompatibleNetworks(
                f"method {self.name} compares both heads location by location, and the student "
                f"has {_described(ours.locations)}, the teacher {_described(theirs.locations)}; "
                "choose networks with the same levels and anchors, or a method that compares the "
                "maps of their pyramids, such as pkd",
                student_levels=ours.locations.level_sizes,
                teacher_levels=theirs.locations.level_sizes,
            )

    def assigned(self, student: Features, batch: Batch) -> Int[Tensor, "N L"]:
        """Return the class that each location of the student learns; -1 background, -2 ignored."""
        detector = student.detector
        if not isinstance(detector, interface.DenseDetectorOutput):
            raise TypeError("the student has no head over its maps")
        return detector.assigned(detection.network_targets(detector, batch.labels))


class ProposalsMethod(SupervisedMethod):
    """Methods that compare how two networks classify the student's proposals.

    Each network pools its own maps in the boxes that the student has drawn to learn from; the
    teacher proposes nothing. Background is a class.
    """

    family = "dense"
    tasks: ClassVar[tuple[Task, ...]] = ("detection",)
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")
    task_features = detection_features("proposals")
    accepts_mixed = False  # a proposal is matched with the boxes of one image

    def classified(
        self, student: Features, teacher: Features, batch: Batch
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R C"], Int[Tensor, " R"]]:
        """Return both networks' logits of the student's proposals, and the classes of those.

        C is one more than the classes; the last is background.
        """
        ours, theirs = student.detector, teacher.detector
        if not isinstance(ours, interface.TwoStageDetectorOutput) or not isinstance(
            theirs, interface.TwoStageDetectorOutput
        ):
            raise TypeError("student and teacher must both classify proposals")
        proposals = ours.sample_proposals(detection.network_targets(ours, batch.labels))
        logits = ours.roi_logits(proposals)
        return logits, theirs.roi_logits(proposals).detach(), proposals.labels


class PyramidMethod(SupervisedMethod):
    """Methods that compare two pyramids, level by level, and may know where the boxes are."""

    family = "dense"
    auto_balanced = True
    tasks: ClassVar[tuple[Task, ...]] = ("detection",)
    task_features = detection_features("stages")
    accepts_mixed = False  # boxes are those of one image

    class Params(SupervisedMethod.Params):
        """Which levels are compared."""

        levels: Levels = None

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        if self.student_shapes is None or self.teacher_shapes is None:
            raise ValueError(f"method {self.name} was not shown both pyramids")
        self.levels = LevelPairs(
            self.name, params.levels, self.student_shapes, self.teacher_shapes, most=None
        )
        # A level that is averaged to the teacher's size has a larger stride than the student's.
        self.strides = [
            student.stages_info[index].stride * self.student_shapes.stages[index][1] / size[0]
            for (index, _), size in zip(self.levels.pairs, self.levels.sizes, strict=True)
        ]

    def boxes_at(
        self, level: int, student: Features, batch: Batch
    ) -> tuple[Float[Tensor, "N M 4"], Bool[Tensor, "N M"]]:
        """Return the boxes that are learned in pixels of a level's maps, and which there are."""
        if student.detector is None:
            raise TypeError("the student is no detector")
        targets = detection.network_targets(student.detector, batch.labels)
        corners = targets[..., boxes.X1 : boxes.Y2 + 1] / self.strides[level]
        return corners, boxes.is_ordinary(targets)


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


def _described(locations: Locations) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in locations.level_sizes)
    counts = ", ".join(map(str, locations.boxes_per_location))
    return f"levels of {sizes} with {counts} boxes per location"

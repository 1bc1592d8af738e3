"""What methods share that compare two detectors' heads."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import boxes
from workers.distill.data.types import Batch
from workers.distill.methods.base import FeatureName, Need, SupervisedMethod
from workers.distill.methods.dense.base import LevelPairs
from workers.distill.methods.parameters import Levels
from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Locations
from workers.distill.tasks import detection

BACKGROUND, IGNORED = -1, -2


class HeadMethod(SupervisedMethod):
    """Methods that compare what two dense heads say at each location or anchor.

    The locations of both networks must coincide: as many levels of the same sizes, and as many
    boxes per location.
    """

    family = "dense"
    tasks: ClassVar[tuple[Task, ...]] = ("detection",)
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")
    task_features: ClassVar[Mapping[Task, tuple[FeatureName, ...]]] = MappingProxyType(
        {"detection": ("locations",)}
    )
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
    task_features: ClassVar[Mapping[Task, tuple[FeatureName, ...]]] = MappingProxyType(
        {"detection": ("proposals",)}
    )
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
    tasks: ClassVar[tuple[Task, ...]] = ("detection",)
    task_features: ClassVar[Mapping[Task, tuple[FeatureName, ...]]] = MappingProxyType(
        {"detection": ("stages",)}
    )
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


def _described(locations: Locations) -> str:
    sizes = ", ".join(f"{height}x{width}" for height, width in locations.level_sizes)
    counts = ", ".join(map(str, locations.boxes_per_location))
    return f"levels of {sizes} with {counts} boxes per location"

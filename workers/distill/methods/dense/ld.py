"""Localisation distillation.

Where both networks predict a distribution over the distance of each side of a box, the student
imitates the teacher's, which tells how sure a side is. It does so at the locations that learn a box
(the main region), and at those around them that overlap a box too little to learn it (the valuable
localisation region).

Source: Zheng et al., CVPR 2022, arXiv:2102.12252, equations 2 to 5 and algorithm 1.
Differs: the divergence is the sum over distances, averaged over four sides and over the locations
of a region; the released code averages over distances, weighs the main region by the student's
confidence, and divides neither by the number of locations. The anchor of a location without one of
its own is a square 8 times as large as FCOS's, as in the authors' detectors. Classes are not
distilled; combine it with headkd or crosskd for that.
Checked against: HikariTJU/LD, mmdet/models/dense_heads/ld_head.py (regions, temperature, weights).
"""

import torch
from pydantic import Field
from torch import Tensor

from workers.distill import errors
from workers.distill.data import boxes
from workers.distill.data.types import Batch
from workers.distill.functional import box_masks, divergences
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import HeadMethod, detection_features
from workers.distill.methods.parameters import Share, Temperature, Weight
from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network
from workers.distill.tasks import detection

ANCHOR_SCALE = 8


class LD(HeadMethod):
    """Imitate the teacher's distributions over the sides of boxes."""

    name = "ld"
    title = "Localisation distillation"
    source = Source(
        "Localization Distillation for Dense Object Detection",
        venue="CVPR 2022",
        arxiv="2102.12252",
        equations="2-5",
    )
    needs = ("labels", "teacher")
    task_features = detection_features("locations", "distributions")

    class Params(HeadMethod.Params):
        """Two weights, a temperature, and where the valuable region ends."""

        ld_weight: Weight = Field(0.25, description="Weight of the locations that learn a box.")
        valuable_weight: Weight = Field(
            0.25, description="Weight of the valuable localisation region; 0 leaves it out."
        )
        temperature: Temperature = 10.0
        valuable_share: Share = Field(
            0.25,
            description="Share of the least overlap of a location that would learn a box from "
            "which on a location belongs to the valuable region.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        ours, theirs = self.student_shapes, self.teacher_shapes
        if ours is not None and theirs is not None and ours.distances != theirs.distances:
            raise errors.IncompatibleNetworks(
                f"method ld compares distributions over the same distances, and the student has "
                f"{ours.distances}, the teacher {theirs.distances}; choose networks with an equal "
                "reg_max and equal anchor_sizes",
                student_distances=ours.distances,
                teacher_distances=theirs.distances,
            )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the divergences of both regions."""
        params = self.params
        ours, theirs = (_distributions(each) for each in (student, teacher))
        apart = divergences.softened_kl(
            ours.flatten(0, 2), theirs.flatten(0, 2), temperature=params.temperature
        )
        gaps = params.temperature**2 * apart.view(ours.shape[:3]).mean(2)
        learns = self.assigned(student, batch) >= 0
        valuable = gaps.new_zeros(())
        if params.valuable_weight:
            region = self._valuable(student, batch) & ~learns
            valuable = divergences.mean_of(gaps.flatten(), region)
        return {
            **self.task(student, batch),
            "ld": params.ld_weight * divergences.mean_of(gaps.flatten(), learns),
            "ld_valuable": params.valuable_weight * valuable,
        }

    def _valuable(self, student: Features, batch: Batch) -> Tensor:
        detector = student.detector
        if not isinstance(detector, interface.DenseDetectorOutput):
            raise TypeError("the student has no head over its maps")
        targets = detection.network_targets(detector, batch.labels)
        anchors = detector.anchors()[0]
        middle = (anchors[:, :2] + anchors[:, 2:]) / 2
        half = ANCHOR_SCALE * (anchors[:, 2:] - anchors[:, :2]) / 2
        counts = zip(detector.level_sizes, detector.boxes_per_location, strict=True)
        return box_masks.valuable_region(
            targets[..., boxes.X1 : boxes.Y2 + 1],
            boxes.is_ordinary(targets),
            torch.cat([middle - half, middle + half], dim=1),
            [height * width * count for (height, width), count in counts],
            share=self.params.valuable_share,
        )


def _distributions(output: Features) -> Tensor:
    detector = output.detector
    if (
        not isinstance(detector, interface.DenseDetectorOutput)
        or detector.box_distributions is None
    ):
        raise TypeError("the network has no distributions over the sides of boxes")
    return detector.box_distributions

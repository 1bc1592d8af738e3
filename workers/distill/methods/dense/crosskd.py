"""Cross-head distillation.

A student's head is told two things that contradict each other where the teacher errs: the labels
and the teacher's predictions. Here the student's own head learns the labels alone; what its
convolutions have made of a map is handed to the rest of the frozen teacher's head, and what that
predicts imitates the teacher.

Source: Wang et al., CVPR 2024, arXiv:2306.11369, equations 4 to 7.
Differs: the divergence of classes is the binary KL, which is 0 where both agree, not the
cross-entropy (the gradient of both is the same), and boxes are compared by GIoU for all heads,
where the paper has the distributions' KL for heads that predict those; the teacher's boxes without
an area are left out. Both are divided by the
number of locations to which the student's assignment gives a box, one at least; the released code
divides by the sum of centerness for FCOS. Pyramids of different channels get a trained 1x1
convolution for each branch.
Checked against: jbwang1997/CrossKD, mmdet/models/detectors/crosskd_retinanet.py (the alignment of
scales, the weights of boxes).
"""

import importlib
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import divergences, maps, standardization
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import IGNORED, HeadMethod, detection_features
from workers.distill.methods.parameters import Focus, Weight
from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network


def aligned(
    student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N c h w"]
) -> Float[Tensor, "N c h w"]:
    """Return the student's map with the mean and the deviation of each of the teacher's channels.

    Both are taken over the positions of the whole batch.
    """
    images, channels, height, width = student.shape
    ours, theirs = (each.transpose(0, 1).flatten(1) for each in (student, teacher))
    scores = standardization.standardized(ours, by="sample", eps=standardization.GAP_EPS)
    # A single value has no deviation.
    deviation = theirs.std(1, correction=min(1, theirs.shape[1] - 1), keepdim=True)
    moved = scores * deviation + theirs.mean(1, keepdim=True)
    return moved.view(channels, images, height, width).transpose(0, 1)


class CrossKD(HeadMethod):
    """Imitate the teacher with what its head makes of the student's maps."""

    name = "crosskd"
    title = "Cross-head distillation"
    source = Source(
        "CrossKD: Cross-Head Knowledge Distillation for Object Detection",
        venue="CVPR 2024",
        arxiv="2306.11369",
        equations="4-7",
    )
    task_features = detection_features("stages", "locations", "branches")

    class Params(HeadMethod.Params):
        """Two weights, an exponent, and where the heads are crossed."""

        class_weight: Weight = Field(1.0, description="Weight of the classes.")
        box_weight: Weight = Field(1.0, description="Weight of the boxes.")
        focus: Focus = 1.0
        remaining_convs: int = Field(
            1,
            ge=0,
            le=8,
            description="Convolutions of the teacher's head, before its last layer, through which "
            "the student's maps pass; they leave the student's head as many before its end. 1 is "
            "the authors' choice.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        ours, theirs = self.student_shapes, self.teacher_shapes
        if ours is None or theirs is None or ours.head_convs is None or theirs.head_convs is None:
            raise ValueError("method crosskd was not shown the branches of both heads")
        least = min(ours.head_convs, theirs.head_convs)
        if params.remaining_convs > least:
            raise errors.IncompatibleNetworks(
                f"method crosskd leaves {params.remaining_convs} convolutions of a head "
                f"(remaining_convs), and the student's has {ours.head_convs}, the teacher's "
                f"{theirs.head_convs}; lower it to {least}",
                field="method/remaining_convs",
                remaining_convs=params.remaining_convs,
            )
        self._own_convs = ours.head_convs - params.remaining_convs
        self._teacher_convs = theirs.head_convs - params.remaining_convs
        given, wanted = ours.stages[0][0], theirs.stages[0][0]
        self.connectors = nn.ModuleList(
            nn.Identity() if given == wanted else nn.Conv2d(given, wanted, 1) for _ in range(2)
        )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, and the distances of the crossed head's classes and boxes."""
        params = self.params
        ours, theirs = _branched(student), _branched(teacher)
        crossed = self._crossed(ours, theirs, student, teacher)
        classes = self.assigned(student, batch)
        counted = (classes != IGNORED).to(crossed.logits.dtype)
        positives = (classes >= 0).sum().clamp_min(1)
        apart = divergences.binary_kl(
            crossed.logits, teacher.logits, temperature=1.0, focus=params.focus
        )
        giou: Any = importlib.import_module("torchvision.ops").generalized_box_iou_loss
        boxes = theirs.predicted_boxes()
        wrong = giou(crossed.boxes, boxes)
        # A box without an area (FCOS's distances may be 0) is like no other, not even itself.
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(2)
        confidence = teacher.logits.sigmoid().amax(1) * has_area
        return {
            **self.task(student, batch),
            "crosskd_classes": params.class_weight * (apart.sum(1) * counted).sum() / positives,
            "crosskd_boxes": params.box_weight * (wrong * confidence * counted).sum() / positives,
        }

    def _crossed(
        self,
        ours: interface.BranchedDetectorOutput,
        theirs: interface.BranchedDetectorOutput,
        student: Features,
        teacher: Features,
    ) -> interface.HeadPrediction:
        """Return what the rest of the teacher's head says of the student's maps."""
        levels, teacher_levels = (
            [maps.at_least_float(level) for level in each.stages] for each in (student, teacher)
        )
        given = ours.branch_maps(levels, self._own_convs)
        with torch.no_grad():
            wanted = theirs.branch_maps(teacher_levels, self._teacher_convs)
        class_maps, box_maps = (
            [
                aligned(connector(one), other)
                for one, other in zip(given[branch], wanted[branch], strict=True)
            ]
            for branch, connector in enumerate(self.connectors)
        )
        return theirs.predict_from(class_maps, box_maps, self._teacher_convs)


def _branched(output: Features) -> interface.BranchedDetectorOutput:
    if not isinstance(output.detector, interface.BranchedDetectorOutput):
        raise TypeError("the network's head has no branches of convolutions")
    return output.detector

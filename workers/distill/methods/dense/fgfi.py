"""Fine-grained feature imitation.

The student imitates the levels of the teacher's pyramid near objects: where one of its anchors
overlaps a box at least half as well as the best anchor does.

Source: Wang et al., CVPR 2019, arXiv:1906.03609, equations 1 and 2.
Differs: with FCOS, whose locations have no anchors, positions that a box touches take their place.
Where channels are equal, no convolution is trained in between, and it has no ReLU behind it. Levels
of different sizes are averaged to the smaller one.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import box_masks, map_distances
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import PyramidMethod
from workers.distill.methods.parameters import Share, Weight
from workers.distill.networks import interface
from workers.distill.networks.interface import Features


class FGFI(PyramidMethod):
    """Imitate the teacher's maps near objects."""

    name = "fgfi"
    title = "Fine-grained feature imitation"
    source = Source(
        "Distilling Object Detectors with Fine-grained Feature Imitation",
        venue="CVPR 2019",
        arxiv="1906.03609",
        equations="1-2",
    )
    needs = ("labels", "teacher")

    class Params(PyramidMethod.Params):
        """A weight, a share and a start."""

        imitation_weight: Weight = Field(0.01, description="Weight of the imitation.")
        overlap_share: Share = Field(
            0.5,
            description="Share of the best overlap of any anchor with a box from which on an "
            "anchor counts as near.",
        )
        idle_steps: int = Field(
            400, ge=0, le=1_000_000, description="First steps in which nothing is imitated."
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the imitation, summed over levels."""
        losses = []
        for level, (ours, theirs) in enumerate(self.levels(student, teacher)):
            near = self._near(level, (ours.shape[2], ours.shape[3]), student, batch)
            squares = map_distances.sum_of_squares(ours, theirs, near)
            losses.append(squares / (2 * near.sum().clamp_min(1)))
        # Multiplied, so that connectors have a gradient from the first step on.
        weight = self.params.imitation_weight * (moment.step > self.params.idle_steps)
        return {**self.task(student, batch), "fgfi": weight * torch.stack(losses).sum()}

    def _near(
        self, level: int, size: tuple[int, int], student: Features, batch: Batch
    ) -> Float[Tensor, "N 1 h w"]:
        corners, exist = self.boxes_at(level, student, batch)
        detector = student.detector
        if not isinstance(detector, interface.AnchoredDetectorOutput):
            foreground, _ = box_masks.scale_weights(corners, exist, size)
            return (foreground > 0).to(corners.dtype)[:, None]
        anchors = detector.level_anchors()[self.levels.pairs[level][0]]
        found = box_masks.anchor_mask(
            corners * self.strides[level], exist, anchors, share=self.params.overlap_share
        )
        return F.adaptive_max_pool2d(found.to(corners.dtype)[:, None], size)

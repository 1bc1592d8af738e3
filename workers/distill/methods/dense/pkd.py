"""Distillation through the Pearson correlation of maps.

Each channel of a detector's pyramid, or each class's map of logits of a segmenter, becomes z-scores
over all positions of the batch, and the student matches the teacher's: patterns count, magnitudes
do not. With `patch`, maps are cut, and z-scores are those within a patch.

Source: Cao et al., NeurIPS 2022, arXiv:2207.02039.
Differs: the paper compares the maps of a detector's pyramid; a segmenter's classes take their place
here, since they alone are equally many in both networks. Maps of different sizes are averaged to
the smaller one, where the authors interpolate the student's, and pyramids of different channels get
a trained 1x1 convolution.
Checked against: Klayand/PCKA, released code (values without patches; with them that code does not
cut the maps).
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import patches, standardization
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import MapsMethod
from workers.distill.methods.parameters import PatchSide, Weight
from workers.distill.networks.interface import Features

DETECTORS_WEIGHT, SEGMENTERS_WEIGHT = 6.0, 10.0


class PKD(MapsMethod):
    """Correlate the student's maps with the teacher's."""

    name = "pkd"
    title = "Distillation by Pearson correlation"
    source = Source(
        "PKD: General Distillation Framework for Object Detectors via Pearson Correlation "
        "Coefficient",
        venue="NeurIPS 2022",
        arxiv="2207.02039",
    )

    class Params(MapsMethod.Params):
        """A weight, and how maps are cut."""

        pkd_weight: Weight | None = Field(
            None,
            description="Weight of the difference of z-scores. Null takes 6 for detectors, the "
            "authors' value for Faster R-CNN, and 10 for segmenters, that for RetinaNet.",
        )
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the difference of z-scores."""
        weight = self.params.pkd_weight
        if weight is None:
            weight = SEGMENTERS_WEIGHT if self.levels is None else DETECTORS_WEIGHT
        gaps = [self._gap(*pair) for pair in self.map_pairs(student, teacher)]
        return {**self.task(student, batch), "pkd": weight * torch.stack(gaps).sum()}

    def _gap(
        self, student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N c h w"]
    ) -> Float[Tensor, ""]:
        side = self.params.patch
        if side is not None:
            return patches.standardized(*patches.pair_rows(student, teacher, side=side))
        one, other = (each.transpose(0, 1).flatten(1) for each in (student, teacher))
        return standardization.z_score_gap(one, other)

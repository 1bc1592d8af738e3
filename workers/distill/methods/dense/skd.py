"""Structured knowledge distillation: match the similarities between positions of an image.

Besides each pixel's probabilities, the student matches the cosines between all positions of its
last map; channels may differ. Maps are pooled first (largest value), since cosines are as many as
positions, squared.

Source: Liu et al., CVPR 2019, arXiv:1903.04197 (pixel-wise and pair-wise).
Differs: the third, adversarial part ("holistic") is left out. The first is averaged over pixels and
images, without pixels that have no label; the authors divide by the pixels of one image. They pool
maps to 2x2 positions; winycg/CIRKD pools by 2, which is the default here, or more where more than
1024 positions would remain.
Checked against: winycg/CIRKD, losses/skd.py (the pair-wise part).
"""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import relations
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense import base
from workers.distill.methods.parameters import PoolSide, Temperature, Weight
from workers.distill.networks.interface import Features

MOST_POSITIONS = 1024


class SKD(base.DenseFeatureMethod):
    """Match the cosines between the positions of an image."""

    name = "skd"
    title = "Structured knowledge distillation"
    source = Source(
        "Structured Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2019",
        arxiv="1903.04197",
    )

    class Params(base.DenseFeatureMethod.Params):
        """Two weights, a temperature, and how maps are pooled."""

        pixel_weight: Weight = Field(
            10.0, description="Weight of the imitation of each pixel's probabilities."
        )
        pair_weight: Weight = Field(
            0.5, description="Weight of the mean squared difference of cosines."
        )
        temperature: Temperature = 1.0
        pool: PoolSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the imitation of pixels and the difference of cosines."""
        params = self.params
        pixels = pairs = student.logits.new_zeros(())
        if params.pixel_weight:
            pixels = self.pixel_kl(student, teacher, batch, temperature=params.temperature)
        if params.pair_weight:
            final = self.final_maps(student, teacher)
            side = base.pool_side(params.pool, final[0], most=MOST_POSITIONS)
            pooled = [F.max_pool2d(each, side, ceil_mode=True) for each in final]
            pairs = relations.position_cosine_gap(*pooled)
        return {
            **self.task(student, batch),
            "skd_pixels": params.pixel_weight * pixels,
            "skd_pairs": params.pair_weight * pairs,
        }

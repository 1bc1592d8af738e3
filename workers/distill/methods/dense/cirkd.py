"""Cross-image relational distillation.

The student matches how similar each position of its last map is to the positions of every image of
the batch, its own among them, besides imitating each pixel's probabilities; channels may differ.

Source: Yang et al., CVPR 2022, arXiv:2204.06986.
Differs: the two parts that compare with a memory of earlier images are left out. Pixels without a
label are left out of the imitation. Maps are pooled (average) by 2, as the authors' code can, or by
more where more than 256 positions would remain: memory grows with the square of batch and
positions.
Checked against: winycg/CIRKD, losses/cirkd_mini_batch.py.
"""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import relations
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense import base
from workers.distill.methods.parameters import PoolSide, Temperature, Weight
from workers.distill.networks.interface import Features

MOST_POSITIONS = 256


class CIRKD(base.DenseFeatureMethod):
    """Match the similarities between the positions of all images."""

    name = "cirkd"
    title = "Cross-image relational distillation"
    source = Source(
        "Cross-Image Relational Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2022",
        arxiv="2204.06986",
    )

    class Params(base.DenseFeatureMethod.Params):
        """Two weights, two temperatures, and how maps are pooled."""

        pixel_weight: Weight = Field(
            1.0, description="Weight of the imitation of each pixel's probabilities."
        )
        relation_weight: Weight = Field(
            1.0, description="Weight of the similarities between the positions of all images."
        )
        temperature: Temperature = 1.0
        relation_temperature: float = Field(
            0.1, gt=0, le=1e4, description="Divides similarities before softmax."
        )
        pool: PoolSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the imitation of pixels and that of similarities."""
        params = self.params
        pixels = similar = student.logits.new_zeros(())
        if params.pixel_weight:
            pixels = self.pixel_kl(student, teacher, batch, temperature=params.temperature)
        if params.relation_weight:
            final = self.final_maps(student, teacher)
            side = base.pool_side(params.pool, final[0], most=MOST_POSITIONS)
            pooled = [F.avg_pool2d(each, side, ceil_mode=True) for each in final]
            similar = relations.cross_image_kl(*pooled, temperature=params.relation_temperature)
        return {
            **self.task(student, batch),
            "cirkd_pixels": params.pixel_weight * pixels,
            "cirkd_relations": params.relation_weight * similar,
        }

"""Structured knowledge distillation: match the similarities between positions of an image.

Besides each pixel's probabilities, the student matches the cosines between all positions of its
last map; channels may differ. Maps are pooled first (largest value), since cosines are as many as
positions, squared. A third, adversarial part ("holistic") lets a critic learn to tell the student's
maps of classes from the teacher's, and the student to deceive it.

Source: Liu et al., CVPR 2019, arXiv:1903.04197, sections 3.1 to 3.3.
Differs: the first part is averaged over pixels and images, without pixels that have no label, and
with `training.class_weights` a pixel counts in it what its class does in the loss of the labels;
the authors divide by the pixels of one image. They pool maps to 2x2 positions; winycg/CIRKD pools
by 2, which is the default here, or more where more than 1024 positions would remain. The third part
is off unless asked for (the authors' weight is 0.1): the student's optimizer trains the critic in
the same step, where the authors alternate with an Adam of its own, and the usual rates of SGD are
too high for it. The critic sees probabilities, as the paper's condition on the image is not in the
released code either, of maps of at most 64 pixels a side, and has no spectral norm.
Checked against: winycg/CIRKD, losses/skd.py (the pair-wise part);
irfanICMLL/structure_knowledge_distillation, networks/sagan_models.py (the critic's layers).
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import critics, maps, relations
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense import base
from workers.distill.methods.parameters import PoolSide, Temperature, Weight, Width
from workers.distill.networks.interface import Features, Network

MOST_POSITIONS = 1024
MOST_CRITIC_SIDE = 64
PENALTY_WEIGHT = 10.0
"""Of the critic's gradient, as published."""


class SKD(base.DenseFeatureMethod):
    """Match the cosines between the positions of an image."""

    name = "skd"
    weighs_classes = True
    title = "Structured knowledge distillation"
    source = Source(
        "Structured Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2019",
        arxiv="1903.04197",
    )

    class Params(base.DenseFeatureMethod.Params):
        """Three weights, a temperature, how maps are pooled, and the critic's width."""

        pixel_weight: Weight = Field(
            10.0, description="Weight of the imitation of each pixel's probabilities."
        )
        pair_weight: Weight = Field(
            0.5, description="Weight of the mean squared difference of cosines."
        )
        holistic_weight: Weight = Field(
            0.0,
            description="Weight of the critic's score; 0 leaves the critic out. The authors' is "
            "0.1; choose adamw for it.",
        )
        temperature: Temperature = 1.0
        pool: PoolSide = None
        critic_width: Width = Field(64, description="Channels of the critic's first layer.")

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.critic: critics.MapCritic | None = None
        if params.holistic_weight:
            height, width = (min(side, MOST_CRITIC_SIDE) for side in student.image_shape[1:])
            self.critic = critics.MapCritic(
                student.classes, height=height, width=width, channels=params.critic_width
            )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the imitation of pixels, that of cosines, and the critic's two."""
        params = self.params
        pixels = pairs = student.logits.new_zeros(())
        if params.pixel_weight:
            pixels = self.pixel_kl(student, teacher, batch, temperature=params.temperature)
        if params.pair_weight:
            final = self.final_maps(student, teacher)
            side = base.pool_side(params.pool, final[0], most=MOST_POSITIONS)
            pooled = [F.max_pool2d(each, side, ceil_mode=True) for each in final]
            pairs = relations.position_cosine_gap(*pooled)
        deceived, learned = self._criticised(student, teacher)
        return {
            **self.task(student, batch),
            "skd_pixels": params.pixel_weight * pixels,
            "skd_pairs": params.pair_weight * pairs,
            "skd_holistic": params.holistic_weight * deceived,
            "skd_critic": learned,
        }

    def _criticised(
        self, student: Features, teacher: Features
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the student's loss and the critic's."""
        if self.critic is None:
            off = student.logits.new_zeros(())
            return off, off
        logits = self.class_maps(student, teacher)
        size = [min(side, MOST_CRITIC_SIDE) for side in logits[0].shape[2:]]
        ours, theirs = (maps.average_to(each.softmax(1), (size[0], size[1])) for each in logits)
        share = torch.rand(len(ours), 1, 1, 1, dtype=ours.dtype, device=ours.device)
        mixed = share * theirs + (1 - share) * ours
        learned = critics.critic_loss(
            self.critic, ours, theirs, mixed, penalty_weight=PENALTY_WEIGHT
        )
        return critics.student_loss(self.critic, ours), learned

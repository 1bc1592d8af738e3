"""Channel-wise distillation.

Each class's map of logits of a segmenter, or each channel of a detector's pyramid, is softened into
a distribution over positions, and the student imitates the teacher's: where a class is matters, not
how large its logits are. With `patch`, maps are cut, and a channel's values within a patch are a
distribution of their own.

Source: Shu et al., ICCV 2021, arXiv:2011.13256; Zhou et al., IJCAI 2024,
arXiv:2401.11824, for patches.
Differs: weight and temperature are those of MMRazor's published configurations for Cityscapes and
for Faster R-CNN, not the paper's (3 and 4); its RetinaNet has temperature 4 and levels 0 to 2.
Pyramids of different channels get a trained 1x1 convolution. With patches the divergence is
averaged over patches; the authors' code sums it for this loss and averages it for their KL loss,
which else is the same.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import divergences, patches
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import MapsMethod
from workers.distill.methods.parameters import PatchSide, Temperature, Weight
from workers.distill.networks.interface import Features

DETECTORS_WEIGHT, SEGMENTERS_WEIGHT = 10.0, 5.0


class CWD(MapsMethod):
    """Imitate where the teacher sees each class."""

    name = "cwd"
    title = "Channel-wise distillation"
    source = Source(
        "Channel-wise Knowledge Distillation for Dense Prediction",
        venue="ICCV 2021",
        arxiv="2011.13256",
    )

    class Params(MapsMethod.Params):
        """A weight, a temperature, and how maps are cut."""

        cwd_weight: Weight | None = Field(
            None,
            description="Weight of the imitation of the teacher. Null takes 10 for detectors and "
            "5 for segmenters.",
        )
        temperature: Temperature = 1.0
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the divergence of the classes' maps."""
        weight = self.params.cwd_weight
        if weight is None:
            weight = SEGMENTERS_WEIGHT if self.levels is None else DETECTORS_WEIGHT
        gaps = [self._gap(*pair) for pair in self.map_pairs(student, teacher)]
        return {**self.task(student, batch), "cwd": weight * torch.stack(gaps).sum()}

    def _gap(
        self, student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N c h w"]
    ) -> Float[Tensor, ""]:
        side, temperature = self.params.patch, self.params.temperature
        if side is None:
            return divergences.channel_kl(student, teacher, temperature=temperature)
        cut = patches.pair_rows(student, teacher, side=side)
        return patches.softened(*cut, temperature=temperature)

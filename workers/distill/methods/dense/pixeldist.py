"""DIST on pixels: match relations, not probabilities.

Each pixel is a sample: its probabilities are correlated with the teacher's over the classes, and
each class's over the pixels. With `patch`, each class's map is cut instead: the values of a patch
are softened together, and correlated within a patch and between patches. Of detectors the channels
of their pyramids take the place of classes; the authors of the patches cut those (`patch` 16,
`temperature` 4).

Source: Huang et al., NeurIPS 2022, arXiv:2205.10536; Zhou et al., IJCAI 2024, arXiv:2401.11824, for
patches.
Differs: pyramids of different channels get a trained 1x1 convolution.
Checked against: Klayand/PCKA, released code (published values, on pixels).
"""

import torch
from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import patches, relations
from workers.distill.functional.rows import rows
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import MapsMethod
from workers.distill.methods.parameters import PatchSide, Temperature, Weight
from workers.distill.networks.interface import Features


class PixelDIST(MapsMethod):
    """Correlate the pixels' probabilities with the teacher's, along classes and along pixels."""

    name = "pixeldist"
    title = "Distillation from a stronger teacher, on pixels"
    source = Source(
        "Knowledge Distillation from A Stronger Teacher",
        venue="NeurIPS 2022",
        arxiv="2205.10536",
    )

    class Params(MapsMethod.Params):
        """A weight for each relation, a temperature, and how maps are cut."""

        beta: Weight = Field(
            1.0,
            description="Weight of the inter-class relation: each pixel's probabilities over the "
            "classes.",
        )
        gamma: Weight = Field(
            1.0,
            description="Weight of the intra-class relation: each class's probabilities over the "
            "pixels of the batch.",
        )
        temperature: Temperature = 1.0
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the two relations."""
        params = self.params
        inter, intra = [], []
        for one, other in self.map_pairs(student, teacher):
            if params.patch is None:
                samples = rows(one), rows(other)
            else:
                samples = patches.pair_rows(one, other, side=params.patch)
            gaps = relations.correlation_gaps(*samples, temperature=params.temperature)
            inter.append(gaps.inter)
            intra.append(gaps.intra)
        return {
            **self.task(student, batch),
            "inter": params.beta * torch.stack(inter).sum(),
            "intra": params.gamma * torch.stack(intra).sum(),
        }

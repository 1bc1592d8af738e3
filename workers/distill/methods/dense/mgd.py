"""Masked generative distillation.

Positions of the student's maps are dropped at random, and two convolutions generate the whole of
the teacher's maps from what is left: the student's features must say more than their own place.

Source: Yang et al., ECCV 2022, arXiv:2205.01529, equations 1 to 4.
Differs: levels of different sizes are averaged to the smaller one. Without training nothing is
dropped.
"""

import torch
from pydantic import Field
from torch import nn

from workers.distill.data.types import Batch
from workers.distill.functional import map_distances
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import PyramidMethod
from workers.distill.methods.parameters import Share, Weight
from workers.distill.networks.interface import Features, Network


class MGD(PyramidMethod):
    """Generate the teacher's maps from masked ones of the student."""

    name = "mgd"
    title = "Masked generative distillation"
    source = Source(
        "Masked Generative Distillation", venue="ECCV 2022", arxiv="2205.01529", equations="1-4"
    )
    needs = ("labels", "teacher")

    class Params(PyramidMethod.Params):
        """A weight and a share."""

        mgd_weight: Weight = Field(2e-5, description="Weight of the generated maps' distance.")
        masked_share: Share = Field(0.65, description="Share of positions that are dropped.")

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for channels in self.levels.channels
        )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the distance, the sum over levels per image."""
        distances = []
        pairs = self.levels(student, teacher)
        for generator, (ours, theirs) in zip(self.generators, pairs, strict=True):
            share = self.params.masked_share if self.training else 0.0
            generated = generator(map_distances.drop_positions(ours, share=share))
            distances.append(map_distances.sum_of_squares(generated, theirs))
        loss = torch.stack(distances).sum() / len(batch.labels)
        return {**self.task(student, batch), "mgd": self.params.mgd_weight * loss}

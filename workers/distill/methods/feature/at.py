"""Attention transfer.

A stage's activations, summed over channels, give a spatial attention map. The student matches the
teacher's maps at every stage; the networks' widths may differ. Of detectors the levels of their
pyramids are compared.

Source: Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928, equation 2.
Differs: the default distance is the mean of squared differences over images and positions, not the
norm that equation 2 prints, since the usual weight of 1000 and all published numbers belong to it.
`distance: norm` is equation 2, with values far larger: there a weight near 1 is right (half of the
paper's beta is `at_weight`). Values are taken absolute for every power, as in the paper. Where the
networks have different numbers of stages, each of the fewer is paired with the one closest in size,
in order; cutting the longer list, as reference code does, can pair maps of different sizes.
Checked against: megvii-research/mdistiller, mdistiller/distillers/AT.py (published values).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.config.job import Task
from workers.distill.data.types import Batch
from workers.distill.functional import maps, patches
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.feature.base import StagePairsMethod
from workers.distill.methods.parameters import PatchSide, Weight
from workers.distill.networks.interface import Features

Distance: TypeAlias = Literal["squared_mean", "norm"]


def at_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    *,
    power: float,
    distance: Distance,
    patch: int | None = None,
) -> Float[Tensor, ""]:
    """Return the distance of the attention maps, summed over pairs of maps [N, c, h, w]."""
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack(
        [
            _pair_loss(one, other, power=power, distance=distance, patch=patch)
            for one, other in pairs
        ]
    ).sum()


def _pair_loss(
    student: Float[Tensor, "N c h w"],
    teacher: Float[Tensor, "N d i j"],
    *,
    power: float,
    distance: Distance,
    patch: int | None,
) -> Float[Tensor, ""]:
    student, teacher = maps.pool_to_smaller(
        maps.at_least_float(student), maps.at_least_float(teacher)
    )
    if patch is None:
        difference = maps.attention(student, power=power) - maps.attention(teacher, power=power)
    else:
        difference = patches.attention(student, side=patch, power=power)
        difference = difference - patches.attention(teacher, side=patch, power=power)
    if distance == "norm":
        norms: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norms.mean()
    return difference.square().mean()


class AT(StagePairsMethod):
    """Match the attention maps of both networks, stage by stage."""

    name = "at"
    title = "Attention transfer"
    source = Source(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural "
        "Networks via Attention Transfer",
        venue="ICLR 2017",
        arxiv="1612.03928",
        equations="2",
    )
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation", "detection", "embedding")

    class Params(StagePairsMethod.Params):
        """A weight, a power, a distance, and how maps are cut."""

        at_weight: Weight = Field(1000.0, description="Weight of the attention term.")
        power: float = Field(
            2.0,
            ge=1,
            le=8,
            description="Power of the activations before they are averaged over channels.",
        )
        distance: Distance = Field(
            "squared_mean",
            description="squared_mean: mean of squared differences over images and positions, as "
            "published numbers use; norm: the paper's Euclidean norm, which needs a weight near 1.",
        )
        patch: PatchSide = None

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the attention term."""
        loss = at_loss(
            *self.paired(student, teacher),
            power=self.params.power,
            distance=self.params.distance,
            patch=self.params.patch,
        )
        return {**self.task(student, batch), "at": self.params.at_weight * loss}

"""Neuron selectivity transfer.

Each channel of a stage is a sample of spatial selectivity. The squared maximum mean discrepancy
between the channels of both networks, with the kernel k(x, y) = (x . y)^2, makes the student's
distribution of selectivities match the teacher's; numbers of channels may differ.

Source: Huang and Wang, 2017, arXiv:1707.01219, polynomial kernel with d = 2 and c = 0.
Differs: means over images and all pairs of channels, summed over all stages, as in published
tables. Where the networks have different numbers of stages, each of the fewer is paired with the
one closest in size, in order, instead of cutting the longer list.
Checked against: megvii-research/mdistiller, mdistiller/distillers/NST.py (published values).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import maps
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.feature.base import StagePairsMethod
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features


def nst_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the squared discrepancy of the channels, summed over pairs of maps [N, c, h, w]."""
    pairs = zip(student_maps, teacher_maps, strict=True)
    return torch.stack([_pair_loss(one, other) for one, other in pairs]).sum()


def _pair_loss(
    student: Float[Tensor, "N c h w"], teacher: Float[Tensor, "N d i j"]
) -> Float[Tensor, ""]:
    student, teacher = maps.pool_to_smaller(
        maps.at_least_float(student), maps.at_least_float(teacher)
    )
    ours = F.normalize(student.flatten(2), dim=2)
    theirs = F.normalize(teacher.flatten(2), dim=2)
    if ours.shape[2] <= min(ours.shape[1], theirs.shape[1]):
        # The same number: for this kernel it is the distance between Grams of the positions.
        return (_by_position(ours) - _by_position(theirs)).square().sum() / len(ours)
    return _kernel(theirs, theirs) + _kernel(ours, ours) - 2 * _kernel(ours, theirs)


def _kernel(ours: Float[Tensor, "N c p"], theirs: Float[Tensor, "N d p"]) -> Float[Tensor, ""]:
    # A matrix product: every pair of channels, broadcast over positions, would be p times larger.
    return (ours @ theirs.mT).square().mean()


def _by_position(selective: Float[Tensor, "N c p"]) -> Float[Tensor, "N p p"]:
    return selective.mT @ selective / selective.shape[1]


class NST(StagePairsMethod):
    """Match the distribution of the channels' spatial selectivity, stage by stage."""

    name = "nst"
    title = "Neuron selectivity transfer"
    source = Source(
        "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        venue="arXiv 2017",
        arxiv="1707.01219",
    )
    tasks = ("classification", "embedding")

    class Params(StagePairsMethod.Params):
        """A weight."""

        nst_weight: Weight = Field(50.0, description="Weight of the discrepancy.")

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the discrepancy."""
        loss = nst_loss(*self.paired(student, teacher))
        return {**self.task(student, batch), "nst": self.params.nst_weight * loss}

"""Variational information distillation.

The mutual information of both networks' maps is bounded from below by the likelihood of the
teacher's maps under a Gaussian whose mean a small network computes from the student's. Its variance
is learned for each channel, so channels that the student cannot predict have less weight.

Source: Ahn et al., CVPR 2019, arXiv:1904.05835, Gaussian with one variance a channel.
Differs: the mean over all elements instead of their sum, without the constant of the Gaussian, at
every stage with weight 1, as in the published tables. The variance is learned, as in the paper;
MDistiller leaves it out of its optimizer, which `variance: fixed` repeats. Where the networks have
different numbers of stages, each of the fewer is paired with the one closest in size, in order,
instead of cutting the longer list.
Checked against: megvii-research/mdistiller, mdistiller/distillers/VID.py (published values).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.functional import maps
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.feature.base import StagePairsMethod
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network

SMALLEST_VARIANCE = 1e-5


def vid_loss(
    predicted: Float[Tensor, "N c h w"],
    teacher_maps: Float[Tensor, "N c h w"],
    variance: Float[Tensor, " c"],
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of the teacher's maps, without its constant.

    Units: nats an element. It is negative where a variance is small and the prediction good.
    """
    # Each channel has one variance, so its errors are averaged before they are divided by it.
    errors = (predicted - teacher_maps).square().mean(dim=(0, 2, 3))
    return 0.5 * (errors / variance + variance.log()).mean()


class Gaussian(nn.Module):
    """Predicts maps from maps, with a variance for each channel of the result."""

    def __init__(self, channels: int, wanted: int, *, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
        )
        # The inverse of `variance`: softplus keeps what is learned positive.
        start = math.log(math.expm1(variance - SMALLEST_VARIANCE))
        self.softened = nn.Parameter(torch.full((wanted,), start))

    @property
    def variance(self) -> Float[Tensor, " c"]:
        """Return the variance of each channel."""
        return F.softplus(self.softened) + SMALLEST_VARIANCE

    def forward(
        self, student_maps: Float[Tensor, "N c h w"], teacher_maps: Float[Tensor, "N d i j"]
    ) -> Float[Tensor, ""]:
        """Return the negative log-likelihood of the teacher's maps given the student's."""
        given, wanted = maps.pool_to_smaller(
            maps.at_least_float(student_maps), maps.at_least_float(teacher_maps)
        )
        return vid_loss(self.mean(given), wanted, self.variance)


class VID(StagePairsMethod):
    """Predict the teacher's maps from the student's, with a learned variance per channel."""

    name = "vid"
    title = "Variational information distillation"
    source = Source(
        "Variational Information Distillation for Knowledge Transfer",
        venue="CVPR 2019",
        arxiv="1904.05835",
    )
    tasks = ("classification", "embedding")

    class Params(StagePairsMethod.Params):
        """A weight, and where variances start."""

        vid_weight: Weight = Field(1.0, description="Weight of the log-likelihood.")
        initial_variance: float = Field(
            5.0, ge=0.001, le=80, description="Variance of every channel at the start."
        )
        variance: Literal["learned", "fixed"] = Field(
            "learned",
            description="Whether variances are learned, as in the paper, or stay as they start.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        given, wanted = self.student_shapes.stages, self.teacher_shapes.stages
        self.gaussians = nn.ModuleList(
            Gaussian(given[one][0], wanted[other][0], variance=params.initial_variance)
            for one, other in self.pairs
        )
        for gaussian in self.gaussians:
            gaussian.softened.requires_grad_(params.variance == "learned")

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the log-likelihood of all stages."""
        losses = [
            gaussian(student.stages[one], teacher.stages[other])
            for gaussian, (one, other) in zip(self.gaussians, self.pairs, strict=True)
        ]
        return {
            **self.task(student, batch),
            "vid": self.params.vid_weight * torch.stack(losses).sum(),
        }

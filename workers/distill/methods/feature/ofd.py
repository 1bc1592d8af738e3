"""Overhaul of feature distillation.

Maps are compared before the activation. Where the teacher's value is negative, so that its
activation is 0, the student need only be lower than a margin: the teacher's expected negative
value.

Source: Heo et al., ICCV 2019, arXiv:1904.01866, margin ReLU and partial L2 distance.
Differs: the teacher runs in evaluation mode like every teacher here; the authors' code keeps it in
training mode, which `teacher_statistics: batch` repeats. A channel whose batch norm has weight 0 is
constant, and its margin is min(bias, 0) instead of a division by zero. In residual networks the
margin comes from the last batch norm, before the shortcut is added, as in the authors' code.
Networks with different numbers of stages are compared from the deepest stage on.
Checked against: megvii-research/mdistiller, mdistiller/distillers/OFD.py, and
clovaai/overhaul-distillation (published values).
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import adapters, maps
from workers.distill.methods.base import FeatureMethod, FeatureName, Moment, Source, Terms
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Shapes

RARE = 0.001
"""Below this probability of a negative value, the expectation of one is not computed."""


def negative_margin(weight: Float[Tensor, " c"], bias: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Return the expectation of each channel given that it is negative.

    A batch norm's outputs are taken for normal with mean `bias` and deviation |`weight`|. Where
    negative values are rare, it is three deviations below zero.
    """
    centre, deviation = bias.double(), weight.double().abs()
    ratio = centre / deviation
    share = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    margin = torch.where(share > RARE, centre - deviation * density / share, -3 * deviation)
    return torch.where(deviation > 0, margin, centre.clamp(max=0)).to(bias.dtype)


def ofd_loss(
    student_maps: Float[Tensor, "N c h w"],
    teacher_maps: Float[Tensor, "N c h w"],
    margin: Float[Tensor, " c"],
) -> Float[Tensor, ""]:
    """Return the partial squared distance, summed over an image and averaged over the batch.

    A position adds nothing where the teacher is not positive and the student is lower than the
    larger of teacher and margin.
    """
    target = teacher_maps.maximum(margin[:, None, None])
    counts = (teacher_maps > 0) | (student_maps > target)
    # What does not count is compared with itself: that leaves one fused pass with a gradient.
    target = torch.where(counts, target, student_maps.detach())
    return F.mse_loss(student_maps, target, reduction="sum") / len(target)


class OFD(FeatureMethod):
    """Match maps before activations, except where both are cut off by the activation."""

    name = "ofd"
    title = "Overhaul of feature distillation"
    source = Source(
        "A Comprehensive Overhaul of Feature Distillation",
        venue="ICCV 2019",
        arxiv="1904.01866",
    )
    tasks = ("classification", "embedding")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("pre_activations",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("pre_activations", "norms")
    smallest_batch = 2
    """One image with a map of one pixel has no batch statistics."""

    class Params(FeatureMethod.Params):
        """A weight, and the statistics of the teacher's batch norms."""

        ofd_weight: Weight = Field(
            0.001,
            description="Weight of the deepest stage; each stage before it has half of the next. "
            "The authors use 0.0001 for ImageNet.",
        )
        teacher_statistics: Literal["running", "batch"] = Field(
            "running",
            description="Whether the teacher's batch norms use their running statistics, or each "
            "batch's own as in the authors' code.",
        )

    params: Params
    student_shapes: Shapes
    teacher_shapes: Shapes

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        given = self.student_shapes.pre_activations
        wanted = self.teacher_shapes.pre_activations
        norms = () if teacher is None else teacher.stage_norms()
        widths = [norm.num_features for norm in norms]
        if widths != [channels for channels, _, _ in wanted]:
            reference = "" if teacher is None else teacher.reference
            raise errors.IncompatibleNetworks(
                f"method ofd needs one batch norm for each stage before activation, and the "
                f"teacher {reference} has norms of {widths} channels for stages of "
                f"{[channels for channels, _, _ in wanted]}; choose another teacher",
                teacher=reference,
                missing="norms",
            )
        self.count = min(len(given), len(wanted))
        self.connectors = nn.ModuleList(
            _connector(one[0], other[0])
            for one, other in zip(given[-self.count :], wanted[-self.count :], strict=True)
        )
        # Made again from the teacher when a run is continued, so not part of its state.
        for index, norm in enumerate(norms[-self.count :]):
            margin = negative_margin(norm.weight.detach(), norm.bias.detach())
            self.register_buffer(f"margin{index}", margin, persistent=False)

    @property
    def teacher_trains(self) -> bool:
        """Whether the teacher's batch norms use the batch's own statistics."""
        return self.params.teacher_statistics == "batch"

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the partial distances of all stages."""
        losses = []
        for index, connector in enumerate(self.connectors):
            depth = self.count - index
            given = maps.at_least_float(student.pre_activations[-depth])
            wanted = maps.at_least_float(teacher.pre_activations[-depth])
            size = (given.shape[2], given.shape[3])
            loss = ofd_loss(
                connector(given), maps.average_to(wanted, size), self.get_buffer(f"margin{index}")
            )
            losses.append(loss / 2 ** (depth - 1))
        return {
            **self.task(student, batch),
            "ofd": self.params.ofd_weight * torch.stack(losses).sum(),
        }


def _connector(channels: int, wanted: int) -> nn.Sequential:
    connector = adapters.projection(channels, wanted)
    nn.init.normal_(connector.get_parameter("0.weight"), 0.0, math.sqrt(2 / wanted))
    return connector

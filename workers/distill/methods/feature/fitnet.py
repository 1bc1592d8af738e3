"""FitNets: hints from a middle stage.

The student's maps of one stage, brought to the teacher's shape by a trained convolution, are
regressed on the teacher's maps of that stage.

Source: Romero et al., ICLR 2015, arXiv:1412.6550, equation 3.
Differs: hint and task are trained together from the first epoch; the paper trains up to the hint
first and then distils logits (combine with `kd` for those). Batch norm and ReLU follow the
convolution. Both are what the published tables of later papers report under this name.
Checked against: megvii-research/mdistiller, mdistiller/distillers/FitNet.py (published values).
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import adapters, maps
from workers.distill.methods.base import FeatureMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Weight
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network

MOST_PARAMETERS = 100_000_000
"""Limit of a regressor's parameters; between very different sizes it exceeds both networks."""


def fitnet_loss(
    student_maps: Float[Tensor, "N c h w"], teacher_maps: Float[Tensor, "N c h w"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference over all elements."""
    return F.mse_loss(student_maps, teacher_maps)


class FitNet(FeatureMethod):
    """Regress the teacher's maps of one stage from the student's."""

    name = "fitnet"
    title = "FitNets: hints from a middle stage"
    source = Source(
        "FitNets: Hints for Thin Deep Nets", venue="ICLR 2015", arxiv="1412.6550", equations="3"
    )
    tasks = ("classification", "embedding")
    smallest_batch = 2
    """One image with a map of one pixel has no batch statistics."""

    class Params(FeatureMethod.Params):
        """A weight and a stage."""

        fitnet_weight: Weight = Field(100.0, description="Weight of the hint.")
        hint_stage: int = Field(
            2, ge=1, le=64, description="Stage of both networks that is compared, from 1."
        )

    params: Params
    student_shapes: shapes.Shapes
    teacher_shapes: shapes.Shapes

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.regressor = _regressor(
            self._at_hint("student", self.student_shapes, student),
            self._at_hint("teacher", self.teacher_shapes, teacher),
        )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the hint's."""
        index = self.params.hint_stage - 1
        regressed: Tensor = self.regressor(maps.at_least_float(student.stages[index]))
        loss = fitnet_loss(regressed, maps.at_least_float(teacher.stages[index]))
        return {**self.task(student, batch), "fitnet": self.params.fitnet_weight * loss}

    def _at_hint(self, role: str, measured: shapes.Shapes, network: Network | None) -> shapes.Shape:
        wanted = self.params.hint_stage
        if wanted > len(measured.stages):
            reference = "" if network is None else network.reference
            raise errors.IncompatibleNetworks(
                f"method fitnet compares stage {wanted} (hint_stage), and the {role} {reference} "
                f"returns {len(measured.stages)} stages; choose a smaller hint_stage",
                hint_stage=wanted,
                **{role: reference},
            )
        return measured.stages[wanted - 1]


def _regressor(given: shapes.Shape, wanted: shapes.Shape) -> nn.Sequential:
    advice = "choose another hint_stage, or networks whose stages are of more similar sizes"
    try:
        # Counted without memory: the kernel grows with the square of the sizes' difference.
        with torch.device("meta"):
            planned = adapters.regressor(given, wanted)
    except ValueError as error:
        raise errors.IncompatibleNetworks(
            f"method fitnet cannot compare the student's stage {given} with the teacher's "
            f"{wanted} (channels, height, width): {error}; {advice}",
            student_stage=given,
            teacher_stage=wanted,
        ) from None
    count = sum(math.prod(parameter.shape) for parameter in planned.parameters())
    if count > MOST_PARAMETERS:
        raise errors.IncompatibleNetworks(
            f"method fitnet would need a regressor of {count} parameters, more than "
            f"{MOST_PARAMETERS}, from the student's stage {given} to the teacher's {wanted} "
            f"(channels, height, width); {advice}",
            student_stage=given,
            teacher_stage=wanted,
        )
    return adapters.regressor(given, wanted)

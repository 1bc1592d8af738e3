"""Similarity-preserving distillation: match the similarities between images of a batch.

Inner products between the last maps of a batch, each row scaled to length 1, are matched. Channels
and sides of the maps may differ.

Source: Tung & Mori, ICCV 2019, arXiv:1907.09682.
Differs: an image whose map is zero everywhere passes no gradient, where a division by 1e-12 would
make one that is finite and useless.
Checked against: megvii-research/mdistiller, mdistiller/distillers/SP.py (published values).
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import relations
from workers.distill.methods.base import Moment, RelationMethod, Source, Terms
from workers.distill.methods.parameters import PairsWeight
from workers.distill.networks.interface import Features


def sp_loss(
    student_map: Float[Tensor, "N c h w"], teacher_map: Float[Tensor, "N k i j"]
) -> Float[Tensor, ""]:
    """Return the squared distance between row-normalised similarities, per pair of images."""
    return (similarities(teacher_map) - similarities(student_map)).square().mean()


def similarities(maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N N"]:
    """Return inner products between whole maps, each row of them scaled to length 1."""
    # Maps may come in half precision, in which sums of thousands of squares overflow.
    rows = maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))
    return relations.unit_vectors(rows @ rows.mT)


class SP(RelationMethod):
    """Match the similarities of the last stage's maps within the batch."""

    name = "sp"
    title = "Similarity-preserving distillation"
    source = Source(
        "Similarity-Preserving Knowledge Distillation", venue="ICCV 2019", arxiv="1907.09682"
    )
    tasks = ("classification", "embedding")
    required_student_features = ("stages",)
    required_teacher_features = ("stages",)

    class Params(RelationMethod.Params):
        """One weight."""

        sp_weight: PairsWeight = Field(
            3000.0, description="Weight of the mean squared difference over pairs."
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the difference of similarities."""
        loss = sp_loss(student.stages[-1], teacher.stages[-1])
        return {**self.task(student, batch), "sp": self.params.sp_weight * loss}

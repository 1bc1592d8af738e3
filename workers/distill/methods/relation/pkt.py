"""Probabilistic knowledge transfer: similarities within a batch as probabilities.

Cosines between the embeddings of a batch, scaled to 0..1, are divided by their sum in each row; the
student matches the teacher's probabilities. Widths of embeddings may differ.

Source: Passalis & Tefas, ECCV 2018, arXiv:1803.10837.
Differs: the divergence is averaged over all N * N pairs, not summed, as both reference libraries
have it; hence the large weight.
Checked against: megvii-research/mdistiller, mdistiller/distillers/PKT.py (published values).
"""

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import relations
from workers.distill.methods.base import FeatureName, Moment, RelationMethod, Source, Terms
from workers.distill.methods.parameters import PairsWeight
from workers.distill.networks.interface import Features

EPS = 1e-7


def pkt_loss(
    student_pooled: Float[Tensor, "N D"], teacher_pooled: Float[Tensor, "N K"]
) -> Float[Tensor, ""]:
    """Return the divergence between the shares of both, averaged over all pairs; nats."""
    student = relations.similarity_shares(student_pooled, eps=EPS)
    teacher = relations.similarity_shares(teacher_pooled, eps=EPS)
    return (teacher * ((teacher + EPS) / (student + EPS)).log()).mean()


class PKT(RelationMethod):
    """Match the shares of similarity within the batch."""

    name = "pkt"
    title = "Probabilistic knowledge transfer"
    source = Source(
        "Learning Deep Representations with Probabilistic Knowledge Transfer",
        venue="ECCV 2018",
        arxiv="1803.10837",
    )
    tasks = ("classification", "embedding")
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("embedding",)

    class Params(RelationMethod.Params):
        """One weight."""

        pkt_weight: PairsWeight = Field(
            30_000.0, description="Weight of the mean divergence over all pairs."
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the divergence of similarities."""
        loss = pkt_loss(student.pooled, teacher.pooled)
        return {**self.task(student, batch), "pkt": self.params.pkt_weight * loss}

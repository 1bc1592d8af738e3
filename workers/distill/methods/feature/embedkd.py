"""Embedding regression: the student's embedding, projected, is drawn to the teacher's.

The plain way to distil a network that has no classifier: one trained projection brings the
student's pooled features to the teacher's width, and their angle, or their difference to the
standardised features of the teacher, is minimised. No label and no logit is read.

Source: Ranzinger et al., AM-RADIO, CVPR 2024, arXiv:2312.06709, section 3.3 (cosine distance of
summary features behind an adaptor); Wei et al., arXiv:2205.14141, section 3.1 (regression of
whitened features), for `distance` mse.
Differs: one teacher, and no loss of spatial features (combine with `fitnet` or `at` for those); the
difference is squared where the second paper takes smooth L1. The projection is linear unless
`projector` says otherwise.
"""

from typing import Literal

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.methods.base import FeatureMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network


def cosine_distance(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"]) -> Tensor:
    """Return 1 minus the mean cosine of the angle between the embeddings of an image."""
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


def standardised_mse(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"]) -> Tensor:
    """Return the mean squared difference to the teacher's embeddings, each standardised."""
    return F.mse_loss(student, F.layer_norm(teacher, teacher.shape[1:]))


class EmbedKD(FeatureMethod):
    """Draw the student's projected embedding to the teacher's."""

    name = "embedkd"
    title = "Embedding regression"
    source = Source(
        "AM-RADIO: Agglomerative Vision Foundation Model Reduce All Domains Into One",
        venue="CVPR 2024",
        arxiv="2312.06709",
    )
    tasks = ("classification", "embedding")
    required_student_features = ("embedding",)
    required_teacher_features = ("embedding",)

    class Params(FeatureMethod.Params):
        """A weight, a distance and a projection."""

        embed_weight: Weight = Field(1.0, description="Weight of the embeddings' distance.")
        distance: Literal["cosine", "mse"] = Field(
            "cosine",
            description="cosine: 1 minus the cosine of their angle; mse: mean squared difference "
            "to the teacher's, standardised over its width.",
        )
        projector: Literal["linear", "mlp", "none"] = Field(
            "linear",
            description="From the student's width to the teacher's, trained beside it and not "
            "delivered. mlp: two layers with a layer norm and GELU between; none: the embedding "
            "itself, of networks of equal width.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        given, wanted = student.pooled_width, 0 if teacher is None else teacher.pooled_width
        if params.projector == "none" and given != wanted:
            raise errors.IncompatibleNetworks(
                f"method embedkd with projector none compares embeddings of equal width, and the "
                f"student's has {given} numbers, the teacher's {wanted}; choose projector linear",
                student_width=given,
                teacher_width=wanted,
            )
        self.projector = _projector(params.projector, given, wanted)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the embeddings' distance."""
        projected: Tensor = self.projector(student.pooled)
        distance = cosine_distance if self.params.distance == "cosine" else standardised_mse
        loss = distance(projected, teacher.pooled)
        return {**self.task(student, batch), "embed": self.params.embed_weight * loss}


def _projector(kind: str, given: int, wanted: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(given, wanted)
    return nn.Sequential(
        nn.Linear(given, wanted), nn.LayerNorm(wanted), nn.GELU(), nn.Linear(wanted, wanted)
    )

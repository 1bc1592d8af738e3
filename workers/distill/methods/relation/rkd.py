"""Relational knowledge distillation: distances between pairs, angles of triplets.

The student matches the teacher's distances and angles between embeddings, not the embeddings
themselves. Distances are divided by their mean, so the scale of embeddings is free as well.

Source: Park et al., CVPR 2019, arXiv:1904.05068.
Differs: means run over all index tuples, pairs of an image with itself included, as in the authors'
code and MDistiller; squared distances are sums of squares, not a^2 + b^2 - 2ab; one image alone
gives 0, not NaN.
Checked against: megvii-research/mdistiller, mdistiller/distillers/RKD.py (published values).
"""

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.functional import relations
from workers.distill.methods.base import FeatureName, Moment, RelationMethod, Source, Terms
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features

EPS = 1e-12


def distance_loss(
    student_pooled: Float[Tensor, "N D"], teacher_pooled: Float[Tensor, "N K"]
) -> Float[Tensor, ""]:
    """Return the smooth L1 between relative distances, averaged over all N * N pairs."""
    return F.smooth_l1_loss(relative_distances(student_pooled), relative_distances(teacher_pooled))


def relative_distances(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Return distances divided by their mean over different rows, which carries a gradient."""
    distances = relations.pairwise_distances(rows, eps=EPS)
    pairs = len(rows) * (len(rows) - 1)
    return distances / (distances.sum() / pairs) if pairs else distances


def angle_loss(
    student_pooled: Float[Tensor, "N D"], teacher_pooled: Float[Tensor, "N K"]
) -> Float[Tensor, ""]:
    """Return the smooth L1 between cosines of angles, averaged over all N * N * N triplets."""
    return F.smooth_l1_loss(
        relations.pairwise_angles(student_pooled), relations.pairwise_angles(teacher_pooled)
    )


class RKD(RelationMethod):
    """Match distances and angles within the batch."""

    name = "rkd"
    title = "Relational knowledge distillation"
    source = Source("Relational Knowledge Distillation", venue="CVPR 2019", arxiv="1904.05068")
    tasks = ("classification", "embedding")
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("embedding",)

    class Params(RelationMethod.Params):
        """Two weights."""

        distance_weight: Weight = Field(25.0, description="Weight of the distances between pairs.")
        angle_weight: Weight = Field(50.0, description="Weight of the angles of triplets.")

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the distances and the angles."""
        pair = (student.pooled, teacher.pooled)
        return {
            **self.task(student, batch),
            "distance": self.params.distance_weight * distance_loss(*pair),
            "angle": self.params.angle_weight * angle_loss(*pair),
        }

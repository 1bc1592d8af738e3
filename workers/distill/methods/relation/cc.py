"""Correlation congruence: products of the errors of neighbours in the batch.

Both embeddings are projected to one width by learned linear layers. The loss is the product of the
absolute differences between student and teacher of two images that are neighbours in the batch. The
order of the batch matters, and is random.

Source: Peng et al., ICCV 2019, arXiv:1904.01802.
Differs: this is the product of neighbours that the authors gave to RepDistiller, and with which the
published comparisons were made, not the kernel of correlations that the paper prints. One image
alone gives 0, not NaN.
Checked against: HobbitLong/RepDistiller, distiller_zoo/CC.py (published values).
"""

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.methods.base import FeatureName, Moment, RelationMethod, Source, Terms
from workers.distill.methods.parameters import Weight, Width
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network


def cc_loss(
    student_embedding: Float[Tensor, "N D"], teacher_embedding: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Return the inner product of neighbours' absolute differences, averaged over neighbours."""
    differences = (student_embedding - teacher_embedding).abs()
    neighbours = (differences[:-1] * differences[1:]).sum()
    return neighbours / max(len(differences) - 1, 1)


class CC(RelationMethod):
    """Minimise the products of the errors of neighbours in the batch."""

    name = "cc"
    title = "Correlation congruence"
    source = Source(
        "Correlation Congruence for Knowledge Distillation", venue="ICCV 2019", arxiv="1904.01802"
    )
    tasks = ("classification", "embedding")
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("embedding",)

    class Params(RelationMethod.Params):
        """One weight, and the width that both embeddings are projected to."""

        cc_weight: Weight = Field(
            0.02, description="Weight of the mean product of neighbours' errors."
        )
        width: Width = Field(128, description="Width of both learned projections of embeddings.")

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.projections = nn.ModuleDict(
            {
                role: nn.Linear(shapes.measure(network).pooled, params.width)
                for role, network in (("student", student), ("teacher", teacher))
                if network is not None
            }
        )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the products of neighbours."""
        loss = cc_loss(
            self.projections["student"](student.pooled), self.projections["teacher"](teacher.pooled)
        )
        return {**self.task(student, batch), "cc": self.params.cc_weight * loss}

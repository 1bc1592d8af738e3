"""Softmax regression representation learning.

The student's last map, brought to the teacher's width, is trained to have the teacher's embedding
as its average, and to give the teacher's logits through the teacher's own classifier.

Source: Yang et al., ICLR 2021 (Knowledge Distillation via Softmax Regression Representation
Learning).
Differs: none from the authors' code, the connector's first weights included. A variant in a later
toolbox connects the averaged embedding instead of the map and adds KD's loss; ReLU and averaging do
not commute, so its values differ.
Checked against: jingyang2017/KD_SRRL, distiller_zoo/AIN.py and train_imagenet_distillation.py.
"""

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.functional import adapters, classifiers
from workers.distill.methods.base import FeatureMethod, FeatureName, Moment, Need, Source, Terms
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network


def matching_loss(
    student_pooled: Float[Tensor, "N D"], teacher_pooled: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of embeddings, over images and channels."""
    return F.mse_loss(student_pooled, teacher_pooled)


def regression_loss(
    student_pooled: Float[Tensor, "N D"],
    teacher_logits: Float[Tensor, "N C"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
) -> Float[Tensor, ""]:
    """Return the mean squared difference of logits, all from the teacher's classifier."""
    return F.mse_loss(F.linear(student_pooled, weight, bias), teacher_logits)


class SRRL(FeatureMethod):
    """Match embeddings, and the teacher's classifier's logits for them."""

    name = "srrl"
    title = "Softmax regression representation learning"
    source = Source(
        "Knowledge Distillation via Softmax Regression Representation Learning", venue="ICLR 2021"
    )
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("classifier",)
    smallest_batch = 2
    """One image with a map of one pixel has no batch statistics."""

    class Params(FeatureMethod.Params):
        """Two weights."""

        features_weight: Weight = Field(1.0, description="Weight of the embeddings' difference.")
        classifier_weight: Weight = Field(
            1.0,
            description="Weight of the difference of logits that the teacher's classifier gives.",
        )

    params: Params
    weight: Tensor
    bias: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        weight, bias = classifiers.frozen(teacher.pooled_classifier() if teacher else None)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        final = self.student_shapes.final if self.student_shapes else None
        channels = 0 if final is None else final[0]
        projection = adapters.projection(channels, weight.shape[1])
        # N(0, 2 / channels out), as the authors draw them; PyTorch's own first weights are smaller.
        nn.init.kaiming_normal_(
            projection.get_parameter("0.weight"), mode="fan_out", nonlinearity="relu"
        )
        self.connector = nn.Sequential(projection, nn.ReLU())

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term, the embeddings' and the classifier's."""
        connected: Tensor = self.connector(classifiers.last_map(student.final))
        # Maps are averaged as each network averages its own; the teacher's embedding is that.
        pooled = connected.mean((2, 3))
        matching = matching_loss(pooled, teacher.pooled)
        regression = regression_loss(pooled, teacher.logits, self.weight, self.bias)
        return {
            **self.task(student, batch),
            "srrl_features": self.params.features_weight * matching,
            "srrl_classifier": self.params.classifier_weight * regression,
        }

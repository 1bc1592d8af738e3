"""Reuse of the teacher's classifier.

The student is trained to match the teacher's last map through a small projector. The teacher's
classifier is reused unchanged: student, projector and classifier are delivered as one network.

Source: Chen et al., CVPR 2022, arXiv:2203.14001.
Differs: none. Labels are not used, so there is no task term; the student's own classifier is not
trained, and the reported training accuracy is that of this classifier.
Checked against: DefangChen/SimKD (layers of the projector).
"""

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, maps
from workers.distill.methods.base import FeatureName, Method, Moment, Need, Source, Terms
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.zoo import reused


def simkd_loss(
    projected: Float[Tensor, "N D h w"], teacher_maps: Float[Tensor, "N D i j"]
) -> Float[Tensor, ""]:
    """Return the mean squared difference over all elements, at the smaller of both sizes."""
    return F.mse_loss(*maps.pool_to_smaller(projected, teacher_maps))


class SimKD(Method):
    """Match the teacher's last map, and deliver the teacher's classifier behind it."""

    name = "simkd"
    family = "feature"
    title = "Reused teacher classifier"
    source = Source(
        "Knowledge Distillation with the Reused Teacher Classifier",
        venue="CVPR 2022",
        arxiv="2203.14001",
    )
    needs: ClassVar[tuple[Need, ...]] = ("teacher", "equal_classes")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("final", "classifier")
    has_task = False
    combines = False
    smallest_batch = 2
    """One image with a map of one pixel has no batch statistics."""

    class Params(Method.Params):
        """A weight and the projector's width."""

        simkd_weight: float = Field(
            1.0, gt=0, le=1e6, description="Weight of the maps' difference, the only term."
        )
        factor: int = Field(
            2,
            ge=1,
            le=64,
            description="By how much the projector's middle is narrower than the teacher's map; "
            "larger is cheaper (published: 2, 4, 8).",
        )

    params: Params
    weight: Tensor
    bias: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        given = self.student_shapes.final if self.student_shapes else None
        wanted = self.teacher_shapes.final if self.teacher_shapes else None
        if isinstance(student, reused.ReusedClassifier) or given is None or wanted is None:
            raise errors.IncompatibleNetworks(
                "method simkd delivers the student behind a projector and a reused classifier, and "
                f"{student.reference} has these already; choose its backbone as the student",
                student=student.reference,
            )
        if wanted[0] > reused.MOST_CHANNELS or max(wanted[1:]) > reused.LARGEST_SIDE:
            raise errors.IncompatibleNetworks(
                f"method simkd delivers a projection to the teacher's last map, here of {wanted} "
                f"(channels, height, width); at most {reused.MOST_CHANNELS} channels and sides of "
                f"{reused.LARGEST_SIDE} can be delivered, so choose another teacher",
                teacher_final=wanted,
            )
        weight, bias = classifiers.frozen(teacher.pooled_classifier() if teacher else None)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.projector = reused.Projector(
            given[0], wanted[0], factor=params.factor, size=(wanted[1], wanted[2])
        )

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the difference of the maps; there is no task term."""
        projected: Tensor = self.projector(classifiers.last_map(student.final))
        loss = simkd_loss(projected, classifiers.last_map(teacher.final))
        return {"simkd": self.params.simkd_weight * loss}

    def deliver(self, student: Network) -> Network:
        """Return backbone, projector and the teacher's classifier as one network."""
        return reused.join(
            student, self.projector, self.weight, self.bias, factor=self.params.factor
        )

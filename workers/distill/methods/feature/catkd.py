"""Class attention transfer.

A linear classifier on averaged maps, applied at every position, gives a class activation map for
each class. The student matches the teacher's class activation maps, averaged to a coarse grid.

Source: Guo et al., CVPR 2023, arXiv:2304.12777.
Differs: networks are not rebuilt with a convolution as their classifier; the weight of theirs is
applied as one, which gives the same maps. The authors' convolution has no bias, and that of the
teacher's classifier is dropped; so no bias counts in the maps (unless `bias` asks for it), while
the student's logits keep theirs. Maps are averaged to the grid before the classifier is applied,
not after: both commute, and it costs less. The default weight is that of resnet32x4 -> resnet8x4;
it depends much on the pair (0.7 for resnet56 -> resnet20, 600 on normalised maps for ShuffleNets).
Checked against: GzyAftermath/CAT-KD, mdistiller/distillers/CAT_KD.py, tools/train.py.
"""

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.functional import classifiers, maps
from workers.distill.methods.base import FeatureMethod, FeatureName, Moment, Need, Source, Terms
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network


def cat_loss(
    student_maps: Float[Tensor, "N C h w"],
    teacher_maps: Float[Tensor, "N C i j"],
    *,
    side: int,
    normalize: bool,
) -> Float[Tensor, ""]:
    """Return the mean squared difference of class maps, averaged to side x side cells."""
    student, teacher = (
        maps.average_to(each, (side, side)).flatten(2) for each in (student_maps, teacher_maps)
    )
    if normalize:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return F.mse_loss(student, teacher)


class CATKD(FeatureMethod):
    """Match the class activation maps of both networks."""

    name = "catkd"
    title = "Class attention transfer"
    source = Source(
        "Class Attention Transfer Based Knowledge Distillation",
        venue="CVPR 2023",
        arxiv="2304.12777",
    )
    needs: ClassVar[tuple[Need, ...]] = ("labels", "teacher", "equal_classes")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final", "classifier")
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("final", "classifier")

    class Params(FeatureMethod.Params):
        """A weight, and how maps are compared."""

        catkd_weight: Weight = Field(15.0, description="Weight of the class maps' term.")
        side: int = Field(
            2, ge=1, le=64, description="Cells along the grid that class maps are averaged to."
        )
        normalize: bool = Field(
            False,
            description="Divide each class map by its norm first; published for pairs of different "
            "families, with larger weights.",
        )
        bias: bool = Field(
            False,
            description="Add the biases of both classifiers to their class maps; the authors' "
            "classifiers have none.",
        )

    params: Params
    weight: Tensor
    bias: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        weight, bias = classifiers.frozen(teacher.pooled_classifier() if teacher else None)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        # In a tuple, so that it stays the student's own and is not saved twice.
        self._classifier: tuple[nn.Linear | None] = (student.pooled_classifier(),)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the class maps' term."""
        (classifier,) = self._classifier
        grid = (self.params.side, self.params.side)
        student_map = maps.average_to(classifiers.last_map(student.final), grid)
        teacher_map = maps.average_to(classifiers.last_map(teacher.final), grid)
        biased = self.params.bias
        loss = cat_loss(
            classifiers.class_maps(student_map, *classifiers.layer(classifier), add_bias=biased),
            classifiers.class_maps(teacher_map, self.weight, self.bias, add_bias=biased),
            side=self.params.side,
            normalize=self.params.normalize,
        )
        return {**self.task(student, batch), "catkd": self.params.catkd_weight * loss}

"""Feature imitation (mimic): regress the teacher's maps.

A trained 1x1 convolution brings a segmenter's last map, or each level of a detector's pyramid, to
the teacher's channels; their mean squared difference is the simplest feature loss of dense tasks
(FitNets there), and the one that is added to others.

Source: Li, Jin, Yan, CVPR 2017, "Mimicking Very Efficient Network for Object Detection".
Differs: whole maps are compared, not the regions of proposals, as in later comparisons under this
name, and the difference is divided by the variance of the teacher's map (`by_variance: false` does
not). Where the channels are equal, nothing is trained in between.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from workers.distill.data.types import Batch
from workers.distill.functional import map_distances
from workers.distill.methods.base import FeatureName, Moment, Source, Terms
from workers.distill.methods.dense.base import MapsMethod, final_maps
from workers.distill.methods.parameters import Weight
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Shapes


class Mimic(MapsMethod):
    """Regress the teacher's last map from the student's."""

    name = "mimic"
    title = "Feature imitation"
    source = Source("Mimicking Very Efficient Network for Object Detection", venue="CVPR 2017")

    needs = ("labels", "teacher")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("final",)
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("final",)

    class Params(MapsMethod.Params):
        """A weight and a normalisation."""

        mimic_weight: Weight = Field(1.0, description="Weight of the mean squared difference.")
        by_variance: bool = Field(
            True,
            description="Divide the difference by the variance of the teacher's map, so that the "
            "weight does not depend on its magnitude.",
        )

    params: Params
    student_shapes: Shapes
    teacher_shapes: Shapes

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.connector: nn.Module = nn.Identity()
        if self.levels is not None:
            return
        given, wanted = self.student_shapes.final, self.teacher_shapes.final
        if given is not None and wanted is not None and given[0] != wanted[0]:
            self.connector = nn.Conv2d(given[0], wanted[0], 1)

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the difference of the maps."""
        given, wanted = zip(*self.map_pairs(student, teacher), strict=True)
        loss = map_distances.mean_square(given, wanted, by_variance=self.params.by_variance)
        return {**self.task(student, batch), "mimic": self.params.mimic_weight * loss}

    def segmenter_maps(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """Return the last maps at the smaller of their resolutions, the student's connected."""
        return final_maps(student, teacher, self.connector)

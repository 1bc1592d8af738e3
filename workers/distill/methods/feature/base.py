"""What feature methods share that compare both networks stage by stage."""

from torch import Tensor

from workers.distill.functional import maps
from workers.distill.methods.base import FeatureMethod
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.shapes import Shapes


class StagePairsMethod(FeatureMethod):
    """Feature methods that compare pairs of stages, chosen by the sizes of their maps."""

    student_shapes: Shapes
    teacher_shapes: Shapes

    def __init__(
        self, params: FeatureMethod.Params, student: Network, teacher: Network | None
    ) -> None:
        super().__init__(params, student, teacher)
        self.pairs = maps.pair_by_size(self.student_shapes.stages, self.teacher_shapes.stages)

    def paired(self, student: Features, teacher: Features) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of both networks, pair by pair, shallow to deep."""
        return (
            [student.stages[index] for index, _ in self.pairs],
            [teacher.stages[index] for _, index in self.pairs],
        )

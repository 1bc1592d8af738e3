"""Linear probe: how much of another data set the features of a trained network tell.

The student starts from the weights of a trained network, made for whatever classes. Its classifier
is replaced by a new one for the classes of the data set, and that one alone is trained, on the
labels; everything before it stays as it is. Probe the distilled student, its teacher and a student
trained alone, one job each, and compare: features that transfer better were learned better.

Source: Alain and Bengio, ICLR 2017 workshop, arXiv:1610.01644; Zhao et al., CVPR 2022,
arXiv:2203.08679, table 13 (of students after DKD).
Differs: only the classifier that the network has is probed, on its pooled features, not every
layer. The features stay in evaluation mode, batch statistics included. The baseline of such a job
trains all weights, from the same start.
"""

from typing import Any, ClassVar

from workers.distill.data.types import Batch
from workers.distill.methods.base import (
    FeatureName,
    LogitMethod,
    Moment,
    Need,
    Source,
    Terms,
)
from workers.distill.networks.interface import Features, Network


class LinearProbe(LogitMethod):
    """Train a new linear classifier on the frozen features of a trained network."""

    name = "linear_probe"
    title = "Linear probe of frozen features"
    source = Source(
        "Understanding intermediate layers using linear classifier probes",
        venue="ICLR 2017 workshop",
        arxiv="1610.01644",
    )
    needs: ClassVar[tuple[Need, ...]] = ("labels", "initial")
    required_student_features: ClassVar[tuple[FeatureName, ...]] = ("classifier",)
    combines = False

    class Params(LogitMethod.Params):
        """Only the weight of the cross-entropy."""

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        classifier = student.pooled_classifier()
        if classifier is None:
            raise ValueError("the network shows no classifier, which the method asked for")
        student.requires_grad_(False)
        classifier.requires_grad_(True)
        self._features = classifier.in_features

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term alone."""
        return self.task(student, batch)

    def facts(self) -> dict[str, Any]:  # Any: JSON
        """Return how many features the classifier reads."""
        return {"probed_features": self._features}

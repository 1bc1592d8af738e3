"""Knowledge distillation of proposals.

Both networks classify the proposals that the student has drawn, each on its own maps, and the
student imitates the teacher's softened classes, background among them. Boxes are not distilled.

Source: Hinton et al., 2015, arXiv:1503.02531, equation 1; on detectors as in Zhao et al., CVPR
2022, arXiv:2203.08679 (megvii-research/mdistiller, detection).
"""

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import ProposalsMethod
from workers.distill.methods.parameters import KDWeight, Temperature
from workers.distill.networks.interface import Features


class ROIKD(ProposalsMethod):
    """Imitate the teacher's classes of the student's proposals."""

    name = "roikd"
    title = "Knowledge distillation of proposals"
    source = Source(
        "Distilling the Knowledge in a Neural Network",
        venue="NIPS 2014 Deep Learning Workshop",
        arxiv="1503.02531",
        equations="1",
    )

    class Params(ProposalsMethod.Params):
        """A weight and a temperature."""

        kd_weight: KDWeight = 1.0
        temperature: Temperature = 1.0

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the imitation, the mean of all proposals."""
        params = self.params
        ours, theirs, _ = self.classified(student, teacher, batch)
        loss = divergences.scaled_kl(ours, theirs, temperature=params.temperature)
        return {**self.task(student, batch), "roikd": params.kd_weight * loss}

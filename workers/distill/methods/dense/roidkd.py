"""Decoupled knowledge distillation of proposals.

Both networks classify the proposals that the student has drawn, each on its own maps. The
divergence of the class that a proposal was matched with, background among them, and that of all
other classes have their own weights. Boxes are not distilled.

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7 and section 4.1.
Checked against: megvii-research/mdistiller, detection (weights; values as for classification).
"""

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import ProposalsMethod
from workers.distill.methods.parameters import NCKDWeight, TCKDWeight, Temperature, WarmupEpochs
from workers.distill.networks.interface import Features


class ROIDKD(ProposalsMethod):
    """Weigh the divergences of a proposal's class and of the others separately."""

    name = "roidkd"
    title = "Decoupled knowledge distillation of proposals"
    source = Source(
        "Decoupled Knowledge Distillation", venue="CVPR 2022", arxiv="2203.08679", equations="5-7"
    )

    class Params(ProposalsMethod.Params):
        """Two weights, a temperature and a warm-up."""

        alpha: TCKDWeight = 1.0
        beta: NCKDWeight = 0.25
        temperature: Temperature = 1.0
        warmup_epochs: WarmupEpochs = 0

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the decoupled divergence, the mean of all proposals."""
        params = self.params
        ours, theirs, labels = self.classified(student, teacher, batch)
        divergence = divergences.decoupled_kl(
            ours,
            theirs,
            labels,
            alpha=params.alpha,
            beta=params.beta,
            temperature=params.temperature,
        )
        weight = moment.ramp(params.warmup_epochs)
        return {**self.task(student, batch), "roidkd": weight * divergence.mean()}

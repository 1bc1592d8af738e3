"""Decoupled knowledge distillation of proposals.

Both networks classify the proposals that the student has drawn, each on its own maps. The
divergence of the class that a proposal was matched with, background among them, and that of all
other classes have their own weights. Boxes are not distilled.

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7 and section 4.1.
Checked against: megvii-research/mdistiller, detection (weights; values as for classification).
"""

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import Moment, Terms
from workers.distill.methods.dense import base
from workers.distill.networks.interface import Features


class ROIDKD(base.ProposalsMethod):
    """Weigh the divergences of a proposal's class and of the others separately."""

    name = "roidkd"
    title = "Decoupled knowledge distillation of proposals"
    source = base.DKD_SOURCE

    class Params(base.DecoupledParams):
        """Those of decoupled distillation."""

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

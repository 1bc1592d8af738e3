"""Decoupled knowledge distillation of a dense head's classes.

A head of sigmoids has no distribution over its classes, so the two parts are those of one: at a
location that learns a box, the target part is the binary divergence of that class's probability,
and the non-target part the divergence of the softmax over all other classes. The first says how
sure the teacher is of the object, the second what it resembles.

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7.
Differs: the paper has softmax heads only. The target part of a location without a box is the sum of
the binary divergences of all classes, none of which is its target, and it has no non-target part;
each is focused as in headkd. The sum is divided by the number of locations that learn a box, one at
least; ignored locations are left out.
"""

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.functional.rows import rows
from workers.distill.methods.base import Moment, Terms
from workers.distill.methods.dense import base
from workers.distill.methods.parameters import Focus
from workers.distill.networks.interface import Features


class HeadDKD(base.HeadMethod):
    """Weigh the divergences of a location's class and of the others separately."""

    name = "headdkd"
    title = "Decoupled knowledge distillation of a dense head"
    source = base.DKD_SOURCE
    smallest_classes = 2

    class Params(base.DecoupledParams):
        """Those of decoupled distillation, and an exponent."""

        focus: Focus = 2.0

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the decoupled divergence, with its warm-up."""
        params = self.params
        classes = self.assigned(student, batch).flatten()
        ours, theirs = rows(student.logits), rows(teacher.logits)
        learns_box = (classes >= 0).to(ours.dtype)
        is_background = (classes == base.BACKGROUND).to(ours.dtype)
        target = classes.clamp_min(0)
        binary = divergences.binary_kl(
            ours, theirs, temperature=params.temperature, focus=params.focus
        )
        of_target = binary.gather(1, target[:, None]).squeeze(1)
        tckd = of_target * learns_box + binary.sum(1) * is_background
        nckd = divergences.non_target_kl(ours, theirs, target, temperature=params.temperature)
        nckd = params.temperature**2 * nckd * learns_box
        total = (params.alpha * tckd + params.beta * nckd).sum() / learns_box.sum().clamp_min(1)
        weight = moment.ramp(params.warmup_epochs)
        return {**self.task(student, batch), "headdkd": weight * total}

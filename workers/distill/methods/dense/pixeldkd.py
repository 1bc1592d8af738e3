"""Decoupled knowledge distillation of every pixel.

Each pixel that has a label is a sample: the divergence of its true class's probability and that
among all other classes have their own weights.

Source: Zhao et al., CVPR 2022, arXiv:2203.08679, equations 5 to 7.
Differs: the paper has classification and detection only; the default weights and temperature are
those of its detectors (megvii-research/mdistiller, detection). Pixels without a label have no true
class and are left out. Where `training.class_weights` weigh the classes in the loss of the labels,
a pixel counts here what its class does there; without them all count alike.
"""

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.functional.rows import rows
from workers.distill.methods.base import Moment, Terms
from workers.distill.methods.dense import base
from workers.distill.networks.interface import Features


class PixelDKD(base.DenseMethod):
    """Weigh the divergences of a pixel's true class and of the others separately."""

    name = "pixeldkd"
    weighs_classes = True
    title = "Decoupled knowledge distillation of pixels"
    source = base.DKD_SOURCE
    smallest_classes = 2

    class Params(base.DecoupledParams):
        """Those of decoupled distillation."""

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the decoupled divergence, with its warm-up."""
        params = self.params
        student_logits, teacher_logits = self.class_maps(student, teacher)
        labels, _ = self.pixel_labels(batch, student_logits)
        counted = self.pixel_weights(batch, teacher_logits)
        divergence = divergences.decoupled_kl(
            rows(student_logits),
            rows(teacher_logits),
            labels.flatten(),
            alpha=params.alpha,
            beta=params.beta,
            temperature=params.temperature,
        )
        weight = moment.ramp(params.warmup_epochs)
        return {
            **self.task(student, batch),
            "pixeldkd": weight * divergences.mean_of(divergence, counted),
        }

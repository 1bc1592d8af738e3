"""Knowledge distillation of a dense head's classes.

At each location or anchor the student imitates the teacher's probability of each class. Nearly all
locations are background on which both agree, so each divergence is multiplied by the squared
difference of the two probabilities, as focal losses do.

Source: common practice for one-stage detectors; the factor is the quality focal loss's, Li et al.,
NeurIPS 2020, arXiv:2006.04388, equation 6, with the teacher's probability as the quality.
Differs: the divergence is the binary KL, which is 0 where both agree, not the cross-entropy; the
gradient of both is the same. Locations that the student ignores are left out, and the sum is
divided by the number of locations to which the student's own assignment gives a box, one at least.
A head with a softmax (SSD) is compared by the sigmoids of its logits without the background's.
"""

from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.dense.base import IGNORED, HeadMethod
from workers.distill.methods.parameters import Focus, KDWeight, Temperature
from workers.distill.networks.interface import Features


class HeadKD(HeadMethod):
    """Imitate the teacher's classes at each location."""

    name = "headkd"
    title = "Knowledge distillation of a dense head"
    source = Source(
        "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense "
        "Object Detection",
        venue="NeurIPS 2020",
        arxiv="2006.04388",
        equations="6",
    )

    class Params(HeadMethod.Params):
        """A weight, a temperature and an exponent."""

        kd_weight: KDWeight = 1.0
        temperature: Temperature = 1.0
        focus: Focus = 2.0

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the divergence of all classes at all locations."""
        params = self.params
        classes = self.assigned(student, batch)
        divergence = divergences.binary_kl(
            student.logits, teacher.logits, temperature=params.temperature, focus=params.focus
        )
        counted = (classes != IGNORED)[:, None].to(divergence.dtype)
        positives = (classes >= 0).sum().clamp_min(1)
        loss = (divergence * counted).sum() / positives
        return {**self.task(student, batch), "headkd": params.kd_weight * loss}

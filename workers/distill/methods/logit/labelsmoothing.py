"""Label smoothing: cross-entropy with labels of which a share is spread over all classes.

It equals distillation from a teacher of uniform outputs, so it is the baseline for what a method
gains by regularisation alone. The share is the same for all classes, the true one included.

Source: Szegedy et al., CVPR 2016, arXiv:1512.00567, section 7.
"""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.data.types import Batch
from workers.distill.methods.base import LabelledMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Share, Weight
from workers.distill.networks.interface import Features


def uniform_cross_entropy(logits: Float[Tensor, "N C"]) -> Float[Tensor, ""]:
    """Return the cross-entropy with the uniform distribution, averaged over the batch."""
    return -F.log_softmax(logits, dim=1).mean(1).mean()


class LabelSmoothing(LabelledMethod):
    """Train on smoothed labels; the `task` term is the smoothed loss."""

    name = "labelsmoothing"
    family = "logit"
    title = "Label smoothing"
    source = Source(
        "Rethinking the Inception Architecture for Computer Vision",
        venue="CVPR 2016",
        arxiv="1512.00567",
    )
    needs = ("labels",)
    combines = False
    accepts_bce = False  # its smoothing is that of the softmax

    class Params(LabelledMethod.Params):
        """The weight of the loss, and the share that is spread."""

        task_weight: Weight = Field(
            1.0, description="Weight of cross-entropy with the smoothed labels."
        )
        smoothing: Share = Field(
            0.1,
            description="Share of a label that is spread evenly over all classes, the true one "
            "included; 0 is plain cross-entropy.",
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term alone."""
        share = self.params.smoothing
        # Linear in the label, so smoothing it is mixing two losses; mixed images need no more.
        hard = self.task_loss(student, batch)
        loss = (1 - share) * hard + share * uniform_cross_entropy(student.logits)
        return {"task": self.params.task_weight * loss}

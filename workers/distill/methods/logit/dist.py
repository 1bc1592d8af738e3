"""DIST: match relations, not probabilities.

A small student cannot match a strong teacher's exact probabilities, so their correlation is
maximised instead: of each sample's probabilities over classes (the paper's inter-class relation)
and of each class's probabilities over the batch (its intra-class relation).

Source: Huang et al., NeurIPS 2022, arXiv:2205.10536.
Differs: a batch of one has no relation between samples, so its intra-class part is 0, not 1: the
constant would have no gradient and would only add a jump to the loss.
Checked against: hunto/image_classification_sota, lib/models/losses/dist_kd.py (published values).
"""

from pydantic import Field

from workers.distill.data.types import Batch
from workers.distill.functional import relations
from workers.distill.methods.base import LogitMethod, Moment, Source, Terms
from workers.distill.methods.parameters import Temperature, Weight
from workers.distill.networks.interface import Features


class DIST(LogitMethod):
    """Correlate the student's probabilities with the teacher's, along classes and samples."""

    name = "dist"
    auto_balanced = True  # correlations know no scale
    title = "Distillation from a stronger teacher"
    source = Source(
        "Knowledge Distillation from A Stronger Teacher",
        venue="NeurIPS 2022",
        arxiv="2205.10536",
    )

    class Params(LogitMethod.Params):
        """A weight for both parts, a weight for each, a temperature."""

        dist_weight: Weight = Field(2.0, description="Weight of both relations together.")
        beta: Weight = Field(
            1.0,
            description="Weight of the inter-class relation: each sample's probabilities over "
            "the classes.",
        )
        gamma: Weight = Field(
            1.0,
            description="Weight of the intra-class relation: each class's probabilities over the "
            "samples of the batch.",
        )
        temperature: Temperature = Field(
            4.0,
            description="Divides the logits of both networks before softmax; the authors use 4 "
            "for CIFAR-100 and 1 for ImageNet.",
        )

    params: Params

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the two relations."""
        params = self.params
        loss = relations.correlation_gaps(
            student.logits, teacher.logits, temperature=params.temperature
        )
        return {
            **self.task(student, batch),
            "inter": params.dist_weight * params.beta * loss.inter,
            "intra": params.dist_weight * params.gamma * loss.intra,
        }

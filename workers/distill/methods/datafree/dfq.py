"""Data-free adversarial distillation with the teacher's statistics.

A generator looks for images on which student and teacher contradict each other, but is held near
real images: they are to give the teacher's batch norms the moments that these have stored, be
answered surely, and show each class as often as the others.

Source: Choi et al., CVPR Workshops 2020, arXiv:2005.04136.
Differs: the paper distils into a quantised student; as in CMI's benchmark (Fang et al., IJCAI
2021), from which all weights come, the student here keeps its precision. Its batch norms are
matched by the Euclidean distance of moments, not by a divergence of Gaussians.
Checked against: zju-vipa/CMI, datafree/synthesis/generative.py (terms; published values).
"""

import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from pydantic import Field

from workers.distill.functional import adversaries, divergences, statistics
from workers.distill.functional.rows import rows
from workers.distill.method import Batch, Moment, Source, Terms
from workers.distill.networks.interface import Features
from workers.distill.synthesis import DataFreeMethod, Invented, StreamSynthesis


class DFQ(DataFreeMethod):
    """Invent images on which the student is wrong, near what the teacher learned from."""

    name = "dfq"
    title = "Data-free adversarial distillation with the teacher's statistics"
    source = Source(
        "Data-Free Network Quantization With Adversarial Knowledge Distillation",
        venue="CVPR Workshops 2020",
        arxiv="2005.04136",
    )
    inverter = "stream"

    class Params(DataFreeMethod.Params):
        """A temperature for the student, four weights for the generator, and the budget."""

        temperature: float = Field(
            1.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        adversarial_weight: float = Field(
            1.0, ge=0, le=1e6, description="Weight of the divergence that the generator seeks."
        )
        bn_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the distance from the moments in the teacher's batch norms; 0 "
            "does without batch norms.",
        )
        onehot_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with its own decision.",
        )
        balance_weight: float = Field(
            20.0,
            ge=0,
            le=1e6,
            description="Weight of the negative entropy of the mean class distribution.",
        )
        synthesis: StreamSynthesis = Field(
            StreamSynthesis(
                steps=1,
                student_steps=10,
                calls_per_epoch=40,
                buffer_images=1024,
                augmentation="none",
                generator="large",
            ),
            description="How images are invented: budget and generator. The buffer keeps the "
            "newest images to be looked at, the student never sees them again.",
        )

    params: Params

    @property
    def reads_norms(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self.params.bn_weight > 0

    @property
    def competes(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return self.params.adversarial_weight > 0

    def synthesis_terms(self, shown: Invented) -> Terms:
        """Return the agreement of both networks, and how far images are from real ones."""
        params, logits = self.params, shown.teacher.features.logits
        adversarial = bn = onehot = balance = logits.new_zeros(())
        if params.adversarial_weight > 0 and shown.student is not None:
            gap = adversaries.discrepancy(shown.student.features.logits, logits, masked=False)
            adversarial = -params.adversarial_weight * gap
        if params.bn_weight > 0:
            bn = params.bn_weight * statistics.moment_distance(shown.teacher.norms)
        if params.onehot_weight > 0:
            answers = rows(logits)
            onehot = params.onehot_weight * F.cross_entropy(answers, answers.detach().argmax(1))
        if params.balance_weight > 0:
            balance = params.balance_weight * adversaries.class_balance(logits)
        return {"adversarial": adversarial, "bn": bn, "onehot": onehot, "balance": balance}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's outputs."""
        temperature = self.params.temperature
        divergence = divergences.softened_kl(
            rows(student.logits), rows(teacher.logits), temperature=temperature
        )
        return {"kd": temperature**2 * divergence.mean()}

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

from pydantic import Field

from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, entropies, statistics
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features


class DFQ(DataFreeMethod):
    """Invent images on which the student is wrong, near what the teacher learned from."""

    name = "dfq"
    title = "Data-free adversarial distillation with the teacher's statistics"
    source = Source(
        "Data-Free Network Quantization With Adversarial Knowledge Distillation",
        venue="CVPR Workshops 2020",
        arxiv="2005.04136",
    )
    synthesizer = "stream"

    class Params(DataFreeMethod.Params):
        """A temperature for the student, four weights for the generator, and the budget."""

        temperature: float = Field(
            1.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        adversarial_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the divergence of the student from the teacher, which images "
            "are to raise.",
        )
        bn_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms. At 0 "
            "the teacher needs none.",
        )
        onehot_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show. That is the class that the teacher decides for.",
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
    def uses_bn_statistics(self) -> bool:
        """Whether the loss of synthesis compares with the moments in the teacher's batch norms."""
        return self.params.bn_weight > 0

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return self.params.adversarial_weight > 0

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return the agreement of both networks, and how far images are from real ones."""
        params, logits = self.params, shown.teacher.features.logits
        return {
            "adversarial": shown.against_student(
                -params.adversarial_weight, adversaries.discrepancy, masked=False
            ),
            "bn": shown.term(params.bn_weight, statistics.moment_distance, shown.teacher.norms),
            "onehot": shown.term(params.onehot_weight, entropies.mean_cross_entropy, logits),
            "balance": shown.term(params.balance_weight, adversaries.class_balance, logits),
        }

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}

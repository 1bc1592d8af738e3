"""Distillation on noise: what a student learns from a teacher without any image.

The baseline of the data-free family. Where images are small, Gaussian noise alone can carry a
student surprisingly far, so a data-free result says little without this one beside it.

Source: Fang et al., 2019, arXiv:1912.11006, which compares with it; the loss is that of Hinton et
al., 2015, arXiv:1503.02531, equation 1.
Differs: the paper does not say which noise it means. Pixels are N(0, 1) after normalisation unless
`distribution` is uniform, which teaches far less on small grey images.
"""

from pydantic import Field

from workers.distill.config.synthesis import NoiseSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import divergences
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features


class Noise(DataFreeMethod):
    """Imitate the teacher's answers to noise."""

    name = "noise"
    title = "Distillation on noise"
    source = Source("Data-Free Adversarial Distillation", venue="arXiv 2019", arxiv="1912.11006")
    needs = ("teacher", "equal_classes")
    synthesizer = "noise"

    class Params(DataFreeMethod.Params):
        """A temperature, and the budget."""

        temperature: float = Field(
            4.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        synthesis: NoiseSynthesis = Field(
            NoiseSynthesis(
                steps=1,
                student_steps=5,
                calls_per_epoch=80,
                buffer_images=1024,
                augmentation="none",
            ),
            description="How noise is drawn, and how often. The buffer keeps the newest images "
            "to be looked at.",
        )

    params: Params

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return nothing: noise is not moved."""
        return {}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}

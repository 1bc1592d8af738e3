"""Distillation on noise: the baseline of the data-free family.

Where images are small, a student trained on Gaussian noise alone can be surprisingly accurate, so a
data-free result says little without this one for comparison.

Source: Fang et al., 2019, arXiv:1912.11006, which compares with it; the loss is that of Hinton et
al., 2015, arXiv:1503.02531, equation 1.
Differs: the paper does not say which noise it means. Pixels are N(0, 1) after normalisation unless
`distribution` is uniform, which gives a far lower accuracy on small grey images.
"""

from pydantic import Field

from workers.distill.config.synthesis import NoiseSynthesis
from workers.distill.methods import parameters
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.datafree.base import SoftTargetMethod, SynthesisBatch


class Noise(SoftTargetMethod):
    """Distil the teacher's outputs on noise."""

    name = "noise"
    title = "Distillation on noise"
    source = Source("Data-Free Adversarial Distillation", venue="arXiv 2019", arxiv="1912.11006")
    needs = ("teacher", "equal_classes")
    synthesizer = "noise"

    class Params(SoftTargetMethod.Params):
        """A temperature, and the budget."""

        temperature: parameters.SoftTargetTemperature = 4.0
        synthesis: NoiseSynthesis = Field(
            NoiseSynthesis(
                steps=1,
                student_steps=5,
                calls_per_epoch=80,
                buffer_images=1024,
                augmentation="none",
            ),
            description="How noise is drawn, and how often. The buffer keeps the newest images for "
            "inspection.",
        )

    params: Params

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return no terms: noise is not optimised."""
        return {}

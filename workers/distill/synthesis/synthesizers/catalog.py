"""Which synthesizers exist: one table, one line each."""

from collections.abc import Callable

from workers.distill.methods.datafree.base import SynthesizerName
from workers.distill.synthesis.synthesizers.base import SynthesisContext, Synthesizer
from workers.distill.synthesis.synthesizers.generator import GeneratorSynthesizer
from workers.distill.synthesis.synthesizers.latent import LatentSynthesizer
from workers.distill.synthesis.synthesizers.noise import NoiseSynthesizer
from workers.distill.synthesis.synthesizers.pixel import PixelSynthesizer

SYNTHESIZERS: dict[SynthesizerName, Callable[[SynthesisContext], Synthesizer]] = {
    "noise": NoiseSynthesizer,
    "stream": GeneratorSynthesizer,
    "latent": LatentSynthesizer,
    "pixels": PixelSynthesizer,
}


def build(context: SynthesisContext) -> Synthesizer:
    """Return the method's synthesizer; raises TypeError where its budget is of another kind."""
    return SYNTHESIZERS[context.method.synthesizer](context)

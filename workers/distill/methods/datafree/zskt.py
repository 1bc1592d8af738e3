"""Zero-shot knowledge transfer.

A generator looks for images on which student and teacher contradict each other, and the student
learns to agree with the teacher there, until the generator finds nothing more.

Source: Micaelli and Storkey, NeurIPS 2019, arXiv:1905.09768.
Differs: the defaults are those of CMI's benchmark (Fang et al., IJCAI 2021): no attention
transfer, divergences summed over classes, another generator, 5 steps of the student on new images.
The authors' weight of 250 belongs to their mean over classes too (`element_mean`). The student is
in evaluation mode while images are invented; theirs stays in training mode, so that its batch norms
learn from images that it is not trained on. Attention maps of different sizes are compared at the
smaller one. The generator's divergence keeps temperature 1.
Checked against: polo5/ZeroShotKnowledgeTransfer, solver.py; zju-vipa/CMI,
datafree/synthesis/generative.py (published values).
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from workers.distill import errors
from workers.distill.config.synthesis import StreamSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, divergences, maps
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks import shapes
from workers.distill.networks.interface import Features, Network


def attention_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of attention maps, summed over pairs of maps [N, c, h, w].

    Means are over images and positions.
    """
    distances = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        pair = maps.pool_to_smaller(maps.at_least_float(student), maps.at_least_float(teacher))
        ours, theirs = (maps.attention(each, power=2.0) for each in pair)
        distances.append((ours - theirs).square().mean())
    return torch.stack(distances).sum()


class ZSKT(DataFreeMethod):
    """Invent images on which the student contradicts the teacher."""

    name = "zskt"
    title = "Zero-shot knowledge transfer"
    source = Source(
        "Zero-shot Knowledge Transfer via Adversarial Belief Matching",
        venue="NeurIPS 2019",
        arxiv="1905.09768",
    )
    needs = ("teacher", "equal_classes")
    synthesizer = "stream"

    class Params(DataFreeMethod.Params):
        """A temperature, a weight and a switch for the student, and the budget."""

        temperature: float = Field(
            1.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        attention_weight: float = Field(
            0.0,
            ge=0,
            le=1e6,
            description="Weight of attention transfer, which needs networks with equally many "
            "stages. Published: 250, with `element_mean`.",
        )
        element_mean: bool = Field(
            False,
            description="Divide divergences by the number of classes, as the authors' code does.",
        )
        synthesis: StreamSynthesis = Field(
            StreamSynthesis(
                steps=1,
                student_steps=5,
                calls_per_epoch=80,
                buffer_images=1024,
                augmentation="none",
                generator="large",
            ),
            description="How images are invented: budget and generator. The buffer keeps the "
            "newest images to be looked at, the student never sees them again. Published: "
            "`student_steps` 10 with `reuse` latent, `batch_size` 128, `latent_size` 100 and "
            "`clip_norm` 5.",
        )

        @model_validator(mode="after")
        def _the_student_is_there(self) -> Self:
            if self.synthesis.warmup_calls:
                raise ValueError(
                    "synthesis.warmup_calls must be 0: the generator learns from nothing but the "
                    f"student, which is not there during warm-up; got {self.synthesis.warmup_calls}"
                )
            return self

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        if params.attention_weight > 0 and teacher is not None:
            _check_stages(student, teacher)

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too: it looks at nothing else."""
        return True

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return the agreement of student and teacher: their divergence with a minus."""
        weight = -1 / self._divisor(shown.teacher.features.logits)
        gap = shown.against_student(weight, adversaries.discrepancy, masked=False)
        return {"adversarial": gap}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's outputs, and of where it looks."""
        params = self.params
        kd = divergences.scaled_kl(student.logits, teacher.logits, temperature=params.temperature)
        attention = student.logits.new_zeros(())
        if params.attention_weight > 0:
            attention = params.attention_weight * attention_loss(student.stages, teacher.stages)
        return {"kd": kd / self._divisor(student.logits), "attention": attention}

    def _divisor(self, logits: Float[Tensor, "N C *S"]) -> int:
        return logits.shape[1] if self.params.element_mean else 1


def _check_stages(student: Network, teacher: Network) -> None:
    """Raise `IncompatibleNetworks` unless both show maps of equally many stages."""
    counts = []
    for network in (student, teacher):
        network.enable_features(("stages",))
        counts.append(len(shapes.measure(network).stages))
    if counts[0] != counts[1] or counts[0] == 0:
        raise errors.IncompatibleNetworks(
            "method zskt compares attention stage by stage, so both networks must show equally "
            f"many stages; the student shows {counts[0]}, the teacher {counts[1]}; set "
            "attention_weight to 0, or choose another student",
            student_stages=counts[0],
            teacher_stages=counts[1],
        )

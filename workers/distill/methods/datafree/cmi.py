"""Contrastive model inversion.

Inverted images tend to look alike. Here an image is also to be told apart from all others that were
made so far: what the teacher's batch norms receive of a strongly cropped view shall be closer to
what they receive of the same image than to what they received of any other, of the batch or of a
bank. A head that learns with the images sets the measure. Every call begins with a new generator.

Source: Fang et al., IJCAI 2021, arXiv:2105.08584, equations 2 to 8.
Differs: each view goes through the teacher on its own, as in the authors' code, and only the first
is compared with the moments in its batch norms. What enters the bank are features of the images as
they are stored, in place of the augmented view in which they were found; their cropped view is
drawn for them alone. The bank grows until it is full and then loses its oldest rows. The head's
optimizer begins anew with each call, as the generator's does. In dense tasks each position is
pulled to the class that the teacher decides for there.
Checked against: zju-vipa/CMI, datafree/synthesis/contrastive.py (weights and schedule).
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.synthesis import LatentSynthesis
from workers.distill.data.types import Batch
from workers.distill.functional import adversaries, contrast, divergences, entropies, statistics
from workers.distill.methods.base import Moment, Source, Terms
from workers.distill.methods.datafree.base import DataFreeMethod, SynthesisBatch
from workers.distill.networks.interface import Features, Network, batch_norms, observe_norms


class Bank(nn.Module):
    """Features of both views of earlier images, oldest first; its buffers grow up to `size` rows.

    A state of any number of rows can be loaded.
    """

    local: Tensor
    whole: Tensor

    def __init__(self, features: int, *, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("local", torch.zeros(0, features))
        self.register_buffer("whole", torch.zeros(0, features))

    def draw(self, count: int) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
        """Return `count` different rows, or all while there are fewer, in a random order."""
        chosen = torch.randperm(len(self.local), device=self.local.device)[:count]
        return self.local[chosen], self.whole[chosen]

    @torch.no_grad()
    def append(self, local: Float[Tensor, "N D"], whole: Float[Tensor, "N D"]) -> None:
        """Add rows; the oldest give way where there are too many."""
        for name, added in (("local", local), ("whole", whole)):
            rows_kept = self.get_buffer(name)
            first = max(0, len(rows_kept) + len(added) - self.size)
            joined = [rows_kept[first:], added[-self.size :].to(rows_kept.dtype)]
            setattr(self, name, torch.cat(joined))

    # Any: torch types its own arguments so.
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for name in ("local", "whole"):
            if prefix + name in state_dict:
                mine = self.get_buffer(name)
                count = len(state_dict[prefix + name])
                setattr(self, name, mine.new_empty(count, mine.shape[1]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class CMI(DataFreeMethod):
    """Learn from images that a contrast with all earlier ones keeps diverse."""

    name = "cmi"
    title = "Contrastive model inversion"
    source = Source(
        "Contrastive Model Inversion for Data-Free Knowledge Distillation",
        venue="IJCAI 2021",
        arxiv="2105.08584",
        equations="2-8",
    )
    renews_generator = True

    class Params(DataFreeMethod.Params):
        """Weights of synthesis, the contrast and its bank, and the student's temperature."""

        temperature: float = Field(
            20.0,
            gt=0,
            le=1e4,
            description="Divides the logits of both networks before softmax in the student's loss.",
        )
        bn_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the distance to the moments in the teacher's batch norms. With "
            "`contrast_weight` 0 too, the teacher needs none.",
        )
        onehot_weight: float = Field(
            1.0,
            ge=0,
            le=1e6,
            description="Weight of the teacher's cross-entropy with the class that an image is to "
            "show. Published: 1, and 0.5 for a ResNet-34.",
        )
        adversarial_weight: float = Field(
            0.5,
            ge=0,
            le=1e6,
            description="Weight of the divergence of the student from the teacher, which images "
            "are to raise.",
        )
        contrast_weight: float = Field(
            0.8,
            ge=0,
            le=1e6,
            description="Weight of telling each image's two views from those of all others. At 0 "
            "there is no second view, no head and no bank.",
        )
        masked: bool = Field(
            True,
            description="Count the divergence only where both networks decide for the same class.",
        )
        target: Literal["random", "argmax"] = Field(
            "random",
            description="The class that an image is to show: one drawn evenly, or that which the "
            "teacher decides for. In dense tasks it is always the latter, at each position.",
        )
        contrast_temperature: float = Field(
            0.2,
            gt=0,
            le=100,
            description="Divides cosines in the contrast. Published: 0.1 to 0.2.",
        )
        head_width: int = Field(
            256, ge=1, le=4096, description="Length of the embeddings that are contrasted."
        )
        head_learning_rate: float = Field(
            1e-3, gt=0, le=100, description="Step size of the head (Adam)."
        )
        bank_size: int = Field(
            40_960,
            ge=1,
            le=10_000_000,
            description="Earlier images whose features are kept, at 8 bytes for each channel of "
            "the teacher's batch norms.",
        )
        bank_draws: int = Field(
            4096, ge=1, le=1_000_000, description="Images of the bank that a step contrasts with."
        )
        synthesis: LatentSynthesis = Field(
            LatentSynthesis(steps=200, learning_rate=1e-3, latent_learning_rate=1e-3),
            description="How images are invented: budget, generator, buffer.",
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        contrasts = params.contrast_weight > 0
        if contrasts and teacher is not None and not batch_norms(teacher):
            raise errors.IncompatibleNetworks(
                "method cmi contrasts what the teacher's batch norms receive, and the teacher "
                f"{teacher.reference or type(teacher).__name__} has none; choose a method that "
                "needs none, such as dafl",
                teacher=teacher.reference,
                missing="batch_norm",
            )
        super().__init__(params, student, teacher)
        width = channels(teacher) if contrasts and teacher is not None else 0
        self.head = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, params.head_width))
            if contrasts
            else None
        )
        self.bank = Bank(width, size=params.bank_size)

    @property
    def uses_bn_statistics(self) -> bool:
        """Whether anything counts of what the teacher's batch norms receive."""
        return self.params.bn_weight > 0 or self.params.contrast_weight > 0

    @property
    def uses_second_view(self) -> bool:
        """Whether a second view of the images is contrasted with the first."""
        return self.params.contrast_weight > 0

    @property
    def uses_student(self) -> bool:
        """Whether synthesis looks at the student too, to find where it is wrong."""
        return self.params.adversarial_weight > 0

    def synthesis_terms(self, shown: SynthesisBatch) -> Terms:
        """Return distance of moments, cross-entropy, contrast, and the divergence taken off."""
        params, logits = self.params, shown.teacher.features.logits
        wanted = None if params.target == "argmax" else shown.targets
        contrasted = shown.nothing
        if self.head is not None:
            contrasted = params.contrast_weight * self.contrast(self.head, *_views(shown))
        return {
            "bn": shown.term(params.bn_weight, statistics.moment_distance, shown.teacher.norms),
            "onehot": shown.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, wanted
            ),
            "adversarial": shown.against_student(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
            "contrast": contrasted,
        }

    def contrast(
        self, head: nn.Module, local: Float[Tensor, "N D"], whole: Float[Tensor, "N D"]
    ) -> Float[Tensor, ""]:
        """Return how badly both views of an image find each other in the batch and the bank."""
        old_local, old_whole = self.bank.draw(self.params.bank_draws)
        return contrast.bank_contrast(
            head(torch.cat([local, old_local])),
            head(torch.cat([whole, old_whole])),
            temperature=self.params.contrast_temperature,
            current=len(local),
        )

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Put both views of the images that are kept into the bank."""
        if self.head is not None:
            self.bank.append(*_views(kept))

    def synthesis_modules(self) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
        """Return the head, with Adam's usual memories."""
        if self.head is None:
            return {}
        rate = self.params.head_learning_rate
        return {"head": (self.head, {"lr": rate, "betas": (0.9, 0.999)})}

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the imitation of the teacher's softened outputs, in nats times temperature^2."""
        kd = divergences.scaled_kl(
            student.logits, teacher.logits, temperature=self.params.temperature
        )
        return {"kd": kd}


def channels(teacher: Network) -> int:
    """Return how many channels all batch norms that an image reaches receive."""
    place = next(teacher.parameters())
    blank = torch.zeros(1, *teacher.image_shape, dtype=place.dtype, device=place.device)
    mode = teacher.training
    try:
        with torch.no_grad():
            _, norms = observe_norms(teacher.eval(), blank)
    finally:
        teacher.train(mode)
    return sum(norm.received.shape[1] for norm in norms)


def _views(shown: SynthesisBatch) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Return the teacher's features of the cropped view and of the first one."""
    if shown.second is None:
        raise ValueError("method cmi needs a second view of the images")
    local, whole = (statistics.spatial_means(look.norms) for look in (shown.second, shown.teacher))
    return local, whole

"""Contrastive model inversion.

Inverted images tend to be similar to each other. A contrastive term makes each image different from
all earlier ones: the teacher's batch-norm inputs for a strongly cropped view must be closer to
those for the same image than to those for any other image of the batch or of a memory bank. They
are compared after a projection head that is trained with the images. Every call starts with a new
generator.

Source: Fang et al., IJCAI 2021, arXiv:2105.08584, equations 2 to 8.
Differs: each view goes through the teacher on its own, as in the authors' code, and only the first
is compared with the moments in its batch norms. The bank stores features of the images as they go
into the buffer, not of the augmented view of the call's last step; their cropped view is drawn
separately. The bank grows until it is full and then drops its oldest rows. The head's optimizer is
new for each call, as the generator's is. In dense tasks the target of each position is the class
that the teacher predicts there.
Checked against: zju-vipa/CMI, datafree/synthesis/contrastive.py (weights and schedule).
"""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workers.distill.config.synthesis import LatentSynthesis
from workers.distill.functional import adversaries, contrast, entropies, statistics
from workers.distill.methods import parameters
from workers.distill.methods.base import Source, Terms
from workers.distill.methods.datafree.base import AdversarialInversionMethod, SynthesisBatch
from workers.distill.networks.interface import Network, observe_norms


class Bank(nn.Module):
    """Features of both views of earlier images, oldest first; buffers of at most `size` rows.

    A state with any number of rows can be loaded.
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
        """Add rows; the oldest are dropped where there would be more than `size`."""
        for name, added in (("local", local), ("whole", whole)):
            stored = self.get_buffer(name)
            first = max(0, len(stored) + len(added) - self.size)
            joined = [stored[first:], added[-self.size :].to(stored.dtype)]
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


class CMI(AdversarialInversionMethod):
    """Distil on inverted images, kept diverse by a contrastive term over all earlier ones."""

    name = "cmi"
    title = "Contrastive model inversion"
    source = Source(
        "Contrastive Model Inversion for Data-Free Knowledge Distillation",
        venue="IJCAI 2021",
        arxiv="2105.08584",
        equations="2-8",
    )
    renews_generator = True
    image_weights = ("bn_weight", "onehot_weight", "contrast_weight")
    adversarial_weights = ("adversarial_weight",)
    norm_weights = ("bn_weight", "contrast_weight")

    class Params(AdversarialInversionMethod.Params):
        """Weights of synthesis, the contrast and its bank, and the student's temperature."""

        temperature: parameters.SoftTargetTemperature = 20.0
        bn_weight: parameters.BNWeight = Field(
            1.0,
            description="Weight of the distance to the moments in the teacher's batch norms. With "
            "`contrast_weight` 0 too, the teacher needs none.",
        )
        onehot_weight: parameters.OneHotWeight = Field(
            1.0, description=f"{parameters.ONEHOT_WEIGHT} Published: 1, and 0.5 for a ResNet-34."
        )
        adversarial_weight: parameters.AdversarialWeight = 0.5
        contrast_weight: parameters.Weight = Field(
            0.8,
            description="Weight of the contrastive term between each image's two views and those "
            "of all others. At 0 there is no second view, no head and no bank.",
        )
        masked: parameters.Masked = True
        target: parameters.Target = "random"
        contrast_temperature: parameters.ContrastTemperature = Field(
            0.2,
            description="Divides the cosines in the contrastive term. Published: 0.1 to 0.2.",
        )
        head_width: parameters.EmbeddingWidth = Field(
            256, description="Length of the embeddings that are compared."
        )
        head_learning_rate: float = Field(
            1e-3, gt=0, le=100, description="Learning rate of the head (Adam)."
        )
        bank_size: int = Field(
            40_960,
            ge=1,
            le=10_000_000,
            description="Earlier images whose features the bank keeps, at 8 bytes for each channel "
            "of the teacher's batch norms.",
        )
        bank_draws: parameters.Count = Field(
            4096, description="Images of the bank that each step compares with."
        )
        synthesis: LatentSynthesis = Field(
            LatentSynthesis(steps=200, learning_rate=1e-3, latent_learning_rate=1e-3),
            description=parameters.ROUND_BUDGET,
        )

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        contrasts = params.contrast_weight > 0
        width = channels(teacher) if contrasts and teacher is not None else 0
        self.head = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, params.head_width))
            if contrasts
            else None
        )
        self.bank = Bank(width, size=params.bank_size)

    @property
    def uses_second_view(self) -> bool:
        """Whether the contrastive term, which needs a second view, is on."""
        return self.params.contrast_weight > 0

    def synthesis_terms(self, batch: SynthesisBatch) -> Terms:
        """Return moment distance, cross-entropy, contrast and the negative divergence."""
        params, logits = self.params, batch.teacher.features.logits
        classes = None if params.target == "argmax" else batch.targets
        contrastive = batch.zero
        if self.head is not None:
            contrastive = params.contrast_weight * self.contrast(self.head, *_views(batch))
        return {
            "bn": batch.term(params.bn_weight, statistics.moment_distance, batch.teacher.norms),
            "onehot": batch.term(
                params.onehot_weight, entropies.mean_cross_entropy, logits, classes
            ),
            "adversarial": batch.student_term(
                -params.adversarial_weight, adversaries.discrepancy, masked=params.masked
            ),
            "contrast": contrastive,
        }

    def contrast(
        self, head: nn.Module, local: Float[Tensor, "N D"], whole: Float[Tensor, "N D"]
    ) -> Float[Tensor, ""]:
        """Return the contrastive loss between both views, over the batch and the bank."""
        old_local, old_whole = self.bank.draw(self.params.bank_draws)
        return contrast.bank_contrast(
            head(torch.cat([local, old_local])),
            head(torch.cat([whole, old_whole])),
            temperature=self.params.contrast_temperature,
            current=len(local),
        )

    def after_call(self, last: SynthesisBatch, kept: SynthesisBatch) -> None:
        """Add both views of the kept images to the bank."""
        if self.head is not None:
            self.bank.append(*_views(kept))

    def synthesis_modules(self) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
        """Return the head, with Adam's usual betas."""
        if self.head is None:
            return {}
        rate = self.params.head_learning_rate
        return {"head": (self.head, {"lr": rate, "betas": (0.9, 0.999)})}


def channels(teacher: Network) -> int:
    """Return the number of input channels of all batch norms that an image reaches."""
    place = next(teacher.parameters())
    blank = torch.zeros(1, *teacher.image_shape, dtype=place.dtype, device=place.device)
    mode = teacher.training
    try:
        with torch.no_grad():
            _, norms = observe_norms(teacher.eval(), blank)
    finally:
        teacher.train(mode)
    return sum(norm.received.shape[1] for norm in norms)


def _views(batch: SynthesisBatch) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Return the teacher's features of the cropped view and of the first one."""
    if batch.second_view is None:
        raise ValueError("method cmi needs a second view of the images")
    local, whole = (
        statistics.spatial_means(result.norms) for result in (batch.second_view, batch.teacher)
    )
    return local, whole

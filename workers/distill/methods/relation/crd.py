"""Contrastive representation distillation.

The student's embedding of an image is trained to be nearer to the teacher's embedding of the same
image than to those of thousands of images of other classes, and vice versa. The last embeddings of
every training image by both networks are kept in two memory banks, so negatives cost no forward
pass.

Source: Tian et al., ICLR 2020, arXiv:1910.10699.
Differs: scores are divided by a constant taken from the first batch, as the authors' code does and
the paper's equation does not. The images of a batch share one random order of negatives, from which
each takes the first K of other classes (where drawn with replacement: one row of K random numbers,
read by each class in its own pool). For each image that is the same distribution as a draw of its
own, so loss and gradient have the same expectation; only the draws of different images depend on
each other. Scores then are one matrix product with the K memories, not N times K rows gathered.
Draws are without replacement if every class has at least K images of other classes to draw from.
Memories are updated after the optimizer's step, with the embeddings of the loss.
Checked against: megvii-research/mdistiller, mdistiller/distillers/CRD.py (published values).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data.types import Batch
from workers.distill.methods.base import FeatureName, Moment, RelationMethod, Source, Terms
from workers.distill.methods.parameters import (
    ContrastTemperature,
    Count,
    Decay,
    EmbeddingWidth,
    Weight,
)
from workers.distill.networks.interface import Features, Network

EPS = 1e-7


@dataclass(frozen=True)
class MemoryScores:
    """Scores of one network's embeddings against the other's memories, divided by temperature.

    `counts` are how often each memory was drawn as a negative of an image; each row sums to K.
    """

    positive: Float[Tensor, " N"]
    negative: Float[Tensor, "N R"]
    counts: Float[Tensor, "N R"]


def score(
    embeddings: Float[Tensor, "N D"],
    positives: Float[Tensor, "N D"],
    candidates: Float[Tensor, "R D"],
    counts: Float[Tensor, "N R"],
    *,
    temperature: float,
) -> MemoryScores:
    """Return the scores of embeddings with one positive memory each and all candidates.

    One product of 2 * N * R * D operations, where R is K and at most the size of the largest class;
    rows gathered for each image would move N * K * D numbers, which takes many times as long.
    """
    return MemoryScores(
        positive=(embeddings * positives).sum(1) / temperature,
        negative=embeddings @ candidates.mT / temperature,
        counts=counts,
    )


def log_normaliser(scores: MemoryScores, *, images: int) -> Float[Tensor, ""]:
    """Return log Z: the mean of all exponentiated scores, negatives as often as drawn, times n."""
    weighted = scores.negative + scores.counts.log()
    total = torch.cat([scores.positive, weighted.flatten()]).logsumexp(0)
    count = len(scores.positive) + scores.counts.sum()
    return total - count.log() + math.log(images)


def crd_loss(
    scores: MemoryScores, log_z: Float[Tensor, ""], *, negatives: int, images: int
) -> Float[Tensor, ""]:
    """Return the noise-contrastive loss of one side: tell one positive from K drawn negatives.

    With a = exp(score) / Z and c = K / n: minus the mean of log(a / (a + c)) for the positive, plus
    log(c / (a + c)) for each negative; through log-sigmoids, so that no score overflows.
    """
    noise = negatives / images
    offset = log_z + math.log(noise + EPS)
    accepted = F.logsigmoid(scores.positive - offset)
    rejected = F.logsigmoid(offset - scores.negative)
    constant = negatives * math.log(noise / (noise + EPS))
    return -(accepted + (scores.counts * rejected).sum(1) + constant).mean()


def updated(
    memories: Float[Tensor, "N D"], embeddings: Float[Tensor, "N D"], *, momentum: float
) -> Float[Tensor, "N D"]:
    """Return the moving average of memories and embeddings, with unit length."""
    return F.normalize(momentum * memories + (1 - momentum) * embeddings, dim=1)


class Pools(nn.Module):
    """Which training images may be negatives or positives of an image, drawn on its device."""

    labels: Tensor
    order: Tensor
    first: Tensor
    sizes: Tensor

    def __init__(self, labels: Int[Tensor, " n"], negatives: int) -> None:
        super().__init__()
        sizes = labels.bincount()
        buffers = {
            "labels": labels,
            "order": labels.argsort(stable=True),
            "first": sizes.cumsum(0) - sizes,
            "sizes": sizes,
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)
        self.images, self.negatives = len(labels), negatives
        largest = int(sizes.max())
        self.replaces = self.images - largest < negatives
        # Of so many images in any order, at least K are of another class than a given one.
        self.reach = min(self.images, negatives + largest)

    def draw(self, labels: Int[Tensor, " N"]) -> tuple[Tensor | None, Float[Tensor, "N R"]]:
        """Return places of candidates (None: all images) and how often each is a negative."""
        return self._replaced(labels) if self.replaces else self._unique(labels)

    def relatives(self, labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Return the place of a random image of the same class for each label."""
        return self.order[
            self.first[labels] + _up_to(self.sizes[labels], _uniform(len(labels), labels))
        ]

    def _unique(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.randperm(self.images, device=self.order.device)[: self.reach]
        others = self.labels[places] != labels[:, None]
        kept = others & (others.cumsum(1) <= self.negatives)
        return places, kept.float()

    def _replaced(self, labels: Tensor) -> tuple[None, Tensor]:
        by_class = len(self.sizes) <= len(labels)
        kinds = torch.arange(len(self.sizes), device=labels.device) if by_class else labels
        first, size = self.first[kinds][:, None], self.sizes[kinds][:, None]
        drawn = _up_to(self.images - size, _uniform(self.negatives, labels))
        # Images stand class by class: those from the own class on are the ones behind it.
        places = self.order[drawn + size * (drawn >= first)]
        counts = torch.zeros(len(kinds), self.images, device=labels.device)
        counts.scatter_add_(1, places, torch.ones_like(places, dtype=counts.dtype))
        return None, counts[labels] if by_class else counts


class CRD(RelationMethod):
    """Contrast each image's embedding by the other network with those of other classes."""

    name = "crd"
    title = "Contrastive representation distillation"
    source = Source(
        "Contrastive Representation Distillation", venue="ICLR 2020", arxiv="1910.10699"
    )
    accepts_mixed = False
    smallest_classes = 2
    reads_labels = True
    required_teacher_features: ClassVar[tuple[FeatureName, ...]] = ("embedding",)

    class Params(RelationMethod.Params):
        """A weight, the width of embeddings, and how they are contrasted."""

        crd_weight: Weight = Field(0.8, description="Weight of the contrastive term.")
        width: EmbeddingWidth = Field(128, description="Width of the embeddings that are compared.")
        negatives: Count = Field(
            16_384,
            description="Images of other classes that each image is contrasted with; drawn with "
            "replacement where the training split has fewer.",
        )
        temperature: ContrastTemperature = Field(
            0.07, description="Divides the cosines of embeddings."
        )
        momentum: Decay = Field(
            0.5, description="Share of an image's memory that is kept at each update."
        )
        mode: Literal["exact", "relax"] = Field(
            "exact",
            description="The positive of an image: exact, its own memory; relax, that of a random "
            "image of its class.",
        )

    params: Params
    memory_student: Tensor
    memory_teacher: Tensor
    log_z: Tensor

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.student_head = nn.Linear(student.pooled_width, params.width)
        self.teacher_head = nn.Linear(0 if teacher is None else teacher.pooled_width, params.width)
        self.register_buffer("memory_student", torch.zeros(0, params.width))
        self.register_buffer("memory_teacher", torch.zeros(0, params.width))
        # Not a number: the first batch has yet to set both.
        self.register_buffer("log_z", torch.full((2,), math.nan))
        self.pools: Pools | None = None
        self._has_log_z: bool | None = None
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]  # torch's stub

    def prepare(self, labels: Int[Tensor, " N"]) -> None:
        """Keep the class of every image, and allocate a memory for each.

        Raises `BadDataset` where all images are of one class.
        """
        if bool((labels == labels[0]).all()):
            raise errors.BadDataset(
                "method crd contrasts images with those of other classes, and all "
                f"{len(labels)} images of the train split are of one; choose another data set or "
                "method"
            )
        self.pools = Pools(labels, self.params.negatives)
        bound = 1 / math.sqrt(self.params.width / 3)
        for name in ("memory_student", "memory_teacher"):
            fresh = torch.empty(len(labels), self.params.width, device=labels.device)
            self.register_buffer(name, fresh.uniform_(-bound, bound))

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and the contrast of both networks with the other's memories."""
        if self.pools is None:
            raise RuntimeError(
                "method crd was not prepared with the training split before its first step"
            )
        pools, params = self.pools, self.params
        student_out = F.normalize(self.student_head(student.pooled), dim=1)
        teacher_out = F.normalize(self.teacher_head(teacher.pooled), dim=1)
        positives = batch.index if params.mode == "exact" else pools.relatives(batch.labels)
        candidates, counts = pools.draw(batch.labels)
        sides = [
            score(
                embeddings,
                memory[positives],
                # Copied in any case: the memory changes before its gradient is computed again.
                memory.clone() if candidates is None else memory[candidates],
                counts,
                temperature=params.temperature,
            )
            for embeddings, memory in (
                (student_out, self.memory_teacher),
                (teacher_out, self.memory_student),
            )
        ]
        self._set_log_z(sides)
        losses = [
            crd_loss(side, log_z, negatives=params.negatives, images=pools.images)
            for side, log_z in zip(sides, self.log_z, strict=True)
        ]
        self._last = (batch.index, student_out.detach(), teacher_out.detach())
        return {**self.task(student, batch), "crd": params.crd_weight * torch.stack(losses).sum()}

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Update the memories of the batch's images by their embeddings."""
        if self._last is None:
            return
        index, student_out, teacher_out = self._last
        for memory, embeddings in (
            (self.memory_student, student_out),
            (self.memory_teacher, teacher_out),
        ):
            memory[index] = updated(memory[index], embeddings, momentum=self.params.momentum)
        self._last = None

    @torch.no_grad()
    def _set_log_z(self, sides: list[MemoryScores]) -> None:
        # Read once, since reading waits for the device.
        if self._has_log_z is None:
            self._has_log_z = bool(self.log_z.isfinite().all())
        if not self._has_log_z:
            images = len(self.memory_student)
            self.log_z.copy_(torch.stack([log_normaliser(side, images=images) for side in sides]))
            self._has_log_z = True


def _forget(method: CRD, _keys: Any) -> None:  # Any: torch's incompatible keys
    """Read again whether the constants are set: a state may come from before the first batch."""
    method._has_log_z = None


def _uniform(count: int, like: Tensor) -> Tensor:
    return torch.rand(count, dtype=torch.float64, device=like.device)


def _up_to(limits: Tensor, numbers: Tensor) -> Tensor:
    """Return whole numbers below each limit, from numbers in [0, 1)."""
    return torch.minimum((numbers * limits).long(), limits - 1)

"""Answers how a network does on the validation split: accuracy, loss, likeness to its teacher.

Likeness is CKA between pooled features of a few hundred images, the same ones every time. The
student shows them in the pass that its accuracy needs anyway; the teacher is asked once. Dense
networks are judged by their pixels instead: accuracy, mean IoU, loss.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import analysis, evaluate, segmentation_metrics
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision

IMAGES = 512
SEED = 0


@dataclass(frozen=True)
class ValidationSplit:
    """The validation split, and how networks are asked about it."""

    held: evaluate.LabelledImages
    precision: Precision
    between: Callable[[], None]

    @property
    def is_dense(self) -> bool:
        """Whether the labels are masks."""
        return self.held.labels.dim() > 1

    @functools.cached_property
    def sample(self) -> Int[Tensor, " K"]:
        """Return the images whose features are compared: drawn once for all, in order."""
        drawn = np.random.default_rng(SEED).permutation(len(self.held.labels))[:IMAGES]
        return torch.from_numpy(np.sort(drawn))

    def look(self, network: Network, view: Preprocessor, *, features: bool) -> evaluate.Predictions:
        """Return what a network shows, as precisely as it is trained."""
        keep = self.sample if features else None
        with self.precision.autocast():
            return evaluate.survey(network, view, self.held.images, keep=keep, between=self.between)

    def judge_pixels(self, network: Network, view: Preprocessor) -> dict[str, float]:
        """Return `accuracy` and `loss` of a pixel, and `miou`."""
        with self.precision.autocast():
            counts = evaluate.count_pixels(
                network,
                view,
                self.held.images,
                self.held.labels,
                classes=network.classes,
                between=self.between,
            )
        confusion = counts.confusion
        return {
            "accuracy": segmentation_metrics.accuracy(confusion),
            "miou": segmentation_metrics.miou(confusion),
            "loss": counts.loss,
        }

    def accuracy(self, logits: Float[Tensor, "N C"]) -> float:
        """Return the share of right answers."""
        return int((logits.argmax(1) == self.held.labels).sum()) / len(self.held.labels)


@dataclass(frozen=True)
class TeacherScores:
    """The teacher on the validation split; it is asked when somebody first wants to know."""

    split: ValidationSplit
    network: Network
    view: Preprocessor

    @functools.cached_property
    def shown(self) -> evaluate.Predictions:
        """Return its logits and the features that students are compared with."""
        return self.split.look(self.network, self.view, features=True)

    @functools.cached_property
    def accuracy(self) -> float:
        """Return the teacher's own accuracy; of a dense teacher, its share of right pixels."""
        if self.split.is_dense:
            return self.split.judge_pixels(self.network, self.view)["accuracy"]
        return self.split.accuracy(self.shown.logits)


@dataclass(frozen=True)
class Validator:
    """Scores a student on the validation split."""

    split: ValidationSplit
    view: Preprocessor
    example: TeacherScores | None = None

    def __call__(self, network: Network) -> dict[str, float]:
        """Return accuracy and loss, and CKA where there is a teacher and it can be told.

        Of a dense network: accuracy and loss of a pixel, and `miou`.
        """
        if self.split.is_dense:
            return self.split.judge_pixels(network, self.view)
        compares = self.example is not None and len(self.split.sample) >= analysis.FEWEST_FOR_CKA
        shown = self.split.look(network, self.view, features=compares)
        found = {
            "accuracy": self.split.accuracy(shown.logits),
            "loss": float(F.cross_entropy(shown.logits, self.split.held.labels)),
        }
        if self.example is not None and compares:
            pair = (shown.pooled, self.example.shown.pooled)
            found["cka"] = analysis.cka(*(pooled.cpu().numpy() for pooled in pair))
        return found

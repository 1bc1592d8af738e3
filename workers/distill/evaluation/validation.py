"""Scores on the validation split while a student trains, and its similarity to its teacher.

Similarity is CKA between pooled features of a few hundred images, the same ones every time. The
student's come from the forward pass that its scores need anyway; the teacher's are computed once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import evaluate
from workers.distill.functional import similarity
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision
from workers.distill.tasks.base import BaseTask

IMAGES = 512
SEED = 0


@dataclass(frozen=True)
class ValidationSplit:
    """The validation split, and how networks are evaluated on it."""

    samples: evaluate.LabelledImages
    task: BaseTask
    classes: int
    precision: Precision
    on_batch: Callable[[], None]
    """Runs before each batch; what it raises ends the evaluation."""

    @functools.cached_property
    def feature_rows(self) -> Int[Tensor, " K"]:
        """Return the images whose features are compared: drawn once for all, in order."""
        indices = np.random.default_rng(SEED).permutation(len(self.samples.labels))[:IMAGES]
        return torch.from_numpy(np.sort(indices))

    @property
    def compares_features(self) -> bool:
        """Whether CKA can be measured: for this task, and on as many images as there are."""
        enough = len(self.samples.labels) >= similarity.FEWEST_FOR_CKA
        return self.task.compares_features and enough

    def evaluate(
        self, network: Network, preprocessor: Preprocessor, *, features: bool
    ) -> evaluate.Evaluation:
        """Return what a network scores, in the precision in which it is trained."""
        with self.precision.autocast():
            return evaluate.evaluate_split(
                self.task,
                {"network": (network, preprocessor)},
                self.samples,
                classes=self.classes,
                feature_rows=self.feature_rows if features else None,
                on_batch=self.on_batch,
            )["network"]


@dataclass(frozen=True)
class TeacherScores:
    """The teacher on the validation split; evaluated when it is first asked for."""

    split: ValidationSplit
    network: Network
    preprocessor: Preprocessor

    @functools.cached_property
    def evaluation(self) -> evaluate.Evaluation:
        """Return its metrics, and the features that students are compared with."""
        return self.split.evaluate(
            self.network, self.preprocessor, features=self.split.compares_features
        )

    @property
    def shows_features(self) -> bool:
        """Whether students can be compared with it by features: not with logits alone."""
        return self.split.compares_features and self.evaluation.pooled.shape[1] > 0

    @functools.cached_property
    def primary(self) -> float:
        """Return the teacher's own value of the task's primary metric."""
        return self.evaluation.metrics.validation_scores()[self.split.task.primary_metric]


@dataclass(frozen=True)
class Validator:
    """Scores a student on the validation split."""

    split: ValidationSplit
    preprocessor: Preprocessor
    teacher: TeacherScores | None = None

    def __call__(self, network: Network) -> dict[str, float]:
        """Return the task's validation scores, and `cka` where a teacher can be compared with."""
        compares = self.teacher is not None and self.teacher.shows_features
        evaluation = self.split.evaluate(network, self.preprocessor, features=compares)
        scores = evaluation.metrics.validation_scores()
        if self.teacher is not None and compares:
            pair = (evaluation.pooled, self.teacher.evaluation.pooled)
            scores["cka"] = similarity.cka(*(pooled.cpu().numpy() for pooled in pair))
        return scores

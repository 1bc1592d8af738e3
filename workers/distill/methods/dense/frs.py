"""Distillation by feature richness scores.

A position counts by the teacher's largest probability of any class there, whether a box is there or
not: the student imitates the levels of the teacher's pyramid, through a 3x3 convolution each, and
the classes of its head.

Source: Du et al., NeurIPS 2021, arXiv:2111.00674, equations 1 to 5.
Differs: weights are the authors' for RetinaNet. A head with a softmax (SSD) is compared by the
sigmoids of its logits without the background's.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workers.distill.config.job import Task
from workers.distill.data.types import Batch
from workers.distill.functional import map_distances
from workers.distill.methods.base import FeatureName, Moment, Source, Terms
from workers.distill.methods.dense.base import HeadMethod, LevelPairs
from workers.distill.methods.parameters import Levels, WarmupSteps, Weight
from workers.distill.networks.interface import Features, Network


class FRS(HeadMethod):
    """Imitate maps and classes where the teacher is sure of something."""

    name = "frs"
    auto_balanced = True  # maps of features beside the classes
    title = "Distillation by feature richness scores"
    source = Source(
        "Distilling Object Detectors with Feature Richness",
        venue="NeurIPS 2021",
        arxiv="2111.00674",
        equations="1-5",
    )
    task_features: ClassVar[Mapping[Task, tuple[FeatureName, ...]]] = MappingProxyType(
        {"detection": ("stages", "locations")}
    )

    class Params(HeadMethod.Params):
        """Two weights and a warm-up."""

        feature_weight: Weight = Field(5e-3, description="Weight of the pyramid's maps.")
        class_weight: Weight = Field(2e-2, description="Weight of the classes of the head.")
        warmup_steps: WarmupSteps = 500
        levels: Levels = None

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        shapes, theirs = self.student_shapes, self.teacher_shapes
        if shapes is None or theirs is None or shapes.locations is None:
            raise ValueError("method frs was not shown both pyramids")
        self.levels = LevelPairs(self.name, params.levels, shapes, theirs, most=None, kernel=3)
        self.locations = shapes.locations

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        """Return the task term and both imitations, each summed over levels."""
        params = self.params
        ours, theirs = self._class_maps(student.logits), self._class_maps(teacher.logits)
        features, classes = [], []
        pairs = self.levels(student, teacher)
        for (level, _), (one, other) in zip(self.levels.pairs, pairs, strict=True):
            weights = map_distances.confidence(theirs[level])
            features.append(map_distances.weighted_square(one, other, weights))
            classes.append(map_distances.weighted_bce(ours[level], theirs[level], weights))
        ramp = moment.step_ramp(params.warmup_steps)
        return {
            **self.task(student, batch),
            "frs_features": ramp * params.feature_weight * torch.stack(features).sum(),
            "frs_classes": ramp * params.class_weight * torch.stack(classes).sum(),
        }

    def _class_maps(self, logits: Float[Tensor, "N K L"]) -> list[Tensor]:
        """Return the logits of each level as a map whose channels are classes and boxes."""
        sizes, boxes = self.locations.level_sizes, self.locations.boxes_per_location
        counts = [h * w * count for (h, w), count in zip(sizes, boxes, strict=True)]
        levels = torch.split(logits, counts, dim=2)
        return [
            level.reshape(*level.shape[:2], *size, count).movedim(4, 2).flatten(1, 2)
            for level, size, count in zip(levels, sizes, boxes, strict=True)
        ]

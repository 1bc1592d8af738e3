"""Feature richness: value by the guide's case for a level, warm-up, floor."""

import copy
from typing import Any

import torch

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import observed
from workers.distill.functional import map_distances
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment

BATCH = scenes.boxes_batch()
LATER = Moment(epoch=1, step=500, steps_per_epoch=1000)


class TestFRS:
    def test_value_is_the_sum_of_the_guides_terms_over_levels(self) -> None:
        student = scenes.detector(1, "retort/retinanet")
        teacher = scenes.frozen(scenes.detector(2, "retort/retinanet"))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        method: Any = catalog.build({"name": "frs"}, student, teacher)
        found = method.terms(student_out, teacher_out, BATCH, LATER)
        wanted = {"frs_features": torch.zeros(()), "frs_classes": torch.zeros(())}
        for level, (side, start) in enumerate(((8, 0), (4, 8 * 8 * 9))):
            # Rows, columns, boxes: the position of a logit in its level.
            ours, theirs = (
                each.logits[:, :, start : start + side**2 * 9].reshape(2, 3, side, side, 9)
                for each in (student_out, teacher_out)
            )
            weights = theirs.sigmoid().amax((1, 4))[:, None]
            adapted = method.levels.connectors[level](student_out.stages[level])
            distance = (adapted - teacher_out.stages[level]).square().sum(1, keepdim=True)
            wanted["frs_features"] += 5e-3 * (weights * distance).sum() / weights.sum()
            entropy = torch.nn.functional.binary_cross_entropy(
                ours.sigmoid(), theirs.sigmoid(), reduction="none"
            )
            wanted["frs_classes"] += 2e-2 * (weights[..., None] * entropy).sum() / weights.sum()
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=1e-4), name

    def test_rises_over_its_first_steps(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        method = catalog.build({"name": "frs"}, student, teacher)
        half = Moment(epoch=1, step=250, steps_per_epoch=1000)
        one, other = (
            method.terms(student_out, teacher_out, BATCH, moment)["frs_classes"]
            for moment in (half, LATER)
        )
        assert torch.allclose(2 * one, other)

    def test_equal_classes_are_the_floor(self) -> None:
        student, other = scenes.detector(1).eval(), scenes.detector(2).eval()
        teacher = scenes.frozen(copy.deepcopy(student))
        same, apart = (
            scenes.detection_terms({"name": "frs"}, each, teacher)["frs_classes"]
            for each in (student, other)
        )
        logits = teacher.observe(scenes.PICTURES).logits
        levels = logits.split([64, 16], dim=2)
        floor = sum(
            map_distances.weighted_bce(
                level[..., None], level[..., None], map_distances.confidence(level[..., None])
            )
            for level in levels
        )
        assert torch.allclose(same * 500, 2e-2 * torch.as_tensor(floor), rtol=1e-4)
        assert same < apart

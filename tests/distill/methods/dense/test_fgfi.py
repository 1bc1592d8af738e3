"""Fine-grained feature imitation: mask from anchors or boxes, value, start."""

import copy

import pytest
import torch

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import observed
from workers.distill.functional import box_masks
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment

BATCH = scenes.boxes_batch()
LATER = Moment(epoch=1, step=401, steps_per_epoch=1000)


class TestFGFI:
    @pytest.mark.parametrize("reference", ["retort/fcos", "retort/retinanet", "retort/fasterrcnn"])
    def test_value_is_the_mean_near_objects(self, reference: str) -> None:
        student = scenes.detector(1, reference)
        teacher = scenes.frozen(scenes.detector(2, reference))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        choice = {"name": "fgfi", "levels": [1], "imitation_weight": 2.0}
        found = catalog.build(choice, student, teacher).terms(
            student_out, teacher_out, BATCH, LATER
        )
        corners = BATCH.labels[..., 1:5]
        there = BATCH.labels[..., 0] >= 0
        if reference == "retort/fcos":
            near = torch.zeros(2, 4, 4)
            near[0, :3, :3] = near[0, 1:, 1:] = 1
        else:
            anchors = student_out.detector.level_anchors()[1]  # type: ignore[union-attr]  # it has them
            assert anchors.shape[:2] == (4, 4)
            near = box_masks.anchor_mask(corners, there, anchors, share=0.5).float()
        assert 0 < near.sum() < 32
        squares = (student_out.stages[1] - teacher_out.stages[1]).square().sum(1)
        wanted = 2 * (near * squares).sum() / (2 * near.sum())
        assert torch.allclose(found["fgfi"], wanted, rtol=1e-4)

    def test_anchors_of_a_level_lie_around_its_positions(self) -> None:
        detector = scenes.detector(1, "retort/retinanet").observe(scenes.PICTURES).detector
        levels = detector.level_anchors()  # type: ignore[union-attr]  # RetinaNet has them
        centers = [(level[..., :2] + level[..., 2:]) / 2 for level in levels]
        assert torch.allclose(centers[1][2, 1, 4], torch.tensor([8.0, 16.0]), atol=1)
        assert [tuple(level.shape) for level in levels] == [(8, 8, 9, 4), (4, 4, 9, 4)]

    def test_imitates_nothing_in_its_first_steps(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2, fpn_channels=64))
        terms = scenes.detection_terms({"name": "fgfi"}, student, teacher)
        assert float(terms["fgfi"].detach()) == 0
        choice = {"name": "fgfi", "idle_steps": 0}
        assert float(scenes.detection_terms(choice, student, teacher)["fgfi"].detach()) > 0

    def test_is_0_for_equal_pyramids(self) -> None:
        student = scenes.detector(1).eval()
        choice = {"name": "fgfi", "idle_steps": 0}
        terms = scenes.detection_terms(choice, student, scenes.frozen(copy.deepcopy(student)))
        assert float(terms["fgfi"].detach()) == 0

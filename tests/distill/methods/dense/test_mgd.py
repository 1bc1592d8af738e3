"""Masked generative distillation: value without and with a mask, repeatable draws."""

from typing import Any

import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill.functional import map_distances
from workers.distill.methods import catalog

BATCH = scenes.boxes_batch()


class TestMGD:
    def test_value_is_the_distance_of_generated_maps(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        choice = {"name": "mgd", "mgd_weight": 1.0, "levels": [1]}
        method: Any = catalog.build(choice, student, teacher)
        generated = method.generators[0](student_out.stages[1])
        wanted = (generated - teacher_out.stages[1]).square().sum() / 2
        found = method.eval().terms(student_out, teacher_out, BATCH, MOMENT)["mgd"]
        assert torch.allclose(found, wanted, rtol=1e-5)
        torch.manual_seed(5)
        found = method.train().terms(student_out, teacher_out, BATCH, MOMENT)["mgd"]
        torch.manual_seed(5)
        kept = torch.rand(2, 1, 4, 4) >= 0.65
        generated = method.generators[0](student_out.stages[1] * kept)
        wanted = (generated - teacher_out.stages[1]).square().sum() / 2
        assert torch.allclose(found, wanted, rtol=1e-5)

    def test_distance_is_that_of_the_guide(self) -> None:
        student, teacher = DENSE.pair("at_sp_mimic_2x3x2x2")
        found = map_distances.sum_of_squares(student, teacher) / 2
        wanted = DENSE.expected("at_sp_mimic_2x3x2x2")["mgd_unmasked_alpha1"]
        assert DENSE.close(found, wanted)

    def test_trains_generators_and_student(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2, fpn_channels=64))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        method = catalog.build({"name": "mgd"}, student, teacher)
        method.terms(student_out, teacher_out, BATCH, MOMENT)["mgd"].backward()
        assert all(p.grad is not None and p.grad.any() for p in method.parameters())

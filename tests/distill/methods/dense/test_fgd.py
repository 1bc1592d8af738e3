"""Focal and global distillation: value from its definition, identity, gradient."""

import copy
import dataclasses

import torch

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed
from workers.distill.functional import maps
from workers.distill.methods.dense import fgd

BATCH = scenes.boxes_batch()


def method(**changes: float) -> fgd.FGD:
    torch.manual_seed(3)
    params = fgd.FGD.Params(task_weight=0, levels=[1], **changes)
    return fgd.FGD(params, scenes.detector(1), scenes.frozen(scenes.detector(2)))


class TestFGD:
    def test_value_is_that_of_the_definition(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2))
        student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        found = method(foreground_weight=1.0, background_weight=1.0, attention_weight=1.0).terms(
            student_out, teacher_out, BATCH, MOMENT
        )
        ours, theirs = student_out.stages[1], teacher_out.stages[1]
        # Strides of 8: boxes (4, 4, 20, 24) and (12, 14, 30, 30) touch these cells of 4x4.
        first, second = torch.zeros(4, 4), torch.zeros(4, 4)
        first[0:3, 0:3], second[1:4, 1:4] = 1 / 9, 1 / 9
        foreground = torch.stack([torch.maximum(first, second), torch.zeros(4, 4)])
        background = (foreground == 0).float()
        background = background / background.sum((1, 2), keepdim=True)
        spatial = maps.spatial_attention(theirs, temperature=0.5)
        channel = maps.channel_attention(theirs, temperature=0.5)
        squares = (ours - theirs).square() * spatial[:, None] * channel[:, :, None, None]
        for name, mask in (("foreground", foreground), ("background", background)):
            wanted = (squares * mask[:, None]).sum() / 2
            assert torch.allclose(found[f"fgd_{name}"], wanted, rtol=1e-4)
        wanted = (maps.spatial_attention(ours, temperature=0.5) - spatial).abs().sum()
        wanted = wanted + (maps.channel_attention(ours, temperature=0.5) - channel).abs().sum()
        assert torch.allclose(found["fgd_attention"], wanted / 2, rtol=1e-4)
        # Blocks of global context start as the identity.
        wanted = 5e-6 * (ours - theirs).square().sum() / 2
        assert torch.allclose(found["fgd_relation"], wanted, rtol=1e-4)

    def test_is_0_for_equal_pyramids(self) -> None:
        student = scenes.detector(1).eval()
        teacher = scenes.frozen(copy.deepcopy(student))
        terms = scenes.detection_terms({"name": "fgd", "task_weight": 0}, student, teacher)
        assert all(float(term.detach()) == 0 for term in terms.values())

    def test_global_context_adds_an_attended_mean(self) -> None:
        torch.manual_seed(1)
        block = fgd.GlobalContext(4)
        given = torch.randn(2, 4, 3, 2)
        assert torch.equal(block(given), given)
        last = block.transform.get_parameter("3.bias")
        torch.nn.init.normal_(last)
        assert torch.allclose(block(given), given + last[:, None, None])

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = scenes.detector(1), scenes.frozen(scenes.detector(2))
        with torch.no_grad():
            student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
        teacher_out = dataclasses.replace(
            teacher_out, stages=tuple(s.double() for s in teacher_out.stages)
        )
        built = method().double()
        given = student_out.stages[1].double().requires_grad_()

        def total(maps_of_level: torch.Tensor) -> torch.Tensor:
            shown = dataclasses.replace(student_out, stages=(student_out.stages[0], maps_of_level))
            return torch.stack(list(built.terms(shown, teacher_out, BATCH, MOMENT).values())).sum()

        assert torch.autograd.gradcheck(total, (given,), fast_mode=True)

import torch
from torch import nn

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, observed, pictures
from workers.distill.methods.dense import mimic

NAME = "at_sp_mimic_2x3x2x2"


class TestMimic:
    def test_equals_the_guide(self) -> None:
        student, teacher = DENSE.pair(NAME)
        choice = {"name": "mimic", "mimic_weight": 2.0, "by_variance": False}
        found = scenes.terms(choice, student, teacher)
        assert list(found) == ["task", "mimic"]
        assert DENSE.close(found["mimic"] / 2, DENSE.expected(NAME)["mse"])

    def test_by_variance_is_the_unexplained_share(self) -> None:
        student, teacher = DENSE.pair(NAME)
        plain, shared = (
            scenes.terms({"name": "mimic", "by_variance": switch}, student, teacher)["mimic"]
            for switch in (False, True)
        )
        assert torch.allclose(shared, plain / teacher.var(correction=0), rtol=1e-12)

    def test_learns_a_connector_where_channels_differ(self) -> None:
        student, teacher = scenes.segmenter(1, 4, 5), scenes.segmenter(2, 4, 7)
        method = mimic.Mimic(mimic.Mimic.Params(), student, teacher)
        assert isinstance(method.connector, nn.Conv2d)
        student_out, teacher_out = observed(student, teacher, pictures(2))
        masks = torch.zeros(2, 8, 8, dtype=torch.int64)
        found = method.terms(student_out, teacher_out, scenes.batch(masks), MOMENT)["mimic"]
        found.backward()
        assert method.connector.weight.grad is not None
        assert method.connector.weight.grad.any()
        assert teacher_out.final is not None
        wanted = method.connector(student_out.final) - teacher_out.final
        assert torch.allclose(found, wanted.square().mean() / teacher_out.final.var(correction=0))
        same = mimic.Mimic(mimic.Mimic.Params(), student, scenes.segmenter(3, 5))
        assert not list(same.parameters())

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.pair(NAME)
        assert torch.autograd.gradcheck(
            lambda given: scenes.terms({"name": "mimic"}, given, teacher)["mimic"],
            (student.requires_grad_(),),
            fast_mode=True,
        )

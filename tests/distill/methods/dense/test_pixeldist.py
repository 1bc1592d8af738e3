import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from workers.distill.functional import relations

NAME = "dist_dense_2x3x2x2"


class TestPixelDIST:
    def test_equals_the_guide(self) -> None:
        choice = {"name": "pixeldist", "beta": 3.0, "gamma": 5.0}
        found, wanted = scenes.terms(choice, *DENSE.pair(NAME)), DENSE.expected(NAME)
        assert list(found) == ["task", "inter", "intra"]
        assert DENSE.close(found["inter"] / 3, wanted["inter"])
        assert DENSE.close(found["intra"] / 5, wanted["intra"])

    def test_ignores_a_constant_added_to_a_pixel(self) -> None:
        student, teacher = DENSE.pair(NAME)
        shift = DENSE.teacher(2, 1, 2, 2)
        one, other = (
            scenes.terms({"name": "pixeldist"}, each, teacher)
            for each in (student, student + shift)
        )
        assert torch.allclose(one["inter"], other["inter"], rtol=1e-9)
        assert torch.allclose(one["intra"], other["intra"], rtol=1e-9)

    def test_patches_of_each_class_are_samples(self) -> None:
        student, teacher = DENSE.student(2, 3, 4, 4), DENSE.teacher(2, 3, 4, 4)
        masks = torch.zeros(2, 4, 4, dtype=torch.int64)
        choice = {"name": "pixeldist", "patch": 2, "temperature": 4.0}
        found = scenes.terms(choice, student, teacher, masks)
        gaps = []
        for name in range(3):
            rows = [
                torch.stack(
                    [each[:, name, y : y + 2, x : x + 2].flatten() for y in (0, 2) for x in (0, 2)]
                )
                for each in (student, teacher)
            ]
            gaps.append(relations.correlation_gaps(*rows, temperature=4.0))
        assert torch.allclose(found["inter"], torch.stack([gap.inter for gap in gaps]).mean())
        assert torch.allclose(found["intra"], torch.stack([gap.intra for gap in gaps]).mean())

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.pair(NAME)

        def total(given: torch.Tensor) -> torch.Tensor:
            found = scenes.terms({"name": "pixeldist"}, given, teacher)
            return found["inter"] + found["intra"]

        assert torch.autograd.gradcheck(total, (student.requires_grad_(),), fast_mode=True)

import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes

NAME = "pixel_kd_2x3x2x2"


class TestPixelKD:
    def test_equals_the_guide_with_and_without_ignored_pixels(self) -> None:
        pair, wanted = DENSE.pair(NAME), DENSE.expected(NAME)
        labelled = scenes.terms({"name": "pixelkd", "pixelkd_weight": 2.0}, *pair)
        assert list(labelled) == ["task", "pixelkd"]
        assert DENSE.close(labelled["pixelkd"] / 2, wanted["tau1_ignore_masked"])
        for temperature in (1, 4):
            choice = {"name": "pixelkd", "only_labelled": False, "temperature": temperature}
            found = scenes.terms(choice, *pair)
            assert DENSE.close(found["pixelkd"], wanted[f"tau{temperature}"])

    def test_is_zero_when_both_agree_and_where_nothing_is_labelled(self) -> None:
        student, teacher = DENSE.pair(NAME)
        assert float(scenes.terms({"name": "pixelkd"}, teacher, teacher)["pixelkd"]) == 0
        nothing = scenes.terms({"name": "pixelkd"}, student, teacher, scenes.without_labels())
        assert float(nothing["pixelkd"]) == 0

    def test_does_not_look_at_ignored_pixels(self) -> None:
        student, teacher = DENSE.pair(NAME)
        ignored = (torch.tensor(scenes.MASKS) == 255)[:, None]
        other = torch.where(ignored, -7 * student, student)
        one, two = (
            scenes.terms({"name": "pixelkd"}, each, teacher)["pixelkd"] for each in (student, other)
        )
        assert torch.equal(one, two)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.pair(NAME)
        assert torch.autograd.gradcheck(
            lambda given: scenes.terms({"name": "pixelkd"}, given, teacher)["pixelkd"],
            (student.requires_grad_(),),
            fast_mode=True,
        )

    def test_patches_are_compared_class_by_class_without_ignored_pixels(self) -> None:
        student, teacher = DENSE.student(2, 3, 4, 4), DENSE.teacher(2, 3, 4, 4)
        masks = torch.zeros(2, 4, 4, dtype=torch.int64)
        masks[0, 1, 2] = masks[:, 2:, :2] = 255
        choice = {"name": "pixelkd", "patch": 2, "temperature": 4}
        apart = []
        for label in range(3):
            for y, x in ((0, 0), (0, 2), (2, 2)):
                known = masks[:, y : y + 2, x : x + 2] != 255
                chances = [
                    (each[:, label, y : y + 2, x : x + 2][known] / 4).softmax(0)
                    for each in (student, teacher)
                ]
                apart.append((chances[1] * (chances[1] / chances[0]).log()).sum())
        found = scenes.terms(choice, student, teacher, masks)["pixelkd"]
        assert torch.allclose(found, 16 * torch.stack(apart).mean(), rtol=1e-9)
        moved = torch.where((masks == 255)[:, None], -7 * student, student)
        assert torch.equal(scenes.terms(choice, moved, teacher, masks)["pixelkd"], found)
        whole = scenes.terms({**choice, "only_labelled": False}, student, teacher, masks)
        assert not torch.allclose(whole["pixelkd"], found)
        assert torch.autograd.gradcheck(
            lambda given: scenes.terms(choice, given, teacher, masks)["pixelkd"],
            (student.requires_grad_(),),
            fast_mode=True,
        )

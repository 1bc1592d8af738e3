import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from workers.distill.functional import patches

NAME = "cwd_2x3x2x2"


class TestCWD:
    def test_equals_the_guide(self) -> None:
        wanted = DENSE.expected(NAME)
        for temperature in (1, 4):
            choice = {"name": "cwd", "cwd_weight": 3.0, "temperature": temperature}
            found = scenes.terms(choice, *DENSE.pair(NAME))
            assert list(found) == ["task", "cwd"]
            assert DENSE.close(found["cwd"] / 3, wanted[f"tau{temperature}"])

    def test_says_where_a_class_is_not_how_large_its_logits_are(self) -> None:
        student, teacher = DENSE.pair(NAME)
        shift = torch.tensor([1.0, -3.0, 7.0], dtype=torch.float64)[:, None, None]
        # Nor does it matter which pixels have a label.
        one = scenes.terms({"name": "cwd"}, student, teacher)["cwd"]
        other = scenes.terms({"name": "cwd"}, student + shift, teacher, scenes.without_labels())
        assert torch.allclose(one, other["cwd"], rtol=1e-9)

    def test_patches_of_one_image_are_images_of_their_own(self) -> None:
        student, teacher = DENSE.student(1, 3, 4, 6), DENSE.teacher(1, 3, 4, 6)
        masks = torch.zeros(1, 4, 6, dtype=torch.int64)
        found = scenes.terms({"name": "cwd", "patch": 2}, student, teacher, masks)
        cut = [
            patches.patch_rows(each, side=2).movedim(0, 1).reshape(6, 3, 2, 2)
            for each in (student, teacher)
        ]
        masks = torch.zeros(6, 2, 2, dtype=torch.int64)
        apart = scenes.terms({"name": "cwd"}, cut[0], cut[1], masks)
        assert torch.allclose(found["cwd"], apart["cwd"], rtol=1e-9)

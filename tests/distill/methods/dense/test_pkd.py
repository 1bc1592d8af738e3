import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes

NAME = "pkd_2x3x2x2"


class TestPKD:
    def test_equals_the_guide(self) -> None:
        found = scenes.terms({"name": "pkd", "pkd_weight": 2.0}, *DENSE.pair(NAME))
        assert list(found) == ["task", "pkd"]
        assert DENSE.close(found["pkd"] / 2, DENSE.expected(NAME)["unbiased_std_reference"])

    def test_ignores_scale_and_shift_of_every_class(self) -> None:
        student, teacher = DENSE.pair(NAME)
        scale = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)[:, None, None]
        for choice in ({"name": "pkd"}, {"name": "pkd", "patch": 2}):
            one, other = (
                scenes.terms(choice, each, teacher)["pkd"]
                for each in (student, scale * student - scale)
            )
            # 1e-6 is added to the deviations.
            assert torch.allclose(one, other, rtol=1e-5)

    def test_one_patch_is_the_whole_map(self) -> None:
        pair = DENSE.pair(NAME)
        one, other = (
            scenes.terms({"name": "pkd", "patch": patch}, *pair)["pkd"] for patch in (None, 2)
        )
        assert torch.allclose(one, other, rtol=1e-12)

import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes

NAME = "skd_pairwise_2x3x4x4"
MASKS = torch.arange(2 * 16).reshape(2, 4, 4) % 3


class TestSKD:
    def test_equals_the_guide(self) -> None:
        found = scenes.terms({"name": "skd"}, *DENSE.pair(NAME), MASKS)
        assert list(found) == ["task", "skd_pixels", "skd_pairs"]
        assert DENSE.close(found["skd_pairs"] / 0.5, DENSE.expected(NAME)["loss"])
        pixels = DENSE.pair("pixel_kd_2x3x2x2")
        wanted = DENSE.expected("pixel_kd_2x3x2x2")["tau1_ignore_masked"]
        assert DENSE.close(scenes.terms({"name": "skd"}, *pixels)["skd_pixels"] / 10, wanted)

    def test_ignores_a_permutation_of_channels_but_not_of_positions(self) -> None:
        student, teacher = DENSE.pair(NAME)
        wanted = scenes.terms({"name": "skd"}, student, teacher, MASKS)["skd_pairs"]
        for dimension, is_equal in ((1, True), (3, False)):
            finals = (student.flip(dimension), teacher)
            found = scenes.terms({"name": "skd"}, student, teacher, MASKS, finals=finals)
            assert torch.allclose(found["skd_pairs"], wanted, rtol=1e-9) is is_equal

    def test_compares_maps_of_other_widths(self) -> None:
        student, teacher = DENSE.pair(NAME)
        wider = torch.cat([teacher, torch.zeros_like(teacher)], dim=1)
        one, other = (
            scenes.terms({"name": "skd"}, student, teacher, MASKS, finals=(student, each))
            for each in (teacher, wider)
        )
        assert torch.allclose(one["skd_pairs"], other["skd_pairs"], rtol=1e-12)

import pytest
import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from workers.distill.functional import kernels

NAME = "pcka_2x3x4x4_p2"
MASKS = torch.arange(2 * 16).reshape(2, 4, 4) % 3


class TestDensePCKA:
    def test_equals_the_guide(self) -> None:
        wanted = DENSE.expected(NAME)
        found = scenes.terms({"name": "densepcka", "patch": 2}, *DENSE.pair(NAME), MASKS)
        assert list(found) == ["task", "pcka", "pcka_transposed", "rcka_classes"]
        assert DENSE.close(found["pcka"] - 10, wanted["loss_reference_w10_no_inter"])
        both = found["pcka"] + found["pcka_transposed"]
        assert DENSE.close(both - 20, wanted["loss_reference_w10_with_inter"])
        assert float(found["rcka_classes"]) == 0

    @pytest.mark.parametrize(
        ("axis", "centered"), [("batch", False), ("position", False), ("channel", True)]
    )
    def test_equals_the_guides_variants(self, axis: str, centered: bool) -> None:
        choice = {"name": "densepcka", "patch": 2, "axis": axis, "centered": centered}
        found = scenes.terms({**choice, "pcka_weight": 1.0}, *DENSE.pair(NAME), MASKS)
        wanted = DENSE.expected(NAME)[f"sim_{axis}_{'centred' if centered else 'uncentred'}"]
        assert DENSE.close(1 - found["pcka"], wanted)

    def test_cuts_small_maps_into_sixteen_patches(self) -> None:
        pair = DENSE.student(2, 3, 8, 8), DENSE.teacher(2, 3, 8, 8)
        masks = torch.zeros(2, 8, 8, dtype=torch.int64)
        one, other = (
            scenes.terms({"name": "densepcka", "patch": patch}, *pair, masks)["pcka"]
            for patch in (None, 2)
        )
        assert torch.equal(one, other)

    def test_class_term_aligns_classes_over_all_pixels(self) -> None:
        student, teacher = DENSE.pair(NAME)
        choice = {
            "name": "densepcka",
            "pcka_weight": 0,
            "transposed_weight": 0,
            "classes_weight": 2,
        }
        found = scenes.terms(choice, student, teacher, MASKS)["rcka_classes"]
        one, other = (each.movedim(1, 0).reshape(3, -1) for each in (student, teacher))
        wanted = 2 * (1 - kernels.cka(one, other, centered=False))
        assert torch.allclose(found, wanted, rtol=1e-12)

    def test_ignores_the_scale_of_every_class(self) -> None:
        student, teacher = DENSE.pair(NAME)
        scale = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)[:, None, None]
        one, other = (
            scenes.terms({"name": "densepcka"}, each, teacher, MASKS)
            for each in (student, scale * student)
        )
        assert torch.allclose(one["pcka"], other["pcka"], rtol=1e-9)
        assert torch.allclose(one["pcka_transposed"], other["pcka_transposed"], rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.pair(NAME)
        choice = {"name": "densepcka", "patch": 2, "classes_weight": 1.0, "task_weight": 0.0}

        def total(given: torch.Tensor) -> torch.Tensor:
            found = scenes.terms(choice, given, teacher, MASKS)
            return found["pcka"] + found["pcka_transposed"] + found["rcka_classes"]

        assert torch.autograd.gradcheck(total, (student.requires_grad_(),), fast_mode=True)

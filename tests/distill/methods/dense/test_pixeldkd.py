import torch

from tests.distill.golden import DENSE
from tests.distill.methods.dense import scenes
from workers.distill.functional import divergences

NAME = "dkd_roi_4x5"


class TestPixelDKD:
    def test_equals_the_guides_rows_as_pixels_of_one_image(self) -> None:
        inputs = DENSE.inputs(NAME)
        student, teacher = (each.mT.reshape(1, 5, 2, 2) for each in DENSE.pair(NAME))
        masks = torch.tensor(inputs["labels"]).reshape(1, 2, 2)
        choice = {"name": "pixeldkd", "alpha": inputs["alpha"], "beta": inputs["beta"]}
        found = scenes.terms(choice, student, teacher, masks)
        assert list(found) == ["task", "pixeldkd"]
        assert DENSE.close(found["pixeldkd"], DENSE.expected(NAME)["total"])

    def test_leaves_out_pixels_without_a_label(self) -> None:
        student, teacher = DENSE.pair("pixel_kd_2x3x2x2")
        known = torch.tensor(scenes.MASKS) != 255
        one, other = (each.movedim(1, 3)[known] for each in (student, teacher))
        wanted = divergences.decoupled_kl(
            one, other, torch.tensor(scenes.MASKS)[known], alpha=1.0, beta=0.25, temperature=1.0
        ).mean()
        found = scenes.terms({"name": "pixeldkd"}, student, teacher)
        assert torch.allclose(found["pixeldkd"], wanted, rtol=1e-12)
        nothing = scenes.terms({"name": "pixeldkd"}, student, teacher, scenes.without_labels())
        assert float(nothing["pixeldkd"]) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = DENSE.pair("pixel_kd_2x3x2x2")
        assert torch.autograd.gradcheck(
            lambda given: scenes.terms({"name": "pixeldkd"}, given, teacher)["pixeldkd"],
            (student.requires_grad_(),),
            fast_mode=True,
        )

import pytest
import torch

from tests.distill import gradients
from tests.distill.golden import CHECKS, DENSE
from tests.distill.methods import scenes
from tests.distill.methods.relation.rows import rows, turn
from workers.distill import errors
from workers.distill.methods.relation import sp
from workers.distill.networks.interface import Features, Network


def maps(seed: int, count: int, channels: int = 3, side: int = 2) -> torch.Tensor:
    return rows(seed, count, channels * side * side).reshape(count, channels, side, side)


class TestSPLoss:
    def test_equals_the_dense_guide(self) -> None:
        name = "at_sp_mimic_2x3x2x2"
        assert DENSE.close(sp.sp_loss(*DENSE.pair(name)), DENSE.expected(name)["sp"])

    def test_equals_the_published_value(self) -> None:
        loss = sp.sp_loss(CHECKS.tensor("map_s"), CHECKS.tensor("map_t"))
        assert CHECKS.close(loss, CHECKS.expected("sp")["loss"])

    def test_equals_the_published_value_for_maps_of_one_position(self) -> None:
        student, teacher = (CHECKS.tensor(name)[..., None, None] for name in ("sp4_s", "sp4_t"))
        loss = sp.sp_loss(student, teacher)
        assert CHECKS.close(loss, CHECKS.expected("sp_batch4")["loss"])

    def test_is_zero_when_both_agree(self) -> None:
        same = maps(0, 4)
        assert float(sp.sp_loss(same, same)) == 0

    def test_ignores_turning_and_scaling_the_embedding(self) -> None:
        student, teacher = maps(1, 5), maps(2, 5, channels=2, side=3)
        turned = (2 * student.flatten(1) @ turn(3, 12)).reshape(student.shape)
        one, other = sp.sp_loss(turned, teacher), sp.sp_loss(student, teacher)
        assert torch.allclose(one, other, rtol=1e-9)

    def test_ignores_the_order_of_the_batch(self) -> None:
        student, teacher = maps(4, 6), maps(5, 6)
        order = torch.randperm(6)
        one, other = sp.sp_loss(student, teacher), sp.sp_loss(student[order], teacher[order])
        assert torch.allclose(one, other, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = maps(6, 3), maps(7, 3)
        assert torch.autograd.gradcheck(
            lambda given: sp.sp_loss(given, teacher), (student.requires_grad_(),)
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_finite_for_the_smallest_batches(self, count: int) -> None:
        student = maps(8, count).requires_grad_()
        loss = sp.sp_loss(student, maps(9, count))
        assert gradients.is_finite(loss, student)
        assert count > 1 or float(loss.detach()) == 0

    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e8])
    def test_is_finite_for_zero_equal_and_large_maps(self, scale: float) -> None:
        student = (scale * torch.ones(3, 2, 2, 2)).requires_grad_()
        loss = sp.sp_loss(student, maps(10, 3).float())
        assert gradients.is_finite(loss, student)

    def test_maps_in_half_precision_do_not_overflow(self) -> None:
        student = torch.full((2, 64, 8, 8), 8.0, dtype=torch.float16)
        assert sp.sp_loss(student, maps(11, 2).float()).isfinite()


class TestSP:
    def test_compares_the_last_stages(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        terms = sp.SP(sp.SP.Params(), student, teacher).terms(
            scenes.features(stages=[CHECKS.tensor("map_s_8x8"), CHECKS.tensor("map_s")]),
            scenes.features(stages=[CHECKS.tensor("map_t_8x8"), CHECKS.tensor("map_t")]),
            scenes.batch([0, 1]),
            scenes.MOMENT,
        )
        assert list(terms) == ["task", "sp"]
        assert CHECKS.close(terms["sp"], CHECKS.expected("sp")["loss_w3000"])

    def test_refuses_a_network_without_maps_and_names_it(self) -> None:
        class Flat(Network):
            """A network that shows no map at all."""

            def __init__(self) -> None:
                super().__init__()
                self.classifier = torch.nn.Linear(4, 3)
                self.image_shape = (1, 2, 2)
                self.reference = "flat"

            def observe(self, images: torch.Tensor) -> Features:
                return Features(logits=self.classifier(images.flatten(1)), pooled=images.flatten(1))

        with pytest.raises(errors.IncompatibleNetworks, match="the teacher flat shows none"):
            sp.SP(sp.SP.Params(), scenes.network(), Flat())

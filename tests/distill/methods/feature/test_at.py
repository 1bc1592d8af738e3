import pytest
import torch

from tests.distill import gradients
from tests.distill.golden import CHECKS, DENSE
from tests.distill.methods import scenes
from workers.distill.methods.feature import at

DISTANCES: tuple[at.Distance, ...] = ("squared_mean", "norm")


class TestATLoss:
    @pytest.mark.parametrize(
        ("student", "distance", "check", "key"),
        [
            ("map_s", "squared_mean", "at_same_size", "loss"),
            ("map_s_8x8", "squared_mean", "at_pooled", "loss"),
            ("map_s", "norm", "at_paper_norm", "sum_over_layer_of_mean_l2norm"),
        ],
    )
    def test_equals_the_published_value(
        self, student: str, distance: at.Distance, check: str, key: str
    ) -> None:
        maps = ([CHECKS.tensor(student)], [CHECKS.tensor("map_t")])
        loss = at.at_loss(*maps, power=2.0, distance=distance)
        assert CHECKS.close(loss, CHECKS.expected(check)[key])

    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
    def test_ignores_order_sign_and_scale_of_channels(
        self, power: float, distance: at.Distance
    ) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t")
        moved = -3 * teacher[:, [2, 0, 1]]
        one, other = (
            at.at_loss([student], [maps], power=power, distance=distance)
            for maps in (teacher, moved)
        )
        assert torch.allclose(one, other, rtol=1e-9)
        assert at.at_loss([moved], [teacher], power=power, distance=distance) < 1e-15

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_ignores_the_order_of_the_batch(self, distance: at.Distance) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t")
        one = at.at_loss([student], [teacher], power=2.0, distance=distance)
        other = at.at_loss([student.flip(0)], [teacher.flip(0)], power=2.0, distance=distance)
        assert torch.allclose(one, other, rtol=1e-9)

    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
    def test_has_the_gradient_of_its_value(self, power: float, distance: at.Distance) -> None:
        student = CHECKS.tensor("map_s_8x8").requires_grad_()
        teacher = CHECKS.tensor("map_t")
        assert torch.autograd.gradcheck(
            lambda given: at.at_loss([given], [teacher], power=power, distance=distance),
            (student,),
            fast_mode=True,
        )

    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("scale", [0.0, 1e15])
    def test_is_finite_for_maps_of_zeros_and_of_large_values(
        self, scale: float, distance: at.Distance
    ) -> None:
        student = (scale * CHECKS.tensor("map_s").float()).requires_grad_()
        teacher = scale * CHECKS.tensor("map_t").float()
        loss = at.at_loss([student], [teacher], power=2.0, distance=distance)
        assert gradients.is_finite(loss, student)

    def test_sums_over_stages(self) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t")
        one = at.at_loss([student], [teacher], power=2.0, distance="norm")
        three = at.at_loss([student] * 3, [teacher] * 3, power=2.0, distance="norm")
        assert torch.allclose(three, 3 * one, rtol=1e-12)

    def test_equals_the_dense_guide(self) -> None:
        student, teacher = DENSE.pair("at_sp_mimic_2x3x2x2")
        found = at.at_loss([student], [teacher], power=2.0, distance="squared_mean")
        assert DENSE.close(found, DENSE.expected("at_sp_mimic_2x3x2x2")["at"])

    @pytest.mark.parametrize("distance", ["squared_mean", "norm"])
    def test_patches_of_one_image_are_images_of_their_own(self, distance: at.Distance) -> None:
        student, teacher = DENSE.student(1, 3, 4, 6), DENSE.teacher(1, 3, 4, 6)
        cut = [
            each.reshape(3, 2, 2, 3, 2).permute(1, 3, 0, 2, 4).flatten(0, 1)
            for each in (student, teacher)
        ]
        found = at.at_loss([student], [teacher], power=2.0, distance=distance, patch=2)
        wanted = at.at_loss(cut[:1], cut[1:], power=2.0, distance=distance)
        assert torch.allclose(found, wanted, rtol=1e-12)


class TestAT:
    def test_weighs_its_term(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        expected = at.at_loss(
            student_out.stages, teacher_out.stages, power=2.0, distance="squared_mean"
        )
        method = at.AT(at.AT.Params(), student, teacher)
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["task", "at"]
        assert not list(method.parameters())
        assert torch.allclose(terms["at"], 1000 * expected)

    def test_pairs_stages_of_one_size_where_networks_differ(self) -> None:
        teacher = scenes.Pyramid([(2, 6, 6), (3, 8, 8), (4, 4, 4), (5, 2, 2)])
        method = at.AT(at.AT.Params(), scenes.network(), teacher)
        assert method.pairs == ((0, 1), (1, 2), (2, 3))

import math

import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.methods.feature import ofd
from workers.distill.networks import catalog
from workers.distill.networks.interface import Features


def norm(weight: list[float], bias: list[float]) -> torch.Tensor:
    numbers = (torch.tensor(values, dtype=torch.float64) for values in (weight, bias))
    return ofd.negative_margin(*numbers)


class TestNegativeMargin:
    def test_equals_the_published_values(self) -> None:
        params = CHECKS.parameters("ofd_margin")
        margin = norm(params["bn_weight"], params["bn_bias"])
        assert CHECKS.close(margin, CHECKS.expected("ofd_margin")["margin"])

    @pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (-0.5, 0.7), (2.0, -3.0)])
    def test_is_the_expectation_of_what_is_negative(self, weight: float, bias: float) -> None:
        # The middle of each of many equal shares of the probability below zero.
        deviation = abs(weight)
        below = 0.5 * math.erfc(bias / deviation / math.sqrt(2))
        shares = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * below
        values = bias + deviation * torch.special.ndtri(shares)
        # Midpoints miss a little of the far tail.
        assert torch.allclose(norm([weight], [bias]), values.mean(), rtol=1e-4)

    def test_of_a_constant_channel_is_its_value_where_that_is_negative(self) -> None:
        margin = norm([0.0, 0.0, 0.0], [-1.5, 0.0, 2.0])
        assert margin.tolist() == [-1.5, 0.0, 0.0]

    def test_is_finite_for_the_smallest_weights(self) -> None:
        margin = ofd.negative_margin(torch.tensor([1e-38, 1e-38]), torch.tensor([-1.0, 1.0]))
        assert torch.allclose(margin, torch.tensor([-1.0, 0.0]))


def partial(student: float, teacher: float, margin: float) -> float:
    given, wanted = (torch.full((1, 1, 1, 1), value) for value in (student, teacher))
    return float(ofd.ofd_loss(given, wanted, torch.tensor([margin])))


class TestOFDLoss:
    def test_equals_the_published_value(self) -> None:
        margin = torch.tensor(CHECKS.parameters("ofd_partial_l2")["margin"], dtype=torch.float64)
        loss = ofd.ofd_loss(CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels"), margin)
        expected = CHECKS.expected("ofd_partial_l2")
        assert CHECKS.close(loss, expected["loss"])
        assert CHECKS.close(0.001 * loss, expected["loss_w0.001"])

    @pytest.mark.parametrize(
        ("student", "teacher", "wanted"),
        [
            (-3.0, -2.0, 0.0),  # both below the margin: the student need only be lower
            (-0.5, -2.0, 0.25),  # the teacher below the margin stands at the margin
            (0.5, -0.5, 1.0),
            (-0.8, -0.5, 0.0),
            (-3.0, 2.0, 25.0),
            (3.0, 2.0, 1.0),
        ],
    )
    def test_counts_what_the_activation_lets_through(
        self, student: float, teacher: float, wanted: float
    ) -> None:
        assert partial(student, teacher, -1.0) == wanted

    def test_is_zero_where_the_teacher_is_negative_and_the_student_lower_still(self) -> None:
        teacher = -CHECKS.tensor("map_t_same_channels").abs()
        loss = ofd.ofd_loss(teacher - 1, teacher, torch.full((2,), -0.1, dtype=torch.float64))
        assert float(loss) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        student = CHECKS.tensor("map_s").requires_grad_()
        teacher = CHECKS.tensor("map_t_same_channels")
        margin = torch.tensor([-0.5, -0.9], dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda given: ofd.ofd_loss(given, teacher, margin), (student,)
        )


class FewNorms(scenes.Pyramid):
    """A network that hides the norm of its last stage."""

    def stage_norms(self) -> tuple[torch.nn.BatchNorm2d, ...]:
        return super().stage_norms()[:-1]


def build(**params: object) -> ofd.OFD:
    chosen = ofd.OFD.Params.model_validate(params)
    return ofd.OFD(chosen, scenes.network(), scenes.other_network())


class TestOFD:
    def test_adds_as_many_parameters_as_published(self) -> None:
        with torch.device("meta"):
            student, teacher = (
                catalog.build(
                    f"retort/{name}", classes=100, channels=3, height=32, width=32, arguments={}
                )
                for name in ("resnet8x4", "resnet32x4")
            )
            method = ofd.OFD(ofd.OFD.Params(), student, teacher)
        assert sum(parameter.numel() for parameter in method.parameters()) == 86_912

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_teaches_student_and_connectors_alone(self, count: int) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = ofd.OFD(ofd.OFD.Params(), student, teacher)
        scenes.terms_of(method, student, teacher, scenes.pictures(count))["ofd"].backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert student.get_parameter("conv1.weight").grad is not None
        assert student.get_parameter("fc.weight").grad is None
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_halves_the_weight_from_each_stage_to_the_one_before(self) -> None:
        method = build(ofd_weight=1.0)
        for index in range(3):
            method.get_buffer(f"margin{index}").zero_()
            # A connector that always gives zero: each position costs the teacher's square.
            torch.nn.init.zeros_(method.get_parameter(f"connectors.{index}.1.weight"))
        shapes = [(3, width, side, side) for width, side in ((5, 8), (7, 4), (9, 2))]
        ones = tuple(torch.ones(shape) for shape in shapes)
        given = tuple(
            torch.randn(3, width, *shape[2:])
            for width, shape in zip(scenes.WIDTHS[1:], shapes, strict=True)
        )
        nothing = torch.zeros(3, 3)
        terms = method.terms(
            Features(nothing, nothing, pre_activations=given),
            Features(nothing, nothing, pre_activations=ones),
            scenes.batch([0, 1, 2]),
            scenes.MOMENT,
        )
        assert float(terms["ofd"].detach()) == 9 * 4 + 7 * 16 / 2 + 5 * 64 / 4

    def test_connectors_start_with_the_deviation_of_the_authors(self) -> None:
        torch.manual_seed(0)
        weight = ofd._connector(400, 100).get_parameter("0.weight")
        assert math.isclose(float(weight.detach().std()), math.sqrt(2 / 100), rel_tol=0.02)

    def test_margins_come_from_the_teachers_last_norms(self) -> None:
        teacher = scenes.other_network()
        for stage, given in enumerate(teacher.stage_norms()):
            torch.nn.init.constant_(given.weight, stage + 1.0)
        method = ofd.OFD(ofd.OFD.Params(), scenes.network(), teacher)
        for stage, width in enumerate(scenes.OTHER_WIDTHS[1:]):
            expected = torch.full((width,), -(stage + 1) * math.sqrt(2 / math.pi))
            assert torch.allclose(method.get_buffer(f"margin{stage}"), expected)

    def test_keeps_no_margins_in_its_state(self) -> None:
        assert not [name for name in build().state_dict() if "margin" in name]

    def test_observes_the_teacher_in_training_only_when_asked(self) -> None:
        assert not build().teacher_trains
        assert build(teacher_statistics="batch").teacher_trains

    def test_takes_maps_that_are_not_square(self) -> None:
        student, teacher = scenes.network(size=(8, 12)), scenes.other_network(size=(8, 12))
        method = ofd.OFD(ofd.OFD.Params(), student, teacher)
        images = scenes.pictures(3, (8, 12))
        assert scenes.terms_of(method, student, teacher, images)["ofd"] > 0

    def test_fits_a_teacher_of_another_size_of_image(self) -> None:
        student, teacher = scenes.network(), scenes.other_network(size=(12, 16))
        method = ofd.OFD(ofd.OFD.Params(), student, teacher)
        with torch.no_grad():
            teacher_out = teacher.observe(scenes.pictures(3, (12, 16)))
        student_out = student.observe(scenes.pictures(3))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2]), scenes.MOMENT)
        assert terms["ofd"].isfinite()

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_refuses_networks_without_maps_before_activations(self, role: str) -> None:
        networks = {"student": scenes.network(), "teacher": scenes.other_network()}
        networks[role] = scenes.Pyramid([(4, 8, 8)])
        with pytest.raises(
            errors.IncompatibleNetworks, match=f"before the last activation.*{role} test/pyramid"
        ):
            ofd.OFD(ofd.OFD.Params(), networks["student"], networks["teacher"])

    def test_refuses_a_teacher_whose_norms_are_not_those_of_its_stages(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match=r"norms of \[5\] channels.*\[5, 7\]"):
            ofd.OFD(
                ofd.OFD.Params(),
                scenes.network(),
                FewNorms([(5, 8, 8), (7, 4, 4)], shows_before=True),
            )

    def test_aligns_different_numbers_of_stages_at_the_deep_end(self) -> None:
        student = scenes.Pyramid([(6, 4, 4), (8, 2, 2)], shows_before=True)
        teacher = scenes.other_network()
        method = ofd.OFD(ofd.OFD.Params(), student, teacher)
        shapes = [method.get_parameter(f"connectors.{index}.0.weight").shape for index in range(2)]
        assert shapes == [(7, 6, 1, 1), (9, 8, 1, 1)]
        assert [method.get_buffer(f"margin{index}").numel() for index in range(2)] == [7, 9]
        terms = scenes.terms_of(method, student, teacher, scenes.pictures(3))
        assert terms["ofd"].isfinite()

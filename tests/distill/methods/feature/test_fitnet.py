import pytest
import torch

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.methods.feature import fitnet
from workers.distill.networks import catalog


class TestFitNetLoss:
    def test_equals_the_published_value(self) -> None:
        expected = CHECKS.expected("fitnet_mse")
        loss = fitnet.fitnet_loss(CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels"))
        assert CHECKS.close(loss, expected["loss"])
        assert CHECKS.close(100 * loss, expected["loss_w100"])

    def test_is_zero_for_equal_maps(self) -> None:
        assert float(fitnet.fitnet_loss(CHECKS.tensor("map_s"), CHECKS.tensor("map_s"))) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        student = CHECKS.tensor("map_s").requires_grad_()
        teacher = CHECKS.tensor("map_t_same_channels")
        assert torch.autograd.gradcheck(
            lambda given: fitnet.fitnet_loss(given, teacher), (student,)
        )


def build(teacher_stages: list[tuple[int, int, int]], **params: object) -> fitnet.FitNet:
    teacher = scenes.Pyramid(teacher_stages).eval().requires_grad_(False)
    return fitnet.FitNet(fitnet.FitNet.Params.model_validate(params), scenes.network(), teacher)


class TestFitNet:
    def test_adds_as_many_parameters_as_published(self) -> None:
        with torch.device("meta"):
            student, teacher = (
                catalog.build(
                    f"retort/{name}", classes=100, channels=3, height=32, width=32, arguments={}
                )
                for name in ("resnet8x4", "resnet32x4")
            )
            method = fitnet.FitNet(fitnet.FitNet.Params(), student, teacher)
        assert sum(parameter.numel() for parameter in method.parameters()) == 16_768

    def test_with_an_identity_as_regressor_it_is_the_mean_squared_error(self) -> None:
        student, teacher = scenes.network(), scenes.network(2).eval().requires_grad_(False)
        method = fitnet.FitNet(fitnet.FitNet.Params(), student, teacher)
        method.regressor = torch.nn.Sequential(torch.nn.Identity())
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        expected = 100 * (student_out.stages[1] - teacher_out.stages[1]).square().mean()
        assert torch.allclose(terms["fitnet"], expected)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_teaches_student_and_regressor_alone(self, count: int) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = fitnet.FitNet(fitnet.FitNet.Params(), student, teacher)
        terms = scenes.terms_of(method, student, teacher, scenes.pictures(count))
        terms["fitnet"].backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert student.get_parameter("conv1.weight").grad is not None
        assert student.get_parameter("fc.weight").grad is None
        assert all(parameter.grad is None for parameter in teacher.parameters())

    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_counts_stages_from_one(self, stage: int) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = fitnet.FitNet(fitnet.FitNet.Params(hint_stage=stage), student, teacher)
        assert method.regressor[0].in_channels == scenes.WIDTHS[stage]
        assert method.regressor[0].out_channels == scenes.OTHER_WIDTHS[stage]

    def test_takes_half_precision(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = fitnet.FitNet(fitnet.FitNet.Params(), student, teacher)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        given, wanted = (
            scenes.features(stages=[stage.bfloat16() for stage in features.stages])
            for features in (student_out, teacher_out)
        )
        terms = method.terms(given, wanted, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert terms["fitnet"].dtype == torch.float32

    def test_refuses_a_stage_that_a_network_lacks_and_names_it(self) -> None:
        with pytest.raises(
            errors.IncompatibleNetworks, match=r"stage 3 .* teacher test/pyramid returns 2 stages"
        ):
            build([(4, 8, 8), (6, 4, 4)], hint_stage=3)

    def test_refuses_sizes_that_no_convolution_joins(self) -> None:
        with pytest.raises(
            errors.IncompatibleNetworks,
            match=r"student's stage \(6, 4, 4\) with the teacher's \(6, 7, 7\)",
        ):
            build([(4, 8, 8), (6, 7, 7)])

    def test_refuses_a_regressor_that_outgrows_both_networks(self) -> None:
        student, teacher = scenes.Pyramid([(2, 100, 100)]), scenes.Pyramid([(6000, 1, 1)])
        with pytest.raises(errors.IncompatibleNetworks, match="regressor of 120018000 parameters"):
            fitnet.FitNet(fitnet.FitNet.Params(hint_stage=1), student, teacher)

    def test_needs_two_images_where_maps_have_one_pixel(self) -> None:
        assert fitnet.FitNet.smallest_batch == 2

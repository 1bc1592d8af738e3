import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.golden import CHECKS
from tests.distill.methods import scenes
from workers.distill.methods.feature import vid
from workers.distill.networks import catalog


def softened(log_scale: list[float]) -> torch.Tensor:
    return F.softplus(torch.tensor(log_scale, dtype=torch.float64)) + vid.SMALLEST_VARIANCE


class TestVIDLoss:
    def test_equals_the_published_values(self) -> None:
        expected, params = CHECKS.expected("vid"), CHECKS.parameters("vid")
        pair = (CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels"))
        mixed = vid.vid_loss(*pair, softened(params["log_scale"]))
        assert CHECKS.close(mixed, expected["loss_mixed"])
        start = vid.vid_loss(*pair, softened([expected["init_log_scale"]] * 2))
        assert CHECKS.close(start, expected["loss_all_init"])

    def test_with_variance_one_it_is_half_the_mean_squared_error(self) -> None:
        pair = (CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels"))
        loss = vid.vid_loss(*pair, torch.ones(2, dtype=torch.float64))
        assert torch.allclose(loss, F.mse_loss(*pair) / 2, rtol=1e-12)

    def test_is_least_where_each_variance_is_the_channels_mean_squared_error(self) -> None:
        student, teacher = CHECKS.tensor("map_s"), CHECKS.tensor("map_t_same_channels")
        best = (student - teacher).square().mean(dim=(0, 2, 3)).requires_grad_()
        vid.vid_loss(student, teacher, best).backward()
        assert best.grad is not None
        assert best.grad.abs().max() < 1e-15

    def test_has_the_gradient_of_its_value(self) -> None:
        student = CHECKS.tensor("map_s").requires_grad_()
        variance = torch.tensor([0.7, 3.0], dtype=torch.float64, requires_grad=True)
        teacher = CHECKS.tensor("map_t_same_channels")
        assert torch.autograd.gradcheck(
            lambda given, spread: vid.vid_loss(given, teacher, spread), (student, variance)
        )


class TestGaussian:
    @pytest.mark.parametrize("variance", [0.001, 5.0, 80.0])
    def test_starts_with_the_variance_asked_for(self, variance: float) -> None:
        actual = vid.Gaussian(2, 3, variance=variance).variance
        assert torch.allclose(actual, torch.full((3,), variance), rtol=1e-5)

    def test_starts_at_the_published_value(self) -> None:
        start = vid.Gaussian(2, 3, variance=5.0).softened
        assert CHECKS.close(start, [CHECKS.expected("vid")["init_log_scale"]] * 3)

    def test_stays_positive_however_small_what_is_learned_gets(self) -> None:
        gaussian = vid.Gaussian(2, 3, variance=5.0)
        torch.nn.init.constant_(gaussian.softened, -1000.0)
        assert torch.allclose(gaussian.variance, torch.tensor(vid.SMALLEST_VARIANCE))

    def test_pools_the_larger_map(self) -> None:
        torch.manual_seed(0)
        gaussian = vid.Gaussian(2, 2, variance=5.0).double()
        large, teacher = CHECKS.tensor("map_s_8x8"), CHECKS.tensor("map_t_same_channels")
        pooled = F.adaptive_avg_pool2d(large, 4)
        assert torch.allclose(gaussian(large, teacher), gaussian(pooled, teacher), rtol=1e-12)


class TestVID:
    def test_adds_as_many_parameters_as_published(self) -> None:
        with torch.device("meta"):
            student, teacher = (
                catalog.build(
                    f"retort/{name}", classes=100, channels=3, height=32, width=32, arguments={}
                )
                for name in ("resnet8x4", "resnet32x4")
            )
            method = vid.VID(vid.VID.Params(), student, teacher)
        sizes = {name: parameter.numel() for name, parameter in method.named_parameters()}
        variances = sum(size for name, size in sizes.items() if name.endswith("softened"))
        assert (sum(sizes.values()) - variances, variances) == (258_048, 448)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_teaches_student_and_gaussians_alone(self, count: int) -> None:
        torch.manual_seed(3)
        student, teacher = scenes.network(), scenes.other_network()
        method = vid.VID(vid.VID.Params(), student, teacher)
        scenes.terms_of(method, student, teacher, scenes.pictures(count))["vid"].backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert student.get_parameter("conv1.weight").grad is not None
        assert student.get_parameter("fc.weight").grad is None
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_can_leave_variances_as_they_start(self) -> None:
        method = vid.VID(vid.VID.Params(variance="fixed"), scenes.network(), scenes.other_network())
        trained = [name for name, one in method.named_parameters() if one.requires_grad]
        assert len(trained) == 9
        assert not any(name.endswith("softened") for name in trained)

    def test_sums_the_losses_of_all_stages(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        method = vid.VID(vid.VID.Params(vid_weight=2.0), student, teacher)
        for parameter in method.parameters():
            torch.nn.init.zeros_(parameter)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        term = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)[
            "vid"
        ]
        spread = math.log(2) + vid.SMALLEST_VARIANCE
        expected = sum(
            stage.square().mean() / spread + math.log(spread) for stage in teacher_out.stages
        )
        assert torch.allclose(term, torch.as_tensor(expected), rtol=1e-5)

    def test_pairs_stages_of_one_size_where_networks_differ(self) -> None:
        teacher = scenes.Pyramid([(2, 6, 6), (3, 8, 8), (4, 4, 4), (5, 2, 2)])
        method = vid.VID(vid.VID.Params(), scenes.network(), teacher)
        assert method.pairs == ((0, 1), (1, 2), (2, 3))

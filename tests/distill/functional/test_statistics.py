import pytest
import torch
from torch import nn

from tests.distill.golden import CASES
from workers.distill.functional import statistics
from workers.distill.functional.statistics import MomentMemory
from workers.distill.networks.interface import NormInput
from workers.distill.training.ema import EMA

MAPS = (torch.arange(16, dtype=torch.float64) ** 1.5 / 10).view(2, 2, 2, 2)
RATE: float = CASES.case("bn_momentum", "rate")
PRIORS = {
    "tv_l1": statistics.total_variation_l1,
    "tv_l2": statistics.total_variation_l2,
    "image_l2": statistics.mean_norm,
}


def close(actual: torch.Tensor, *keys: str) -> bool:
    return torch.allclose(actual, CASES.tensor(*keys), rtol=0, atol=CASES.tolerance)


def at(received: torch.Tensor, name: str = "stem.norm") -> NormInput:
    return NormInput(
        name, received, CASES.tensor("bn_running_mean"), CASES.tensor("bn_running_var")
    )


def memory(*names: str) -> MomentMemory:
    """Return an empty memory of layers with two channels."""
    norms = {name: nn.BatchNorm2d(2).double() for name in names or ("stem.norm",)}
    return MomentMemory(norms, rate=RATE)


def filled() -> MomentMemory:
    """Return a memory that holds what the guide's case holds."""
    made = memory()
    stored = {
        "mean_0": CASES.tensor("bn_momentum", "stored_mean"),
        "variance_0": CASES.tensor("bn_momentum", "stored_var"),
        "filled": torch.tensor([True]),
    }
    made.load_state_dict(stored)
    return made


class TestBatchMoments:
    def test_equal_the_guide(self) -> None:
        mean, variance = statistics.batch_moments(MAPS)
        assert close(mean, "bn_batch_mean")
        assert close(variance, "bn_batch_var_biased")

    def test_agree_with_what_a_batch_norm_stores(self) -> None:
        norm = nn.BatchNorm2d(2, momentum=1.0).double()
        norm(MAPS)
        mean, variance = statistics.batch_moments(MAPS)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert torch.allclose(mean, norm.running_mean, rtol=1e-12)
        # A batch norm stores the unbiased variance, here of eight numbers.
        assert torch.allclose(variance * 8 / 7, norm.running_var, rtol=1e-12)
        assert close(norm.running_var, "bn_batch_var_unbiased")

    def test_know_no_order_of_channels_in_memory(self) -> None:
        given = MAPS.contiguous(memory_format=torch.channels_last)
        for moment, expected in zip(
            statistics.batch_moments(given), statistics.batch_moments(MAPS), strict=True
        ):
            assert torch.allclose(moment, expected, rtol=1e-12)

    def test_of_half_precision_are_float32(self) -> None:
        mean, variance = statistics.batch_moments(torch.full((4, 2, 64, 64), 7.0).bfloat16())
        assert mean.dtype == variance.dtype == torch.float32
        assert mean.tolist() == [7.0, 7.0]
        assert variance.tolist() == [0.0, 0.0]

    def test_have_the_gradient_of_their_value(self) -> None:
        given = MAPS.clone().requires_grad_()
        assert torch.autograd.gradcheck(statistics.batch_moments, given)


class TestMomentDistance:
    def test_equals_the_guide(self) -> None:
        assert close(statistics.moment_distance([at(MAPS)]), "bn_loss_l2norm_var")

    def test_is_the_sum_of_both_parts(self) -> None:
        mean, variance = statistics.batch_moments(MAPS)
        same_mean = NormInput("norm", MAPS, mean, CASES.tensor("bn_running_var"))
        same_variance = NormInput("norm", MAPS, CASES.tensor("bn_running_mean"), variance)
        assert close(statistics.moment_distance([same_mean]), "bn_loss_var_part")
        assert close(statistics.moment_distance([same_variance]), "bn_loss_mean_part")

    def test_sums_over_layers(self) -> None:
        others = [at(MAPS), at(2 * MAPS[:, :, :1], "other"), at(-MAPS, "third")]
        distance = statistics.moment_distance(others)
        alone = sum(float(statistics.moment_distance([each])) for each in others)
        assert float(distance) == pytest.approx(alone, rel=1e-12)

    def test_of_maps_with_the_stored_moments_is_zero_with_a_finite_gradient(self) -> None:
        signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
        mean, spread = (
            CASES.tensor("bn_running_mean"),
            torch.tensor([2.0, 0.5], dtype=torch.float64),
        )
        received = mean[:, None, None] + spread[:, None, None] * signs
        received = received.repeat(3, 1, 1, 1).requires_grad_()
        distance = statistics.moment_distance([NormInput("norm", received, mean, spread.square())])
        distance.backward()
        assert float(distance.detach()) == 0
        assert received.grad is not None
        assert not received.grad.any()

    def test_has_the_gradient_of_its_value(self) -> None:
        assert torch.autograd.gradcheck(
            lambda maps: statistics.moment_distance([at(maps)]), MAPS.clone().requires_grad_()
        )

    def test_of_extreme_maps_is_finite(self) -> None:
        received = (1e4 * MAPS.float()).requires_grad_()
        distance = statistics.moment_distance([at(received)])
        distance.backward()
        assert distance.isfinite()
        assert received.grad is not None
        assert received.grad.isfinite().all()

    def test_of_no_layer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="nothing to compare"):
            statistics.moment_distance([])


class TestMomentMemory:
    def test_equals_the_guide(self) -> None:
        kept = filled()
        assert close(kept.distance([at(MAPS)]), "bn_momentum", "loss")
        kept.remember([at(MAPS)])
        assert close(kept.state_dict()["mean_0"], "bn_momentum", "next_stored_mean")
        assert close(kept.state_dict()["variance_0"], "bn_momentum", "next_stored_var")

    def test_compares_plainly_while_it_is_empty(self) -> None:
        distance = memory().distance([at(MAPS)])
        assert torch.equal(distance, statistics.moment_distance([at(MAPS)]))

    def test_remembers_the_first_moments_as_they_are(self) -> None:
        kept = memory()
        kept.remember([at(MAPS)])
        mean, variance = statistics.batch_moments(MAPS)
        assert torch.equal(kept.state_dict()["mean_0"], mean)
        assert torch.equal(kept.state_dict()["variance_0"], variance)
        assert kept.filled.tolist() == [True]

    def test_compares_as_before_where_the_same_comes_again(self) -> None:
        kept = memory()
        for _ in range(3):
            kept.remember([at(MAPS)])
        distance = kept.distance([at(MAPS)])
        assert torch.allclose(distance, statistics.moment_distance([at(MAPS)]), rtol=1e-12)

    def test_does_not_change_when_it_is_asked(self) -> None:
        kept = filled()
        before = {name: value.clone() for name, value in kept.state_dict().items()}
        kept.distance([at(MAPS)])
        for name, value in kept.state_dict().items():
            assert torch.equal(value, before[name])

    def test_keeps_what_it_has_of_absent_layers(self) -> None:
        kept = memory("first", "second.norm", "third")
        kept.remember([at(MAPS, "second.norm")])
        assert kept.filled.tolist() == [False, True, False]
        again = [at(3 * MAPS, "third"), at(3 * MAPS, "second.norm")]
        plain = statistics.moment_distance(again[:1])
        alone = kept.distance(again[1:])
        assert torch.allclose(kept.distance(again), plain + alone, rtol=1e-12)
        assert not torch.allclose(plain, alone, rtol=0.1)

    def test_goes_on_from_its_state(self) -> None:
        kept, other = memory("first", "second"), memory("first", "second")
        kept.remember([at(MAPS, "second")])
        other.load_state_dict(kept.state_dict())
        inputs = [at(2 * MAPS, name) for name in ("first", "second")]
        assert torch.equal(kept.distance(inputs), other.distance(inputs))

    def test_remembers_no_graph(self) -> None:
        kept = memory()
        kept.remember([at(MAPS.clone().requires_grad_())])
        assert not any(buffer.requires_grad for buffer in kept.buffers())
        assert not list(kept.parameters())

    def test_has_the_gradient_of_its_value(self) -> None:
        kept = filled()
        assert torch.autograd.gradcheck(
            lambda maps: kept.distance([at(maps)]), MAPS.clone().requires_grad_()
        )

    def test_does_not_know_foreign_layers(self) -> None:
        with pytest.raises(KeyError, match="other"):
            memory().distance([at(MAPS, "other")])

    def test_needs_running_moments(self) -> None:
        with pytest.raises(ValueError, match="blind keeps no running moments"):
            MomentMemory({"blind": nn.BatchNorm2d(2, track_running_stats=False)}, rate=RATE)


class TestPriors:
    @pytest.mark.parametrize("name", PRIORS)
    def test_equal_the_guide(self, name: str) -> None:
        assert close(PRIORS[name](MAPS), name)

    @pytest.mark.parametrize("name", PRIORS)
    def test_have_the_gradient_of_their_value(self, name: str) -> None:
        assert torch.autograd.gradcheck(PRIORS[name], MAPS.clone().requires_grad_())

    @pytest.mark.parametrize("name", PRIORS)
    def test_are_zero_with_a_finite_gradient_for_black_images(self, name: str) -> None:
        images = torch.zeros(2, 3, 4, 5, requires_grad=True)
        prior = PRIORS[name](images)
        prior.backward()
        assert float(prior.detach()) == 0
        assert images.grad is not None
        assert images.grad.isfinite().all()

    @pytest.mark.parametrize("name", PRIORS)
    def test_grow_with_the_images(self, name: str) -> None:
        prior, once = PRIORS[name](-3 * MAPS), PRIORS[name](MAPS)
        assert torch.allclose(prior, 3 * once, rtol=1e-12)

    @pytest.mark.parametrize("name", ["tv_l1", "tv_l2"])
    def test_of_roughness_know_no_brightness_and_no_mirror(self, name: str) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
        expected = PRIORS[name](images)
        for changed in (images + 0.5, images.flip(3), images.flip(2), images.transpose(2, 3)):
            assert torch.allclose(PRIORS[name](changed), expected, rtol=1e-9)

    @pytest.mark.parametrize("name", ["tv_l1", "tv_l2"])
    def test_of_roughness_take_images_of_one_line(self, name: str) -> None:
        line = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64).view(1, 1, 1, 3)
        assert float(PRIORS[name](line)) == {"tv_l1": 0.5, "tv_l2": 1.0}[name]


class TestSpatialMeans:
    def test_stand_layer_after_layer(self) -> None:
        means = statistics.spatial_means([at(MAPS), at(2 * MAPS[:, :, :1], "other")])
        expected = torch.cat([MAPS.mean((2, 3)), 2 * MAPS[:, :, 0].mean(2)], dim=1)
        assert means.shape == (2, 4)
        assert torch.allclose(means, expected, rtol=1e-12)

    def test_average_to_the_mean_of_a_batch(self) -> None:
        means = statistics.spatial_means([at(MAPS)]).mean(0)
        assert close(means, "bn_batch_mean")

    def test_have_the_gradient_of_their_value(self) -> None:
        assert torch.autograd.gradcheck(
            lambda maps: statistics.spatial_means([at(maps)]), MAPS.clone().requires_grad_()
        )


class TestMovingAverage:
    def test_equals_the_guide(self) -> None:
        part = nn.Linear(2, 1, bias=False).double()
        with torch.no_grad():
            part.weight.copy_(CASES.tensor("ema", "w_ema"))
        average = EMA({"part": part}, CASES.case("ema", "alpha"))
        with torch.no_grad():
            part.weight.copy_(CASES.tensor("ema", "w"))
        # Late enough for the average to keep its full share.
        average.update(1000)
        assert close(average.state_dict()["part.weight"][0], "ema", "next")

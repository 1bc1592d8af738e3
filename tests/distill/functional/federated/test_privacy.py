import math
from statistics import NormalDist

import pytest
import torch

from tests.distill.functional.federated import probabilities
from workers.distill.functional.federated import privacy


def exact_epsilon(std: float, delta: float) -> float:
    """Return epsilon of one Gaussian mechanism of sensitivity 1 (Balle and Wang, 2018, theorem 8).

    Several releases are one whose std is divided by the square root of their number.
    """
    from scipy.optimize import brentq  # takes every process that collects tests a second

    def excess(epsilon: float) -> float:
        cdf = NormalDist().cdf
        first = cdf(0.5 / std - epsilon * std)
        return first - math.exp(epsilon) * cdf(-0.5 / std - epsilon * std) - delta

    return float(brentq(excess, 0, 100))


class TestClipNorm:
    def test_scales_down_what_is_longer_and_leaves_the_rest(self) -> None:
        table = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        assert privacy.clip_norm(table, limit=2.5).tolist() == [[1.5, 0.0], [0.0, 2.0]]
        assert torch.equal(privacy.clip_norm(table, limit=6.0), table)
        assert not privacy.clip_norm(torch.zeros(2, 2), limit=1.0).any()


class TestNearestProbabilities:
    def test_keep_probabilities_and_repair_the_rest(self) -> None:
        rows = torch.tensor([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [1.0, 1.0, -5.0]])
        expected = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
        assert torch.allclose(privacy.nearest_probabilities(rows), expected, atol=1e-6)

    def test_are_nearer_than_others(self) -> None:
        row = torch.randn(1, 4).double()
        nearest = privacy.nearest_probabilities(row)
        others = torch.rand(500, 4).double()
        others = others / others.sum(1, keepdim=True)
        assert bool(((others - row).norm(dim=1) >= (nearest - row).norm() - 1e-12).all())


class TestPrivatize:
    def test_adds_noise_of_the_stated_size_around_the_clipped_table(self) -> None:
        table = torch.full((100, 100), 3.0)
        seeded = torch.Generator().manual_seed(0)
        noisy = privacy.privatize(table, clip=50.0, noise_multiplier=0.2, generator=seeded)
        # Norm 300, clipped to 50: each value 0.5; noise 50 * 0.2.
        assert float(noisy.mean()) == pytest.approx(0.5, abs=0.5)
        assert float(noisy.std()) == pytest.approx(10.0, rel=0.03)

    def test_of_probabilities_gives_probabilities_that_say_less(self) -> None:
        probs = torch.eye(4).double()
        clipped = privacy.privatize_probabilities(probs, clip=0.5, noise_multiplier=0.0)
        assert bool(probabilities.are_probabilities(clipped).all())
        assert clipped.argmax(1).tolist() == [0, 1, 2, 3]
        assert float((clipped - 0.25).norm()) == pytest.approx(0.5)
        seeded = torch.Generator().manual_seed(0)
        noisy = privacy.privatize_probabilities(
            probs, clip=0.5, noise_multiplier=3.0, generator=seeded
        )
        assert bool(probabilities.are_probabilities(noisy).all())


class TestEpsilon:
    @pytest.mark.slow  # Loads Opacus.
    @pytest.mark.parametrize(("multiplier", "releases"), [(4.0, 1), (10.0, 30)])
    def test_is_a_close_upper_bound_of_the_exact_value(
        self, multiplier: float, releases: int
    ) -> None:
        found = privacy.epsilon(noise_multiplier=multiplier, releases=releases, delta=1e-5)
        exact = exact_epsilon(multiplier / 2 / math.sqrt(releases), 1e-5)
        assert exact <= found <= 1.15 * exact

    def test_without_noise_is_infinite_and_without_a_release_zero(self) -> None:
        assert privacy.epsilon(noise_multiplier=0.0, releases=1, delta=1e-5) == math.inf
        assert privacy.epsilon(noise_multiplier=0.0, releases=0, delta=1e-5) == 0

import numpy as np
import pytest

from workers.distill.functional import bootstrap


class TestInterval:
    def test_of_a_mean_is_about_two_standard_errors_to_either_side(self) -> None:
        values = np.random.default_rng(1).normal(5, 2, 400)
        found = bootstrap.interval(lambda weights: float(weights @ values) / 400, 400)
        assert found is not None
        middle, half = np.mean(found), (found[1] - found[0]) / 2
        assert middle == pytest.approx(values.mean(), abs=0.05)
        # 200 draws know a percentile to about a tenth of the width.
        assert half == pytest.approx(1.96 * values.std() / 20, rel=0.15)

    def test_counts_each_image_as_often_as_it_is_drawn(self) -> None:
        totals: list[float] = []
        bootstrap.interval(lambda weights: totals.append(weights.sum()), 7, resamples=5)
        assert totals == [7.0] * 5

    def test_leaves_out_draws_without_a_score(self) -> None:
        found = bootstrap.interval(lambda weights: 1.0 if weights[0] else None, 3)
        assert found == (1.0, 1.0)
        assert bootstrap.interval(lambda _: None, 3) is None

"""The leaderboard's statistics, against independent computations."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models_registry.jobs.lifecycle import State
from models_registry.studies import leaderboard
from models_registry.studies.leaderboard import Run, Variant
from workers.distill.config.descriptions import METRICS, Metric

DIFFERENCES = [
    [0.01, 0.02],
    [0.01, -0.03, 0.02],
    [0.011, 0.017, 0.003, 0.009, 0.02],
    [-0.01, -0.02, -0.005, 0.001, -0.03, -0.012, -0.004],
    [1 / 360, 2 / 360, 1 / 360, 3 / 360, 1 / 360, 2 / 360],
]


def variant(number: int, *, compared_with: int | None = 1) -> Variant:
    return Variant(number, {"name": f"m{number}"}, {}, compared_with is None, compared_with)


def run(number: int, seed: int, accuracy: float | None, **more: Any) -> Run:
    state = more.pop("state", State.SUCCEEDED)
    scores: dict[Metric, float] = {} if accuracy is None else {"accuracy": accuracy}
    scores |= more.pop("scores", {})
    return Run(number, seed, f"job_{number}_{seed}", state, scores=scores, **more)


def make(variants: Sequence[Variant], runs: Iterable[Run]) -> leaderboard.Leaderboard:
    return leaderboard.make(variants, runs, metric="accuracy")


def row_of(board: leaderboard.Leaderboard, number: int) -> leaderboard.RankedVariant:
    return next(row for row in board.rows if row.variant.number == number)


@pytest.fixture(scope="module")
def stats() -> Any:
    """SciPy's statistics, loaded only where these tests run."""
    import scipy.stats

    return scipy.stats


class TestSpread:
    def test_is_that_of_a_sample(self) -> None:
        found = leaderboard.spread([0.90, 0.94, 0.92])
        assert found is not None
        assert (found.smallest, found.largest) == (0.90, 0.94)
        assert found.mean == pytest.approx(0.92)
        assert found.standard_deviation == pytest.approx(0.02)  # sqrt(0.0008 / 2)
        assert found.interval == leaderboard.interval_of([0.90, 0.94, 0.92])

    def test_is_not_claimed_of_one_value(self) -> None:
        found = leaderboard.spread([0.9])
        assert found == leaderboard.Spread(0.9, None, 0.9, 0.9, None)
        assert leaderboard.spread([]) is None


class TestInterval:
    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 15, 30, 99])
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
    def test_has_students_quantile(self, stats: Any, freedom: int, confidence: float) -> None:
        expected = stats.t.ppf((1 + confidence) / 2, freedom)
        assert leaderboard.t_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("values", DIFFERENCES, ids=len)
    def test_is_that_of_the_t_test(self, stats: Any, values: list[float]) -> None:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert leaderboard.interval_of(values) == pytest.approx(tuple(expected), rel=1e-9)

    def test_is_not_claimed_of_one_value(self) -> None:
        assert leaderboard.interval_of([0.1]) is None


class TestSignFlips:
    @pytest.mark.parametrize("values", [*DIFFERENCES, [0.1, -0.1], [0.0, 0.0]], ids=str)
    def test_are_those_of_the_permutation_test(self, stats: Any, values: list[float]) -> None:
        def total(sample: Any, axis: int) -> Any:
            return sample.sum(axis=axis)

        expected = stats.permutation_test(
            (values,), total, permutation_type="samples", vectorized=True
        )
        assert leaderboard.sign_flip_p_value(values) == pytest.approx(expected.pvalue)

    @pytest.mark.parametrize("count", [2, 3, 5, 8, 16])
    def test_of_n_seeds_give_two_of_two_to_the_n_at_least(self, count: int) -> None:
        # However clear the difference, and whatever its last digits.
        values = [0.1 + 0.001 * place for place in range(count)]
        assert leaderboard.sign_flip_p_value(values) == 2 / 2**count

    def test_of_many_seeds_are_drawn_and_give_the_same_again(self, stats: Any) -> None:
        values = [0.01 * math.sin(place) + 0.002 for place in range(40)]
        found = leaderboard.sign_flip_p_value(values)
        assert found == leaderboard.sign_flip_p_value(values)
        # Close to normal by then; 9,999 draws have a standard error below 0.005.
        expected = 2 * stats.norm.sf(abs(sum(values)) / math.hypot(*values))
        assert found == pytest.approx(expected, abs=0.02)

    def test_of_many_seeds_never_give_zero(self) -> None:
        assert leaderboard.sign_flip_p_value([0.1] * 40) == 1 / 10_000

    def test_tell_nothing_of_one_value(self) -> None:
        assert leaderboard.sign_flip_p_value([0.5]) is None

    @settings(max_examples=50, derandomize=True, deadline=None)
    @given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=8))
    def test_do_not_depend_on_sign_or_order(self, values: list[float]) -> None:
        found = leaderboard.sign_flip_p_value(values)
        assert found is not None
        assert 2 / 2 ** len(values) <= found <= 1
        assert leaderboard.sign_flip_p_value([-value for value in reversed(values)]) == found


class TestCompare:
    def test_pairs_by_seed_and_leaves_out_what_has_no_partner(self) -> None:
        found = leaderboard.compare({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.75, 2: 0.75, 3: 0.1})
        assert found is not None
        assert (found.pairs, found.seeds_above) == (2, 1)
        assert found.mean == pytest.approx(0.0)

    def test_of_one_pair_says_the_difference_and_nothing_of_its_noise(self) -> None:
        found = leaderboard.compare({0: 0.9}, {0: 0.8})
        assert found is not None
        assert found.mean == pytest.approx(0.1)
        noise = (found.standard_deviation, found.interval, found.p_value, found.verdict)
        assert noise == (None, None, None, None)

    def test_without_pairs_is_nothing(self) -> None:
        assert leaderboard.compare({0: 0.9}, {1: 0.8}) is None

    @pytest.mark.parametrize(
        ("differences", "verdict"),
        [
            ([0.02, 0.03, 0.025], "beats"),
            ([-0.02, -0.03, -0.025], "misses"),
            ([0.02, -0.03, 0.025], "matches"),
            ([0.02, 0.02], None),
        ],
    )
    def test_has_a_verdict_from_three_seeds_on(
        self, differences: list[float], verdict: str | None
    ) -> None:
        baseline = dict.fromkeys(range(len(differences)), 0.9)
        found = leaderboard.compare(
            {seed: 0.9 + difference for seed, difference in enumerate(differences)}, baseline
        )
        assert found is not None
        assert found.verdict == verdict


class TestMake:
    VARIANTS = (variant(1, compared_with=None), variant(2), variant(3), variant(4))

    def test_ranks_by_mean_accuracy_and_lets_equals_share_a_rank(self) -> None:
        runs = [
            *(run(1, seed, 0.90) for seed in (0, 1)),
            *(run(2, seed, accuracy) for seed, accuracy in ((0, 0.95), (1, 0.93))),
            *(run(3, seed, accuracy) for seed, accuracy in ((0, 0.93), (1, 0.95))),
            run(4, 0, None, state=State.RUNNING),
        ]
        board = make(self.VARIANTS, runs)
        assert [row.variant.number for row in board.rows] == [2, 3, 1, 4]
        assert [row.rank for row in board.rows] == [1, 1, 3, None]

    def test_compares_with_the_variants_own_baseline(self) -> None:
        variants = (
            *(variant(1, compared_with=None), variant(2)),
            *(variant(3, compared_with=None), variant(4, compared_with=3)),
        )
        accuracies = {1: 0.8, 2: 0.82, 3: 0.9, 4: 0.93}
        runs = [run(number, 0, accuracy) for number, accuracy in accuracies.items()]
        board = make(variants, runs)
        means = {
            number: difference.mean
            for number in accuracies
            if (difference := row_of(board, number).difference) is not None
        }
        assert means == {2: pytest.approx(0.02), 4: pytest.approx(0.03)}

    def test_counts_what_ended_how_and_averages_what_succeeded(self) -> None:
        runs = [
            run(1, 3, 0.5, wall_seconds=10.0, parameters=78_042, images_per_second=100.0),
            run(1, 1, 0.7, wall_seconds=20.0, shared_with=5, ece=0.1, agreement=0.8),
            run(1, 0, None, state=State.FAILED),
            run(1, 2, None, state=State.CANCELLED),
            run(1, 4, None, state=State.CANCELLING),
        ]
        [row] = make(self.VARIANTS[:1], runs).rows
        assert (row.finished, row.failed, row.unfinished) == (2, 2, 1)
        assert (row.wall_seconds, row.images_per_second) == (15.0, 100.0)
        assert row.side_by_side == 1
        assert (row.parameters, row.ece, row.agreement) == (78_042, 0.1, 0.8)
        assert [found.seed for found in row.runs] == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("metric", [name for name in METRICS if name != "accuracy"])
    def test_ranks_and_compares_by_the_metric_that_decides(self, metric: Metric) -> None:
        board = leaderboard.make(
            [variant(1, compared_with=None), variant(2)],
            [
                run(1, 0, 0.9, scores={metric: 0.4}, teacher_scores={metric: 0.95}),
                run(2, 0, 0.8, scores={metric: 0.7}),
            ],
            metric=metric,
        )
        assert (board.metric, board.teacher_scores) == (metric, {metric: 0.95})
        assert [row.variant.number for row in board.rows] == [2, 1]
        best = row_of(board, 2)
        assert best.scores == {
            metric: leaderboard.Spread(0.7, None, 0.7, 0.7, None),
            "accuracy": leaderboard.Spread(0.8, None, 0.8, 0.8, None),
        }
        assert best.difference is not None
        assert best.difference.mean == pytest.approx(0.3)

    def test_knows_the_teachers_accuracy_from_any_job(self) -> None:
        runs = [run(1, 0, 0.9), run(2, 0, 0.9, teacher_scores={"accuracy": 0.99})]
        assert make(self.VARIANTS[:2], runs).teacher_scores == {"accuracy": 0.99}
        assert make(self.VARIANTS, []).teacher_scores == {}

    def test_ranks_nobody_where_nothing_was_measured(self) -> None:
        variants = [variant(1, compared_with=None), variant(2)]
        board = make(variants, [run(1, 0, None), run(2, 0, None)])
        for row in board.rows:
            assert (row.finished, row.rank, row.scores, row.difference) == (1, None, {}, None)
        assert board.teacher_scores == {}

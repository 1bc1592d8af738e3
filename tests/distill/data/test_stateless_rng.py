import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.distill.data import stateless_rng


def stream(count: int = 1000, *, seed: int = 0, first: int = 0) -> stateless_rng.StatelessRNG:
    return stateless_rng.StatelessRNG(seed, torch.arange(first, first + count))


class TestMix:
    def test_neighbours_get_far_seeds(self) -> None:
        seeds = {stateless_rng.mix(seed, epoch) for seed in range(30) for epoch in range(30)}
        assert len(seeds) == 900
        assert all(0 <= seed < 2**63 for seed in seeds)


class TestDraws:
    def test_a_rows_numbers_do_not_depend_on_the_other_rows(self) -> None:
        whole, part = stream(100), stream(10, first=40)
        for _ in range(3):
            assert torch.equal(whole.shares()[40:50], part.shares())

    def test_every_number_of_a_row_and_every_turn_counts(self) -> None:
        index, view = torch.arange(50).repeat(4), torch.arange(4).repeat_interleave(50)
        drawn = stateless_rng.StatelessRNG(0, index, view)
        numbers = torch.cat(
            [drawn.shares(), drawn.shares(), stateless_rng.StatelessRNG(1, index, view).shares()]
        )
        assert len(numbers.unique()) == 600

    def test_shares_are_even(self) -> None:
        shares = stream(20_000).shares()
        assert shares.dtype == torch.float64
        assert float(shares.min()) >= 0
        assert float(shares.max()) < 1
        counts = (shares * 10).long().bincount(minlength=10)
        # Five standard deviations of 2000 among 20,000.
        assert float((counts - 2000).abs().max()) < 5 * (20_000 * 0.1 * 0.9) ** 0.5

    def test_one_number_says_nothing_of_the_next(self) -> None:
        drawn = stream(20_000)
        first, second = drawn.shares(), drawn.shares()
        for one, other in ((first, second), (first[1:], first[:-1])):
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / 20_000**0.5

    def test_whole_numbers_and_coins_stay_in_their_range(self) -> None:
        drawn = stream()
        assert set(drawn.whole(3).tolist()) == {0, 1, 2}
        assert set(drawn.coins().tolist()) == {False, True}

    @given(high=st.integers(1, 12), count=st.integers(1, 12))
    def test_some_of_are_different(self, high: int, count: int) -> None:
        wanted = min(high, count)
        numbers = stream(20, seed=high).some_of(wanted, high)
        assert numbers.shape == (20, wanted)
        assert int(numbers.min()) >= 0
        assert int(numbers.max()) < high
        assert all(len(set(row)) == wanted for row in numbers.tolist())

    def test_some_of_are_each_as_likely(self) -> None:
        counts = stream(10_000).some_of(2, 5).flatten().bincount()
        assert counts.tolist() == pytest.approx([4000] * 5, rel=0.06)

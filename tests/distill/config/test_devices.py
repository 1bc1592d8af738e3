"""Slices of a batch."""

import itertools

from workers.distill.config import devices
from workers.distill.config.devices import MOST_DEVICES, WHOLE, Share


class TestShare:
    def test_slices_cover_all_rows_once_in_order(self) -> None:
        for start, rows, ranks in itertools.product(
            (0, 7), (0, 1, 16, 37), range(1, MOST_DEVICES + 1)
        ):
            shares = [Share(rank, ranks) for rank in range(ranks)]
            bounds = [share.bounds(start, start + rows) for share in shares]
            covered = [row for one in bounds for row in range(*one)]
            assert covered == list(range(start, start + rows))
            sizes = shares[0].sizes(rows)
            assert [end - first for first, end in bounds] == sizes
            assert max(sizes) - min(sizes) <= 1

    def test_the_whole_has_all_rows(self) -> None:
        assert WHOLE.bounds(3, 9) == (3, 9)
        assert (WHOLE.fewest_rows, Share(0, 4).fewest_rows) == (2, 8)


class TestOfParts:
    def test_the_most_demanding_part_decides(self) -> None:
        assert devices.of_parts(["slices", "slices"]) == "slices"
        assert devices.of_parts(["slices", "gathers"]) == "gathers"
        assert devices.of_parts(["gathers", "one"]) == "one"

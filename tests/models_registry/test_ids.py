"""Ids sort by time, are unique, and say what they are of."""

import time

from models_registry import ids

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class TestNew:
    def test_names_the_kind_and_has_a_fixed_length(self) -> None:
        prefix, _, value = ids.new("job").partition("_")
        assert prefix == "job"
        assert len(value) == 26
        assert set(value) <= set(ALPHABET)

    def test_sorts_by_the_time_it_was_made(self) -> None:
        made = []
        for _ in range(20):
            made.append(ids.new("job"))
            time.sleep(0.002)
        assert made == sorted(made)

    def test_is_unique_within_a_millisecond(self) -> None:
        assert len({ids.new("job") for _ in range(20_000)}) == 20_000

    def test_holds_the_milliseconds_and_eighty_random_bits(self) -> None:
        before = time.time_ns() // 1_000_000
        values = []
        for _ in range(200):
            value = 0
            for digit in ids.new("job").removeprefix("job_"):
                value = value * 32 + ALPHABET.index(digit)
            assert before <= value >> 80 <= time.time_ns() // 1_000_000
            values.append(value & (2**80 - 1))
        # Each of the 80 bits was seen set and clear.
        seen_set = seen_clear = 0
        for bits in values:
            seen_set |= bits
            seen_clear |= ~bits & (2**80 - 1)
        assert seen_set == seen_clear == 2**80 - 1

    def test_fits_the_columns_that_hold_ids(self) -> None:
        assert len(ids.new("upl")) <= 40

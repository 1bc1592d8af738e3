"""Times of calls as they are told."""

from workers.distill.runtime import device


class TestTiming:
    def test_gives_median_and_99th_percentile(self) -> None:
        found = device.timing([number / 1000 for number in range(1, 201)], 2)
        assert (found.p50_ms, found.p99_ms, found.calls) == (100.5, 198.0, 200)
        assert device.timing([0.001, 0.003], 1).p99_ms == 3.0

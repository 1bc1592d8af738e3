from benchmarks import tables


class TestOfRounds:
    def test_gives_the_median_with_lowest_and_highest(self) -> None:
        rounds = [
            {"ms": 3.0, "MB/s": 100.0},
            {"ms": 1.0, "MB/s": 300.0},
            {"ms": 2.0, "MB/s": 200.0},
        ]
        assert tables.of_rounds({"read": rounds}, ("ms", "MB/s"), "request") == (
            "| request | ms | MB/s |\n|---|---|---|\n| read | 2 (1 to 3) | 200 (100 to 300) |\n"
        )

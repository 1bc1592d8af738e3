import math

import pytest

from models_registry.studies import halving
from models_registry.studies.search_spec import PruningSpec


@pytest.mark.parametrize(
    ("min_epochs", "factor", "epochs", "expected"),
    [(1, 3, 28, [1, 3, 9, 27]), (1, 3, 27, [1, 3, 9]), (5, 2, 15, [5, 10]), (4, 2, 4, [])],
)
def test_rungs_end_before_the_last_epoch(
    min_epochs: int, factor: int, epochs: int, expected: list[int]
) -> None:
    pruning = PruningSpec(min_epochs=min_epochs, reduction_factor=factor)
    assert halving.rungs(pruning, epochs) == expected


class TestJudge:
    @pytest.mark.parametrize(
        ("value", "others", "kept", "needed", "best_of"),
        [
            (0.1, [], True, 0.1, 1),  # nothing to compare with
            (0.5, [0.6], False, 0.6, 1),
            (0.6, [0.6], True, 0.6, 1),
            (0.5, [0.6, 0.4, 0.3, 0.2, 0.1], True, 0.5, 2),
            (0.4, [0.6, 0.5, 0.3, 0.2, 0.1], False, 0.5, 2),
        ],
    )
    def test_keeps_the_best_third_rounded_down(
        self, value: float, others: list[float], kept: bool, needed: float, best_of: int
    ) -> None:
        found = halving.judge(value, others, reduction_factor=3, lower_is_better=False)
        assert found == halving.Judgement(kept, needed, best_of, len(others) + 1)

    def test_of_losses_the_lowest(self) -> None:
        found = halving.judge(0.5, [0.4, 0.6], reduction_factor=2, lower_is_better=True)
        assert (found.kept, found.needed) == (False, 0.4)


class TestBestSoFar:
    POINTS = ((2, 0.5), (4, 0.9), (6, 0.7))

    @pytest.mark.parametrize(
        ("epoch", "lower", "last", "expected"),
        [
            (1, False, False, (2, 0.5)),
            (3, False, False, (4, 0.9)),
            (5, False, False, (6, 0.9)),
            (5, True, False, (6, 0.5)),
            (5, False, True, (6, 0.7)),
            (7, False, False, None),
            (math.inf, False, False, (6, 0.9)),
        ],
    )
    def test_is_of_the_first_validation_that_is_late_enough(
        self, epoch: float, lower: bool, last: bool, expected: tuple[int, float] | None
    ) -> None:
        found = halving.best_so_far(self.POINTS, epoch=epoch, lower_is_better=lower, last=last)
        assert found == expected

    def test_is_none_without_a_number(self) -> None:
        points = [(1, math.nan)]
        kind = {"lower_is_better": False, "last": False}
        assert halving.best_so_far(points, epoch=1, **kind) is None
        assert halving.best_so_far([], epoch=math.inf, **kind) is None

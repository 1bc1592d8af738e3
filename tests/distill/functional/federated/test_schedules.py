import pytest

from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import schedules


class TestGeometric:
    @pytest.mark.parametrize("number", ["0", "1", "10", "50", "100", "200", "600"])
    def test_equals_the_guide(self, number: str) -> None:
        found = schedules.geometric(10.0, 0.98, int(number), floor=1e-4)
        expected = FEDERATED.expected("fedgen_decay")[number]
        assert found == pytest.approx(expected, abs=FEDERATED.tolerance)


class TestLinear:
    def test_starts_at_the_whole_and_ends_at_nothing(self) -> None:
        values = [schedules.linear(0.5, number, 4) for number in range(5)]
        assert values == [0.5, 0.375, 0.25, 0.125, 0.0]


class TestRelativeWeight:
    def test_gives_the_same_proportion(self) -> None:
        assert schedules.relative_weight(0.5) == 1
        assert schedules.relative_weight(0.2) == pytest.approx(0.25)

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_refuses_a_share_that_leaves_the_labels_nothing(self, share: float) -> None:
        with pytest.raises(ValueError, match=f"share must be .*, got {share}"):
            schedules.relative_weight(share)

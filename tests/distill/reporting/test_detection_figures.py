import numpy as np

from tests.distill.reporting.test_figures import NAMES, words_of
from workers.distill.reporting import detection_figures

RECALLS = np.linspace(0, 1, 101)
FALLING = 1 - RECALLS


class TestPrecisionRecall:
    def test_names_networks_and_classes(self) -> None:
        words = words_of(
            detection_figures.precision_recall(
                RECALLS,
                {"teacher": FALLING**0.5, "student": FALLING},
                [(name, FALLING) for name in NAMES[:4]],
            )
        )
        assert {"recall (%)", "precision (%)", "student (AP50 50.0 %)"} <= set(words)
        assert "very long name … (50.0 %)" in {word.strip() for word in words}

    def test_of_a_network_draws_its_curve(self) -> None:
        (axes,) = detection_figures.precision_recall(RECALLS, {"student": FALLING}, []).axes
        (line,) = axes.get_lines()
        np.testing.assert_array_equal(line.get_ydata(), 100 * FALLING)


class TestSizeBars:
    def test_say_where_nothing_can_be_measured(self) -> None:
        words = words_of(
            detection_figures.size_bars(
                {"student": [0.5, None], "baseline": [0.25, None]}, ["all sizes", "small"]
            )
        )
        assert {"all sizes", "50.0", "25.0", "AP on the test split (%)"} <= set(words)
        assert words.count("no true boxes") == 1


class TestErrorBars:
    def test_count_each_kind(self) -> None:
        words = words_of(
            detection_figures.error_bars(
                {"student": [1234, 0]}, ["right", "missed"], title="Errors"
            )
        )
        assert {"right", "missed", "1,234", "0", "student", "Errors"} <= set(words)

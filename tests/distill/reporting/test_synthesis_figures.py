from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from workers.distill.reporting import figures, synthesis_figures

RANDOM = np.random.default_rng(0)


def a_sheet(images: np.ndarray, rows: list[tuple[str, list[int]]]) -> Figure:
    return synthesis_figures.sheet(images, rows, title="Images", about="All of them")


def texts(figure: Figure) -> set[str]:
    """Return titles and labels of a figure's charts."""
    strings = set()
    for axes in figure.axes:
        strings |= {axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()}
        legend = axes.get_legend()
        strings |= {text.get_text() for text in legend.get_texts()} if legend else set()
    return strings


class TestSheet:
    def test_shows_every_pixel_as_a_square(self, tmp_path: Path) -> None:
        images = RANDOM.integers(0, 256, (3, 3, 28, 28), dtype=np.uint8)
        figure = a_sheet(images, [("cat", [2]), ("dog", [0, 1])])
        picture, _ = figures.save(figure, tmp_path, "sheet")
        with PIL.Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        cell = 2 * 28 + synthesis_figures.GAP
        # Found by its first row: the sheet stands somewhere below the title.
        pattern = images[2].transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)
        places = np.argwhere((pixels == pattern[0, 0]).all(2))
        top, left = next(
            (y, x)
            for y, x in places
            if pixels[y : y + 56, x : x + 56].shape == pattern.shape
            and (pixels[y : y + 56, x : x + 56] == pattern).all()
        )
        below = pixels[top + cell : top + cell + 56]
        for column, image in enumerate(images[:2]):
            square = below[:, left + column * cell : left + column * cell + 56]
            assert (square[::2, ::2] == image.transpose(1, 2, 0)).all()

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_shows_the_first_channel_in_grey(self, channels: int) -> None:
        images = np.stack([np.full((1, 60, 40), 30 + n, np.uint8) for n in range(channels)], 1)
        (axes,) = a_sheet(images[0][None], [("all", [0])]).axes
        canvas = axes.images[0].get_array()
        assert canvas is not None
        assert canvas.shape == (60, 40, 3)
        assert (canvas == 30).all()

    def test_names_its_rows(self) -> None:
        images = np.zeros((2, 1, 8, 8), np.uint8)
        (axes,) = a_sheet(images, [("cat", [0]), ("dog", [1])]).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


class TestClassHistograms:
    def test_have_a_panel_for_each_moment(self) -> None:
        shares = {"early": np.array([1.0, 0.0]), "late": np.array([0.5, 0.5])}
        figure = synthesis_figures.class_histograms(shares, ["cat", "dog"])
        heights = [
            [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
            for axes in figure.axes
        ]
        assert heights == [[100.0, 0.0], [50.0, 50.0]]
        assert {"early", "late"} <= texts(figure)


class TestDifficulties:
    def test_are_shares_of_the_images(self) -> None:
        figure = synthesis_figures.difficulties({"late": np.array([3, 0, 1, 0])})
        (steps,) = figure.axes[0].patches
        assert isinstance(steps, StepPatch)
        assert list(steps.get_data()[0]) == [75.0, 0.0, 25.0, 0.0]
        assert "late\n(75% below 0.25)" in texts(figure)


class TestDraws:
    QUANTILES = np.linspace(0.5, 1.5, 11)

    def test_shows_how_far_draws_are_from_even(self) -> None:
        figure = synthesis_figures.draws({"late": self.QUANTILES}, {"late": self.QUANTILES})
        left, right = figure.axes
        even, curve = left.get_lines()
        np.testing.assert_array_equal(even.get_ydata(), [1, 1])
        np.testing.assert_array_equal(curve.get_ydata(), self.QUANTILES)
        assert len(right.get_lines()) == 1

    def test_of_even_draws_shows_divergence_alone(self) -> None:
        figure = synthesis_figures.draws({}, {"late": self.QUANTILES})
        assert len(figure.axes) == 1
        assert "KL of student from teacher (nats)" in texts(figure)


class TestTimeSplit:
    @pytest.mark.parametrize(
        ("seconds", "unit", "total"),
        [(50.0, "seconds", 100.0), (90.0, "minutes", 3.0), (5400.0, "hours", 3.0)],
    )
    def test_is_in_a_unit_that_is_read_easily(
        self, seconds: float, unit: str, total: float
    ) -> None:
        figure = synthesis_figures.time_split([seconds / 2, seconds], [0.0, seconds], title="t")
        assert f"time spent ({unit})" in texts(figure)
        upper = figure.axes[0].collections[1].get_paths()[0].vertices
        assert np.asarray(upper)[:, 1].max() == pytest.approx(total)


class TestPanels:
    def test_give_each_number_a_scale_of_its_own(self) -> None:
        history = [{"epoch": 1, "a": 1.0, "b": -5.0}, {"epoch": 2, "a": 0.5, "b": -7.0}]
        figure = synthesis_figures.panels(history, {"a": "first", "b": "second"}, title="t")
        first, second = figure.axes
        assert (first.get_ylim()[0], second.get_ylim()[1] < 0) == (0.0, True)
        assert {"first", "second"} <= texts(figure)

    def test_may_be_of_a_single_epoch(self) -> None:
        figure = synthesis_figures.panels([{"epoch": 1, "a": 1.0}], {"a": "first"}, title="t")
        assert list(figure.axes[0].get_xticks()) == [1]

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tests.distill.reporting.test_figures import words_of
from workers.distill.reporting import examples_figures, figures
from workers.distill.tasks.comparisons import BoxComparison, Comparison, MaskComparison

IMAGE = np.full((3, 40, 60), 120, np.uint8)
TRUTHS = np.array([[0.0, 5, 5, 25, 25, 400, 0], [1, 30, 10, 50, 30, 400, 1]])
DETECTIONS = np.array([[0.0, 0.9, 5, 5, 25, 24], [2, 0.4, 30, 2, 50, 12], [2, 0.1, 0, 0, 9, 9]])
BOXES = BoxComparison(TRUTHS, DETECTIONS)
TRUE_MASK = np.zeros((40, 60), np.uint8)
TRUE_MASK[:10], TRUE_MASK[30:] = 1, 255
MASKS = MaskComparison(TRUE_MASK, np.full((40, 60), 2), 3)


def a_sheet(answer: Comparison, classes: list[str], **changes: Any) -> Figure:
    facts: dict[str, Any] = {"label": "image 3", "image": IMAGE, "answers": {"student": answer}}
    row = examples_figures.SheetRow(**{**facts, **changes})
    return examples_figures.sheet([row], classes, title="Images", about="All of them")


def strokes_of(figure: Figure, panel: int) -> list[Any]:
    patches = figure.axes[panel].patches
    return [box.get_linestyle() for box in patches if isinstance(box, Rectangle)]


class TestBoxes:
    def test_are_drawn_into_the_image(self) -> None:
        figure = a_sheet(BOXES, ["cat", "dog", "very long name of a class"])
        assert [axes.get_title() for axes in figure.axes] == ["true", "student"]
        assert strokes_of(figure, 0) == ["-", (0, (1, 1))]
        assert strokes_of(figure, 1) == ["-", (0, (4, 2))]
        words = words_of(figure)
        assert {"image 3", "Images", "All of them", "cat 0.90", "wrong"} <= set(words)
        assert {"crowd or difficult", "very long name … 0.40"} <= set(words)

    def test_of_crowded_images_are_told_by_colour(self) -> None:
        many = BoxComparison(np.repeat(TRUTHS[:1], 9, axis=0), DETECTIONS)
        figure = a_sheet(many, ["cat", "dog", "ape"])
        assert not figure.axes[0].texts
        assert len(strokes_of(figure, 0)) == 9

    def test_may_be_none_at_all(self) -> None:
        empty = BoxComparison(TRUTHS[:0], DETECTIONS[:0])
        assert {"true", "student"} <= set(words_of(a_sheet(empty, ["cat"])))

    def test_of_other_channels_lie_on_the_first_one(self) -> None:
        figure = a_sheet(BOXES, list("abc"), image=np.full((2, 40, 60), 7, np.uint8))
        shown = figure.axes[0].images[0].get_array()
        assert shown is not None
        assert shown.shape == (40, 60, 3)


class TestMasks:
    def test_stand_beside_the_image(self) -> None:
        figure = a_sheet(MASKS, ["cat", "dog", "ape"])
        assert [axes.get_title() for axes in figure.axes] == ["image", "true", "student"]
        true = figure.axes[1].images[0].get_array()
        assert true is not None
        grey = colors.to_rgb(examples_figures.NO_CLASS_COLOUR)
        cat, dog = (colors.to_rgb(figures.PALETTE[place]) for place in (0, 1))
        for row, colour in ((0, dog), (20, cat), (35, grey)):
            np.testing.assert_allclose(true[row, 0], colour)
        assert {"cat", "dog", "ape", "no class"} <= set(words_of(figure))

    def test_of_many_classes_name_some(self) -> None:
        mask = np.arange(80, dtype=np.uint8).repeat(30).reshape(40, 60)
        words = words_of(a_sheet(MaskComparison(mask, mask, 80), [f"c{n}" for n in range(80)]))
        assert {"c0", "c19", "and 60 more"} <= set(words)
        assert "c20" not in words


class TestColouring:
    def test_tells_classes_apart(self) -> None:
        colouring = examples_figures.Colouring(range(24), [str(n) for n in range(24)])
        assert len({colouring[label] for label in range(24)}) == 24


class TestSheet:
    @pytest.mark.parametrize("shape", [(400, 30), (30, 400)], ids=["tall", "wide"])
    def test_takes_images_of_any_shape(self, shape: tuple[int, int], tmp_path: Path) -> None:
        figure = a_sheet(BOXES, list("abc"), image=np.zeros((3, *shape), np.uint8))
        picture, _ = figures.save(figure, tmp_path, "sheet")
        with PIL.Image.open(picture) as opened:
            assert min(opened.size) > 100

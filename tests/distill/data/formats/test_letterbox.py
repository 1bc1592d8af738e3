"""Pictures of any size fit on a canvas, and boxes come back from it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from workers.distill.data import boxes
from workers.distill.data.formats import conversion, letterbox

SIDES = st.integers(1, 2000)


class TestPlacement:
    @settings(deadline=None)
    @given(SIDES, SIDES, st.integers(1, 700), st.integers(1, 700))
    def test_fits_and_fills_one_side(self, height: int, width: int, tall: int, wide: int) -> None:
        at = letterbox.Canvas(tall, wide).placement(height, width)
        assert 1 <= at.height <= tall
        assert 1 <= at.width <= wide
        assert at.height == tall or at.width == wide
        # Areas are scaled by the square of the one number that stands for both sides.
        assert at.scale**2 * height * width == pytest.approx(at.height * at.width)

    @settings(deadline=None)
    @given(st.data(), SIDES, SIDES, st.integers(8, 700), st.integers(8, 700))
    def test_boxes_come_back(
        self, draw: st.DataObject, height: int, width: int, tall: int, wide: int
    ) -> None:
        x1, x2 = sorted(draw.draw(st.tuples(st.floats(0, width), st.floats(0, width))))
        y1, y2 = sorted(draw.draw(st.tuples(st.floats(0, height), st.floats(0, height))))
        row = torch.tensor([[0, x1, y1, x2, y2, 1, 0]], dtype=torch.float64)
        at = letterbox.Canvas(tall, wide).placement(height, width)
        there = boxes.rescale(row.float(), at.x_factor, at.y_factor)
        placed = boxes.clip(there, at.height, at.width)
        torch.testing.assert_close(placed, there, rtol=1e-5, atol=1e-3)
        back = boxes.rescale(placed, 1 / at.x_factor, 1 / at.y_factor)
        torch.testing.assert_close(back.double(), row, rtol=1e-4, atol=1e-2)


class TestCanvas:
    def test_places_at_the_top_left_and_fills_the_rest(self) -> None:
        image = Image.new("RGB", (4, 2), (9, 8, 7))
        placed = letterbox.Canvas(6, 8).place(image)
        assert placed.shape == (3, 6, 8)
        assert (placed[:, :4] == np.array([9, 8, 7])[:, None, None]).all()
        assert (placed[:, 4:] == letterbox.FILL).all()

    def test_scales_masks_by_the_nearest_pixel(self) -> None:
        mask = np.array([[0, 3], [3, 0]], dtype=np.uint8)
        placed = letterbox.Canvas(4, 6).place_mask(mask)
        assert (placed[:, :4] == mask.repeat(2, 0).repeat(2, 1)).all()
        assert (placed[:, 4:] == 255).all()

    @pytest.mark.parametrize(
        ("hints", "expected"),
        [
            ({}, (30, 40)),
            ({"height": 7, "width": 9}, (7, 9)),
            ({"width": 9}, (9, 9)),
        ],
    )
    def test_has_the_given_or_the_largest_sides(
        self, hints: dict[str, int], expected: tuple[int, int]
    ) -> None:
        sizes = [(20, 40), (30, 10)]
        found = letterbox.canvas_for(sizes, conversion.InputHints(**hints))
        assert (found.height, found.width) == expected

    def test_is_at_most_640_long(self) -> None:
        found = letterbox.canvas_for([(100, 1280), (320, 20)], conversion.InputHints())
        assert (found.height, found.width) == (160, 640)

    def test_tells_how_many_pictures_were_scaled_and_padded(self) -> None:
        notes = letterbox.Canvas(20, 30).notes([(20, 30), (40, 60), (20, 10)])
        assert notes == [
            "1 of 3 pictures were scaled to fit into 20x30 (height x width)",
            "1 of 3 pictures do not fill 20x30 (height x width): the rest is grey (114)",
        ]

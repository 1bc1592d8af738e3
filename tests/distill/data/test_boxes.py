"""Boxes are moved and checked as rows; padding stays padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.distill import errors
from workers.distill.data import boxes


def a_row(**changes: float) -> list[float]:
    names = ("number", "x1", "y1", "x2", "y2", "area", "flag")
    fields = dict(zip(names, (1.0, 2.0, 3.0, 12.0, 8.0, 50.0, 0.0), strict=True))
    return list({**fields, **changes}.values())


def some() -> Tensor:
    """Two images of 20x30: one with two boxes, one with none."""
    crowd = a_row(number=0.0, flag=float(boxes.CROWD))
    return boxes.padded([torch.tensor([a_row(), crowd]), torch.zeros(0, 7)], most=3)


class TestRows:
    def test_are_padded(self) -> None:
        assert some().shape == (2, 3, 7)
        assert boxes.is_box(some()).tolist() == [[True, True, False], [False] * 3]
        assert boxes.is_ordinary(some()).tolist() == [[True, False, False], [False] * 3]
        assert (some()[1] == torch.tensor([-1.0, 0, 0, 0, 0, 0, 0])).all()

    def test_are_counted_by_class_without_crowds(self) -> None:
        assert boxes.counts(some(), 3) == [0, 1, 0]

    def test_are_mirrored(self) -> None:
        flipped = boxes.flip(some(), 30)
        assert flipped[0, 0].tolist() == a_row(x1=18.0, x2=28.0)
        assert torch.equal(flipped[1], some()[1])
        assert torch.equal(boxes.flip(flipped, 30), some())

    def test_are_rescaled_but_for_their_area(self) -> None:
        found = boxes.rescale(some(), 2.0, 0.5)
        assert found[0, 0].tolist() == a_row(x1=4.0, y1=1.5, x2=24.0, y2=4.0)
        assert torch.equal(found[1], some()[1])

    def test_are_clipped(self) -> None:
        found = boxes.clip(torch.tensor([[a_row(x1=-3.0, y2=25.0)]]), 20, 10)
        assert found[0, 0].tolist() == a_row(x1=0.0, x2=10.0, y2=20.0)

    @settings(deadline=None)
    @given(st.floats(0.1, 10), st.floats(0.1, 10))
    def test_come_back_from_another_size(self, across: float, down: float) -> None:
        there = boxes.rescale(some(), across, down)
        torch.testing.assert_close(boxes.rescale(there, 1 / across, 1 / down), some())


def check(targets: Tensor) -> None:
    boxes.check_boxes(targets, images=2, classes=2, height=20, width=30, split="train")


class TestCheck:
    def test_accepts_boxes(self) -> None:
        check(some())

    @pytest.mark.parametrize(
        "targets",
        [
            torch.zeros(2, 3, 6),
            torch.zeros(3, 3, 7),
            torch.zeros(2, 0, 7),
            some().double(),
            some()[0],
        ],
    )
    def test_refuses_other_shapes(self, targets: Tensor) -> None:
        with pytest.raises(errors.BadDataset, match="should be float32"):
            check(targets)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"number": 2.0}, "class that is not one of 0 to 1"),
            ({"number": 0.5}, "class that is not one of"),
            ({"number": -2.0}, "class that is not one of"),
            ({"number": -1.0}, "is padding, but not zero"),
            ({"x1": float("nan")}, "not finite"),
            ({"x2": 2.0}, "no positive width and height"),
            ({"y2": 2.0}, "no positive width and height"),
            ({"x2": 30.5}, "not inside of the image of 20x30"),
            ({"x1": -0.5}, "not inside of"),
            ({"y2": 21.0}, "not inside of"),
            ({"area": -1.0}, "negative area"),
            ({"flag": 3.0}, "flag other than"),
        ],
    )
    def test_names_what_is_wrong_and_where(self, changes: dict[str, float], words: str) -> None:
        targets = some()
        targets[0, 1] = torch.tensor(a_row(**changes))
        with pytest.raises(errors.BadDataset, match=f"box 1 of image 0 of the train.*{words}"):
            check(targets)

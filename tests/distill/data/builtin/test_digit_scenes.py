"""Composed scenes are the same each time, their boxes and masks agree, and splits share nothing."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.distill.data import boxes, dataset
from workers.distill.data.builtin import digit_scenes

COUNT = 12


@pytest.fixture(scope="module")
def scenes() -> digit_scenes.Scenes:
    return digit_scenes.compose("test", COUNT)


class TestCompose:
    def test_boxes_are_the_extents_of_their_digits_in_the_masks(
        self, scenes: digit_scenes.Scenes
    ) -> None:
        boxes.check_boxes(scenes.boxes, images=COUNT, classes=10, height=96, width=96, split="test")
        alone = 0
        for table, mask in zip(scenes.boxes, scenes.masks, strict=True):
            rows = table[boxes.is_box(table)].int().tolist()
            assert 1 <= len(rows) <= 4
            assert {number + 1 for number, *_ in rows} == set(np.unique(mask).tolist()) - {0}
            for _, x1, y1, x2, y2, area, flag in rows:
                assert (area, flag) == ((x2 - x1) * (y2 - y1), boxes.ORDINARY)
                assert 5 <= x2 - x1 <= 36
            if len(rows) == 1:
                alone += 1
                down, across = np.nonzero(mask)
                extent = [across.min(), down.min(), across.max() + 1, down.max() + 1]
                assert rows[0][1:5] == extent
        assert alone

    def test_boxes_overlap_by_two_pixels_at_most(self, scenes: digit_scenes.Scenes) -> None:
        for table in scenes.boxes:
            rows = table[boxes.is_box(table)]
            for one, other in itertools.combinations(rows, 2):
                across = min(one[boxes.X2], other[boxes.X2]) - max(one[boxes.X1], other[boxes.X1])
                down = min(one[boxes.Y2], other[boxes.Y2]) - max(one[boxes.Y1], other[boxes.Y1])
                assert across <= 2 or down <= 2

    def test_is_the_same_each_time(self, scenes: digit_scenes.Scenes) -> None:
        again = digit_scenes.compose("test", 3)
        assert (again.images == scenes.images[:3]).all()
        assert torch.equal(again.boxes, scenes.boxes[:3])
        assert (again.masks == scenes.masks[:3]).all()

    def test_splits_share_neither_photographs_nor_digits(self) -> None:
        parts = digit_scenes.PARTS.values()
        names = [name for part in parts for name in part.photographs]
        assert len(names) == len(set(names)) == 14
        digits = [digit_scenes._digits(name) for name in digit_scenes.PARTS]
        assert [len(classes) for _, classes in digits] == [1050, 150, 597]
        assert sum(int(pixels.astype(int).sum()) for pixels, _ in digits) > 0
        assert sum(len(classes) for _, classes in digits) == 1797


class TestWrite:
    @pytest.fixture
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the splits small."""
        for name, part in digit_scenes.PARTS.items():
            small = digit_scenes.SceneSource(4, part.seed, part.digits, part.photographs)
            monkeypatch.setitem(digit_scenes.PARTS, name, small)

    @pytest.mark.usefixtures("few")
    def test_stores_boxes_with_their_numbers(self, tmp_path: Path) -> None:
        record = digit_scenes.write(tmp_path)
        assert record.notes[0] == "composed scenes: real digits on real photographs"
        found = dataset.load(tmp_path)
        assert found.record == record
        for name in dataset.SPLITS:
            split = found.split(name)
            assert record.boxes is not None
            assert record.boxes[name] == boxes.counts(split.labels, 10)
            assert split.scales is not None
            assert split.scales.tolist() == [1] * 4

    @pytest.mark.usefixtures("few")
    def test_stores_masks_of_the_same_scenes(self, tmp_path: Path) -> None:
        digit_scenes.write(tmp_path / "boxes")
        record = digit_scenes.write_masks(tmp_path / "masks")
        assert record.classes == ["background", *"0123456789"]
        first, second = (
            dataset.load(tmp_path / name).split("train") for name in ("boxes", "masks")
        )
        assert torch.equal(first.images, second.images)
        assert second.labels.shape == (4, 96, 96)
        assert second.scales is None

    @pytest.mark.slow
    def test_record_is_described_without_composing(self, tmp_path: Path) -> None:
        assert digit_scenes.write(tmp_path) == digit_scenes.describe()
        images = dataset.load(tmp_path).split("train").images.numpy()
        size = digit_scenes.describe_masks().input
        assert dataset.moments(images) == (size.mean, size.std)

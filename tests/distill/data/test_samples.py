"""Sample sheets: which images stand for a class, and what is drawn over them."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from workers.distill import errors
from workers.distill.config import samples as bounds
from workers.distill.config.job import Input
from workers.distill.data import boxes, dataset, samples


def written(folder: Path, task: Any, classes: list[str], labels: torch.Tensor, side: int) -> Path:
    """Write a data set whose image n has the value n, with these labels in every split."""
    count = len(labels)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side)
    content = (images.contiguous(), labels, *([torch.ones(count)] if task == "detection" else []))
    is_open = task == "classification" and not classes
    record = dataset.DatasetRecord(
        task=task,
        classes=classes,
        splits=dict.fromkeys(dataset.SPLITS, count),
        labelled=dict.fromkeys(dataset.SPLITS, 0) if is_open else None,
        input=Input(channels=3, height=side, width=side, mean=[0.5] * 3, std=[0.2] * 3),
    )
    dataset.write(folder, record, dict.fromkeys(dataset.SPLITS, content))
    return folder


def pixels(content: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


class TestClasses:
    def test_have_evenly_spread_images_of_their_own(self, tmp_path: Path) -> None:
        labels = torch.tensor([0, 1] * 20)
        made = samples.sheet(written(tmp_path, "classification", ["cat", "dog"], labels, 4))
        cats, dogs = made["classes"]
        assert (cats["class"], dogs["class"]) == ("cat", "dog")
        assert [one["index"] for one in cats["pictures"]] == [0, 4, 10, 14, 20, 24, 30, 34]
        assert all(one["index"] % 2 == 1 for one in dogs["pictures"])
        first = dogs["pictures"][0]
        assert first["media_type"] == "image/png"
        assert (pixels(first["content"]) == 1).all()
        assert made["notes"] == []

    def test_beyond_the_bound_are_left_out_and_that_is_told(self, tmp_path: Path) -> None:
        count = bounds.MOST_CLASSES + 5
        names = [f"class {number}" for number in range(count)]
        labels = torch.arange(count)
        made = samples.sheet(written(tmp_path, "classification", names, labels, 4))
        assert len(made["classes"]) == bounds.MOST_CLASSES
        assert made["notes"] == [f"The first {bounds.MOST_CLASSES} of {count} classes are shown."]

    def test_are_none_where_no_image_has_a_label(self, tmp_path: Path) -> None:
        labels = torch.full((3,), dataset.UNLABELLED)
        (group,) = samples.sheet(written(tmp_path, "classification", [], labels, 4))["classes"]
        assert group["class"] is None
        assert [one["index"] for one in group["pictures"]] == [0, 1, 2]

    @pytest.mark.parametrize("classes", [1, 2, 30, 100, 1000])
    def test_together_have_no_more_pictures_than_the_bound(self, classes: int) -> None:
        of_each = bounds.pictures_of_class(classes)
        assert 1 <= of_each <= bounds.MOST_OF_CLASS
        assert of_each * min(classes, bounds.MOST_CLASSES) <= bounds.MOST_PICTURES


class TestBoxes:
    def test_are_shares_of_the_sides_and_padding_is_none(self, tmp_path: Path) -> None:
        rows = torch.zeros(2, 2, boxes.COLUMNS)
        rows[..., boxes.CLASS] = boxes.NO_CLASS
        rows[1, 0] = torch.tensor([1.0, 10, 20, 30, 40, 400, boxes.ORDINARY])
        rows[1, 1] = torch.tensor([0.0, 0, 0, 40, 40, 1600, boxes.CROWD])
        made = samples.sheet(written(tmp_path, "detection", ["car", "bus"], rows, 40))
        cars, buses = made["classes"]
        assert cars["pictures"] == []  # a crowd is nothing to learn a class from
        (one,) = buses["pictures"]
        assert one["index"] == 1
        assert one["boxes"] == [
            {"class": "bus", "box": [0.25, 0.5, 0.75, 1.0], "is_ordinary": True},
            {"class": "car", "box": [0.0, 0.0, 1.0, 1.0], "is_ordinary": False},
        ]


class TestMasks:
    def test_keep_the_numbers_of_classes_when_they_are_shrunk(self, tmp_path: Path) -> None:
        masks = torch.zeros(2, 300, 300, dtype=torch.uint8)
        masks[1, :150] = 1
        masks[1, 290:] = dataset.IGNORE_INDEX
        made = samples.sheet(written(tmp_path, "segmentation", ["ground", "lake"], masks, 300))
        ground, lakes = made["classes"]
        assert [one["index"] for one in ground["pictures"]] == [0, 1]
        (one,) = lakes["pictures"]
        assert (one["height"], one["width"], one["media_type"]) == (300, 300, "image/jpeg")
        mask = pixels(one["mask_png"])
        assert mask.shape == (bounds.LONGEST_SIDE, bounds.LONGEST_SIDE)
        assert set(np.unique(mask)) == {0, 1, dataset.IGNORE_INDEX}

    def test_are_searched_no_further_than_the_bound(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bounds, "LOOKED_AT", 2)
        masks = torch.zeros(4, 8, 8, dtype=torch.uint8)
        made = samples.sheet(written(tmp_path, "segmentation", ["ground"], masks, 8))
        assert [one["index"] for one in made["classes"][0]["pictures"]] == [0, 2]
        assert made["notes"] == ["2 of 4 images were searched for each class."]


def test_a_damaged_split_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path, "classification", ["one"], torch.zeros(3, dtype=torch.int64), 4)
    (folder / "train.safetensors").write_bytes(b"nothing")
    with pytest.raises(errors.BadDataset, match="train split"):
        samples.sheet(folder)

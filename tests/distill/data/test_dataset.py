"""The prepared form is written the same each time and checked when it is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.files import tensorfile


def a_record(**changes: Any) -> dataset.DatasetRecord:
    fields: dict[str, Any] = {
        "classes": ["cat", "dog"],
        "splits": {"train": 4, "validation": 2, "test": 2},
        "input": Input(channels=1, height=3, width=5, mean=[0.5], std=[0.25]),
        **changes,
    }
    return dataset.DatasetRecord(**fields)


def some_splits() -> dict[str, tuple[Tensor, Tensor]]:
    sizes = a_record().splits
    return {
        name: (torch.full((count, 1, 3, 5), count, dtype=torch.uint8), torch.arange(count) % 2)
        for name, count in sizes.items()
    }


class TestLoad:
    def test_returns_what_was_written(self, tmp_path: Path) -> None:
        dataset.write(tmp_path, a_record(), some_splits())
        found = dataset.load(tmp_path)
        assert found.record == a_record()
        for name, (images, labels) in some_splits().items():
            assert torch.equal(found.split(name).images, images)
            assert torch.equal(found.split(name).labels, labels)

    def test_record_has_the_agreed_fields(self, tmp_path: Path) -> None:
        dataset.write(tmp_path, a_record(notes=["n"]), some_splits())
        assert json.loads((tmp_path / "dataset.json").read_text()) == {
            "version": 1,
            "task": "classification",
            "classes": ["cat", "dog"],
            "splits": {"train": 4, "validation": 2, "test": 2},
            "input": {"channels": 1, "height": 3, "width": 5, "mean": [0.5], "std": [0.25]},
            "flip": False,
            "notes": ["n"],
        }

    def test_missing_folder_is_a_bad_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(errors.BadDataset, match="no readable"):
            dataset.load(tmp_path / "nothing")

    @pytest.mark.parametrize("text", ["", "{}", '{"version": 2}', "nonsense"])
    def test_malformed_record_is_a_bad_data_set(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(errors.BadDataset, match="malformed"):
            dataset.load(tmp_path)

    def test_empty_split_is_a_bad_data_set(self, tmp_path: Path) -> None:
        dataset.write(tmp_path, a_record(splits={"train": 4, "test": 2}), some_splits())
        with pytest.raises(errors.BadDataset, match="no images in its validation split"):
            dataset.load(tmp_path)

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({"images": torch.zeros(3, 1, 3, 5, dtype=torch.uint8)}, "should be uint8"),
            ({"images": torch.zeros(4, 1, 3, 5)}, "got float32"),
            ({"labels": torch.zeros(3, dtype=torch.int64)}, "should be int64"),
            ({"labels": torch.tensor([0, 1, 2, 0])}, "0 to 2, but there are 2 classes"),
            ({"labels": torch.tensor([0, 1, -1, 0])}, "-1 to 1"),
        ],
    )
    def test_split_that_is_not_as_recorded_is_a_bad_data_set(
        self, tmp_path: Path, tensors: dict[str, Tensor], words: str
    ) -> None:
        dataset.write(tmp_path, a_record(), some_splits())
        images, labels = some_splits()["train"]
        tensorfile.write(
            tmp_path / "train.safetensors", {"images": images, "labels": labels, **tensors}, {}
        )
        with pytest.raises(errors.BadDataset, match=words):
            dataset.load(tmp_path).split("train")

    def test_missing_or_damaged_split_is_a_bad_data_set(self, tmp_path: Path) -> None:
        dataset.write(tmp_path, a_record(), some_splits())
        (tmp_path / "train.safetensors").write_bytes(b"damaged")
        (tmp_path / "test.safetensors").unlink()
        for name in ("train", "test"):
            with pytest.raises(errors.BadDataset, match=name):
                dataset.load(tmp_path).split(name)


def a_dense_record(**changes: Any) -> dataset.DatasetRecord:
    return a_record(task="segmentation", **changes)


def some_masks(kind: torch.dtype = torch.uint8) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, (images, _) in some_splits().items():
        masks = torch.arange(15).reshape(3, 5).expand(len(images), 3, 5) % 2
        masks = masks.clone().to(kind)
        masks[:, 0, 0] = dataset.IGNORE_INDEX
        found[name] = (images, masks)
    return found


class TestLoadMasks:
    @pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
    def test_returns_what_was_written(self, tmp_path: Path, kind: torch.dtype) -> None:
        dataset.write(tmp_path, a_dense_record(), some_masks(kind))
        found = dataset.load(tmp_path)
        assert found.record.task == "segmentation"
        for name, (_, masks) in some_masks(kind).items():
            assert found.split(name).labels.dtype == kind
            assert torch.equal(found.split(name).labels, masks)

    @pytest.mark.parametrize(
        ("masks", "words"),
        [
            (torch.zeros(4, dtype=torch.int64), r"uint8 or int64 \[4, 3, 5\], got int64 \[4\]"),
            (torch.zeros(4, 5, 3, dtype=torch.uint8), r"got uint8 \[4, 5, 3\]"),
            (torch.zeros(4, 3, 5, dtype=torch.int32), "got int32"),
            (torch.full((4, 3, 5), 2, dtype=torch.uint8), "2 to 2, but there are 2 classes"),
            (torch.full((4, 3, 5), 255, dtype=torch.uint8), "no pixel of the train split has"),
            (torch.full((4, 3, 5), -1), "-1 to -1"),
        ],
    )
    def test_masks_that_are_not_as_recorded_are_a_bad_data_set(
        self, tmp_path: Path, masks: Tensor, words: str
    ) -> None:
        splits = some_masks()
        dataset.write(tmp_path, a_dense_record(), {**splits, "train": (splits["train"][0], masks)})
        with pytest.raises(errors.BadDataset, match=words):
            dataset.load(tmp_path).split("train")

    def test_classes_leave_a_number_for_ignored_pixels(self) -> None:
        names = [str(number) for number in range(256)]
        assert len(a_dense_record(classes=names[:255]).classes) == 255
        with pytest.raises(pydantic.ValidationError, match="at most 255 classes"):
            a_dense_record(classes=names)
        assert len(a_record(classes=names).classes) == 256


class TestMoments:
    def test_equal_numpys(self) -> None:
        images = np.random.RandomState(0).randint(0, 256, (50, 3, 4, 5)).astype(np.uint8)
        mean, std = dataset.moments(images)
        pixels = images.astype(np.float64) / 255
        # Rounded to six digits.
        np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=5e-7)
        np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), atol=5e-7)

    def test_flat_channel_is_not_divided_by_zero(self) -> None:
        assert dataset.moments(np.zeros((2, 1, 3, 3), dtype=np.uint8)) == ([0.0], [1.0])

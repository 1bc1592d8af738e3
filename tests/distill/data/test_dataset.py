"""The prepared form is written the same each time and checked when it is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
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
        stored = dataset.load(tmp_path)
        assert stored.record == a_record()
        for name, (images, labels) in some_splits().items():
            assert torch.equal(stored.split(name).images, images)
            assert torch.equal(stored.split(name).labels, labels)

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

    def test_scales_and_numbers_of_boxes_are_kept(self, tmp_path: Path) -> None:
        record = a_record(boxes={"train": [3, 4], "validation": [1, 0], "test": [0, 1]})
        scales = torch.tensor([1.0, 0.5, 0.25, 2.0])
        splits = {name: (*pair, scales[: len(pair[0])]) for name, pair in some_splits().items()}
        dataset.write(tmp_path, record, splits)
        found = dataset.load(tmp_path)
        assert found.record == record
        train = found.split("train")
        assert train.scales is not None
        assert torch.equal(train.scales, scales)

    @pytest.mark.parametrize(
        "scales",
        [
            torch.ones(3),
            torch.ones(4, 1),
            torch.ones(4).double(),
            torch.zeros(4),
            torch.tensor([1.0, 1.0, 1.0, float("inf")]),
        ],
    )
    def test_scales_that_are_none_are_a_bad_data_set(self, tmp_path: Path, scales: Tensor) -> None:
        train = {"train": (*some_splits()["train"], scales)}
        dataset.write(tmp_path, a_record(), {**some_splits(), **train})
        with pytest.raises(errors.BadDataset, match="4 positive float32 numbers"):
            dataset.load(tmp_path).split("train")

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
            ({"labels": torch.zeros(3, dtype=torch.int64)}, r"4 images and labels of shape \[3\]"),
            ({"labels": torch.tensor(0)}, r"labels of shape \[\]"),
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


def test_moments_are_exact_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 7, 11), dtype=np.uint8)
    monkeypatch.setattr(dataset, "BLOCK_PIXELS", 20)
    mean, std = dataset.moments(images)
    wide = images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert mean == pytest.approx(wide.mean(1), abs=1e-6)
    assert std == pytest.approx(wide.std(1), abs=1e-6)

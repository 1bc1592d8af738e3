"""YOLO archives become boxes, wherever their folders are, and every fault is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset

Files = dict[str, bytes | str]
LINE = "1 0.5 0.5 0.2 0.4\n"


def pictures(place: str, first: int, count: int = 2) -> Files:
    return {f"{place}/{key}.png": uploads.picture(key) for key in range(first, first + count)}


def three_splits(**changes: bytes | str) -> Files:
    """Three splits of two pictures, of which the first has a box; `data` is the YAML file."""
    files: Files = {
        "data.yaml": "names: [cat, dog]\ntrain: images/train\nval: images/val\ntest: images/test\n"
    }
    for name, first in (("train", 1), ("val", 11), ("test", 21)):
        files |= pictures(f"images/{name}", first)
        files[f"labels/{name}/{first}.txt"] = LINE
    return {**files, **changes}


def convert(tmp_path: Path, files: Files, **hints: Any) -> dataset.DatasetRecord:
    uploads.archive(tmp_path, files)
    return uploads.convert("yolo", tmp_path, task="detection", **hints)


class TestConvert:
    def test_shares_become_corners_and_no_file_no_objects(self, tmp_path: Path) -> None:
        record = convert(tmp_path, three_splits())
        assert record.classes == ["cat", "dog"]
        assert record.boxes == {name: [0, 1] for name in dataset.SPLITS}
        assert record.notes == ["1 classes have no training boxes: cat"]
        labels = dataset.load(tmp_path / "dataset").split("train").labels
        expected = [[[1, 12, 6, 18, 14, 48, 0]], [[-1, 0, 0, 0, 0, 0, 0]]]
        torch.testing.assert_close(labels, torch.tensor(expected).float())

    @pytest.mark.parametrize(
        "text",
        [
            "names: {0: cat, 1: dog}\ntrain: images/train",
            "names: {1: dog, 0: cat}\nnc: 2\ntrain: /data/sets/mine/images/train",
            "names: [cat, dog]\npath: ../mine\ntrain: ../images/train",
            "names: [cat, dog]\ntrain: [./images/train]\nval:",
        ],
    )
    def test_ways_of_writing_the_yaml_file(self, tmp_path: Path, text: str) -> None:
        labels = {f"mine/labels/train/{key}.txt": LINE for key in range(5)}
        files = {"mine/data.yaml": text, **pictures("mine/images/train", 0, 5), **labels}
        record = convert(tmp_path, files)
        assert record.classes == ["cat", "dog"]
        assert record.splits == {"train": 3, "validation": 1, "test": 1}

    def test_splits_may_be_outer_folders(self, tmp_path: Path) -> None:
        files: Files = {"data.yaml": "names: [a, b]\ntrain: ../train/images\nval: ../valid/images"}
        files |= pictures("train/images", 1, 4) | pictures("valid/images", 11)
        files |= {f"train/labels/{key}.txt": LINE for key in range(1, 5)}
        files |= {"valid/labels/11.txt": LINE, "valid/labels/classes.txt": "a\nb"}
        assert convert(tmp_path, files).boxes == {
            "train": [0, 3],
            "validation": [0, 1],
            "test": [0, 1],
        }

    def test_turned_picture_is_measured_upright(self, tmp_path: Path) -> None:
        files = three_splits()
        files["images/train/1.png"] = uploads.picture(1, turned=6)
        files["labels/train/1.txt"] = "0 0.5 0.5 1 1"
        record = convert(tmp_path, files)
        assert (record.input.height, record.input.width) == (30, 30)
        labels = dataset.load(tmp_path / "dataset").split("train").labels
        assert labels[0, 0].tolist() == [0, 0, 0, 20, 30, 600, 0]


def refused(tmp_path: Path, files: Files) -> errors.UploadRefused:
    return uploads.refused("yolo", tmp_path, files, task="detection")


class TestRefused:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("2 0.5 0.5 0.2 0.4", "there is no class 2: they are 0 to 1"),
            ("0.5 0.5 0.5 0.2 0.4", "there is no class 0.5"),
            ("nan 0.5 0.5 0.2 0.4", "there is no class nan"),
            ("0 15 10 6 8", "shares of the picture"),
            ("0 -0.1 0.5 0.2 0.4", "shares of the picture"),
            ("0 0.5 0.5 nan 0.4", "not finite"),
            ("0 0.5 0.5 -0.2 0.4", "negative size"),
            ("0 0.5 0.5 0.2", "five numbers, got 4"),
            ("0 0.1 0.1 0.2 0.1 0.2 0.2", "five numbers, got 7"),
            ("cat 0.5 0.5 0.2 0.4", "five numbers"),
        ],
    )
    def test_line_is_named(self, tmp_path: Path, line: str, words: str) -> None:
        found = refused(tmp_path, three_splits() | {"labels/train/2.txt": f"{LINE}\n{line}\n"})
        assert found.refusal == "bad_labels"
        assert words in found.message
        assert "labels/train/2.txt, line 3: " in found.message

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc says 3 classes, names has 2"),
            ("names: {0: cat, 2: dog}\ntrain: images/train", "should have the keys 0 to 1"),
            ("names: [cat, cat]\ntrain: images/train", "'cat' is the name of classes 0 and 1"),
            ("names: [yes, no]\ntrain: images/train", "put them into quotes"),
            ("names: []\ntrain: images/train", "names no classes"),
            ("names: [cat, '']\ntrain: images/train", "class 1 has no name"),
            ("train: images/train", "names should be a list"),
            ("names: [cat, dog]\nval: images/val", "needs 'train'"),
            ("names: [cat, dog]\ntrain: images/none", "has no such folder"),
            ("names: [cat, dog]\ntrain: /", "has no such folder"),
            ("names: [cat, dog]\ntrain: {a: b}", "train should be a folder"),
            ("just text", "needs the keys"),
            ("a: [", "is not YAML"),
        ],
    )
    def test_yaml_file_is_named(self, tmp_path: Path, text: str, words: str) -> None:
        found = refused(tmp_path, three_splits() | {"data.yaml": text})
        assert words in found.message
        assert "data.yaml" in found.message

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"labels/train/9.txt": LINE}, "labels/train/9.txt: there is no picture for it"),
            ({"labels/train/2.txt": b"\xff\xfe\xff"}, "labels/train/2.txt is not UTF-8"),
            ({"images/train/2.png": b"x"}, "images/train/2.png is not a readable picture"),
            ({"images/val/12.png": uploads.picture(2)}, "is the same picture as"),
            ({"labels/test/21.txt": b""}, "the test split has no box that counts"),
        ],
    )
    def test_file_is_named(self, tmp_path: Path, files: Files, words: str) -> None:
        assert words in refused(tmp_path, three_splits() | files).message

    def test_archive_without_yaml_file_is_told_the_layout(self, tmp_path: Path) -> None:
        found = refused(tmp_path, pictures("images/train", 1))
        assert found.refusal == "unsupported_format"
        assert "data.yaml" in found.message

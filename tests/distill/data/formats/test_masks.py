"""Archives of pictures and masks become segmentation data; every fault is named with its file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset

Files = dict[str, bytes | str]


def values(first: int = 0, *, size: tuple[int, int] = (20, 30)) -> NDArray[np.uint8]:
    """Class numbers 0 and 1, and a row of none."""
    found = (np.arange(size[0] * size[1]) + first).reshape(size) % 2
    found[0] = 255
    return found.astype(np.uint8)


def three_splits() -> Files:
    files: Files = {"classes.txt": "background\ncat\n\n"}
    for name, first in (("train", 1), ("val", 11), ("test", 21)):
        for key in (first, first + 1):
            files[f"images/{name}/{key}.png"] = uploads.picture(key)
            files[f"masks/{name}/{key}.png"] = uploads.png(values(key))
    return files


def convert(tmp_path: Path, files: Files, **hints: Any) -> dataset.DatasetRecord:
    uploads.archive(tmp_path, files)
    return uploads.convert("masks", tmp_path, task="segmentation", **hints)


def refused(tmp_path: Path, files: Files) -> errors.UploadRefused:
    return uploads.refused("masks", tmp_path, files, task="segmentation")


def first_mask(tmp_path: Path) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = dataset.load(tmp_path / "dataset").split("train").labels[0].numpy()
    return found


class TestConvert:
    def test_masks_keep_their_numbers(self, tmp_path: Path) -> None:
        record = convert(tmp_path, three_splits())
        assert (record.task, record.classes) == ("segmentation", ["background", "cat"])
        assert record.splits == {"train": 2, "validation": 2, "test": 2}
        assert (record.notes, record.boxes) == ([], None)
        assert (first_mask(tmp_path) == values(1)).all()

    def test_folders_without_splits_are_for_training(self, tmp_path: Path) -> None:
        files: Files = {"x/classes.txt": "a\nb"}
        files |= {f"x/images/{key}.png": uploads.picture(key) for key in range(5)}
        files |= {f"x/masks/{key}.png": uploads.png(values()) for key in range(5)}
        record = convert(tmp_path, files)
        assert record.splits == {"train": 3, "validation": 1, "test": 1}
        assert "at random" in record.notes[0]

    @pytest.mark.parametrize(
        "content",
        [
            uploads.png(values(1) % 2, mode="P"),
            uploads.png(values(1) % 2, mode="P", bits=1),
            uploads.png(values(1).astype(np.uint16) % 2),
            uploads.png((values(1) % 2).astype(bool)),
        ],
    )
    def test_palettes_deep_and_flat_ones_are_numbers(self, tmp_path: Path, content: bytes) -> None:
        convert(tmp_path, three_splits() | {"masks/train/1.png": content})
        assert (first_mask(tmp_path) == values(1) % 2).all()

    def test_pictures_are_scaled_smoothly_and_masks_by_the_nearest(self, tmp_path: Path) -> None:
        mask = np.zeros((20, 60), dtype=np.uint8)
        mask[:, 30:] = 1
        files = three_splits() | {
            "images/train/1.png": uploads.picture(1, size=(20, 60)),
            "masks/train/1.png": uploads.png(mask),
        }
        record = convert(tmp_path, files, height=20, width=30)
        found = first_mask(tmp_path)
        assert (found[:10] == mask[::2, ::2]).all()
        assert (found[10:] == 255).all()
        assert "1 of 6 pictures were scaled to fit into 20x30 (height x width)" in record.notes

    def test_picture_lies_as_its_mask(self, tmp_path: Path) -> None:
        files = three_splits()
        files["images/train/1.png"] = uploads.picture(1, turned=6)
        assert convert(tmp_path, files).input.height == 20
        files["masks/train/1.png"] = uploads.png(values(size=(30, 20)))
        (tmp_path / "again").mkdir()
        assert convert(tmp_path / "again", files).input.height == 30

    def test_class_without_a_pixel_is_told(self, tmp_path: Path) -> None:
        record = convert(tmp_path, three_splits() | {"classes.txt": "a\nb\nc"})
        assert record.notes == ["1 classes have no training pixels: c"]


class TestRefused:
    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"masks/train/1.png": uploads.picture(0)}, "train/1.png has pixels of mode RGB"),
            (
                {"masks/train/1.png": uploads.png(values(size=(20, 31)))},
                "says 20x31",
            ),
            (
                {"masks/train/1.png": uploads.png(values() + 2)},
                "up to 3, but there are 2 classes",
            ),
            (
                {"masks/train/1.png": uploads.png(values().astype(np.uint16) * 300)},
                "masks hold at most 255 classes",
            ),
            ({"masks/train/1.png": b"x"}, "masks/train/1.png is not a readable picture"),
            ({"masks/train/1.png": uploads.png(values())[:50]}, "not a readable picture"),
            ({"masks/train/9.png": uploads.png(values())}, "9.png: there is no picture of that"),
            ({"images/train/9.png": uploads.picture(9)}, "images/train/9.png has no mask"),
            ({"images/train/1.bmp": uploads.picture(9)}, "1.png has the name of images/train/1"),
            ({"images/val/11.png": uploads.picture(1)}, "is the same picture as"),
            ({"images/val/11.png": b"x"}, "images/val/11.png is not a readable picture"),
            ({"classes.txt": "a\na"}, "'a' is the name of classes 0 and 1"),
            ({"classes.txt": ""}, "classes.txt names no classes"),
            ({"classes.txt": "a\n\nb"}, "class 1 has no name"),
            ({"classes.txt": "\n".join(map(str, range(256)))}, "has 256 classes, but masks hold"),
            ({"images/new/1.png": b"", "images/valid/1.png": b""}, "are the same split"),
        ],
    )
    def test_file_is_named(self, tmp_path: Path, files: Files, words: str) -> None:
        assert words in refused(tmp_path, three_splits() | files).message

    def test_split_without_a_class_is_named(self, tmp_path: Path) -> None:
        empty = uploads.png(np.full((20, 30), 255, dtype=np.uint8))
        files = three_splits() | {"masks/test/21.png": empty, "masks/test/22.png": empty}
        assert "no pixel of the test split has a class" in refused(tmp_path, files).message

    def test_splits_have_to_be_the_same(self, tmp_path: Path) -> None:
        files = {name: text for name, text in three_splits().items() if "masks/test" not in name}
        assert "masks has train, validation" in refused(tmp_path, files).message

    @pytest.mark.parametrize("missing", ["classes.txt", "masks", "images"])
    def test_other_layouts_are_told_this_one(self, tmp_path: Path, missing: str) -> None:
        files = {name: text for name, text in three_splits().items() if missing not in name}
        assert "classes.txt" in refused(tmp_path, files).message

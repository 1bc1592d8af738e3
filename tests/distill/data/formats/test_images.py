"""Pictures of which none, or some, have a class become a prepared data set."""

from pathlib import Path

import pytest

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.data.dataset import UNLABELLED
from workers.distill.data.formats.upload import Upload


def pictures(prefix: str, values: range) -> dict[str, bytes | str]:
    return {f"{prefix}{value}.png": uploads.picture(value) for value in values}


def labels_by_value(workdir: Path, split: str) -> dict[int, int]:
    """Return the label of each picture of a split by its grey value, which is its number."""
    read = dataset.load(workdir / "dataset").split(split)
    return dict(zip(read.images[:, 0, 0, 0].tolist(), read.labels.tolist(), strict=True))


class TestConvert:
    def test_without_any_class(self, tmp_path: Path) -> None:
        uploads.archive(tmp_path, pictures("a/b/", range(20)))
        record = uploads.convert("images", tmp_path)
        assert record.classes == []
        assert record.labelled == {"train": 0, "validation": 0, "test": 0}
        assert record.splits == {"train": 14, "validation": 2, "test": 4}
        assert any("were set aside for it, at random" in note for note in record.notes)
        assert "images without a label: 14 of 14 in train, 2 of 2 in" in record.notes[-1]
        assert set(labels_by_value(tmp_path, "train").values()) == {UNLABELLED}

    def test_folders_named_for_splits_are_splits(self, tmp_path: Path) -> None:
        files = {**pictures("set/train/x/", range(6)), **pictures("set/test/", range(6, 9))}
        uploads.archive(tmp_path, {**files, **pictures("set/val/", range(9, 11))})
        record = uploads.convert("images", tmp_path)
        assert record.splits == {"train": 6, "validation": 2, "test": 3}

    def test_a_table_gives_the_classes_of_some(self, tmp_path: Path) -> None:
        rows = [f"{value},{'ab'[value % 2]}" for value in range(20)]
        table = {"labels.csv": "\n".join(["file,label", *rows])}
        uploads.archive(tmp_path, {**pictures("i/", range(50)), **table})
        record = uploads.convert("images", tmp_path)
        assert record.classes == ["a", "b"]
        assert record.splits == {"train": 44, "validation": 2, "test": 4}
        assert record.labelled == {"train": 14, "validation": 2, "test": 4}
        assert "2 of the 20 training images with a label were set aside" in " ".join(record.notes)
        train = labels_by_value(tmp_path, "train")
        assert all(train[value] == UNLABELLED for value in range(20, 50))
        assert all(train[value] == value % 2 for value in train if value < 20)

    def test_class_folders_beside_a_folder_without_labels(self, tmp_path: Path) -> None:
        files = {
            **pictures("train/cat/", range(8)),
            **pictures("train/dog/", range(8, 16)),
            **pictures("train/unlabeled/", range(16, 30)),
            **pictures("test/cat/", range(30, 32)),
            **pictures("test/dog/", range(32, 34)),
            **pictures("test/", range(34, 37)),
        }
        uploads.archive(tmp_path, files)
        record = uploads.convert("images", tmp_path)
        assert record.classes == ["cat", "dog"]
        assert record.labelled is not None
        assert record.splits["train"] - record.labelled["train"] == 14
        assert record.splits["test"] == record.labelled["test"] == 4
        assert any(
            note.startswith("3 pictures of validation and test without a label were left out")
            for note in record.notes
        )
        assert labels_by_value(tmp_path, "test") == {30: 0, 31: 0, 32: 1, 33: 1}

    def test_without_pictures(self, tmp_path: Path) -> None:
        refusal = uploads.refused("images", tmp_path, {"a/notes.txt": b"x"}, task="classification")
        assert refusal.refusal == "no_images"
        assert "no pictures, but 1 ending in .txt; pictures end in .avif" in refusal.message

    def test_without_pictures_to_train_on(self, tmp_path: Path) -> None:
        files = pictures("test/", range(4))
        refusal = uploads.refused("images", tmp_path, files, task="classification")
        assert (refusal.refusal, "none is to train on" in refusal.message) == ("no_images", True)


def test_is_offered_where_nothing_is_recognised(tmp_path: Path) -> None:
    uploads.archive(tmp_path, pictures("", range(4)))
    upload = Upload(tmp_path / "upload", tmp_path / "scratch")
    with pytest.raises(errors.UploadRefused, match="register it again with the format images"):
        uploads.recognised(upload)

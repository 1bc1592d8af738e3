"""Pictures whose classes stand in a table become a prepared data set."""

from pathlib import Path
from typing import Any

import pytest

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset


def flat(prefix: str, count: int = 12, suffix: str = ".png") -> dict[str, bytes | str]:
    return {f"{prefix}{number}{suffix}": uploads.picture(number) for number in range(count)}


def table(head: str, row: str, count: int = 12) -> str:
    names = ("pug", "boxer")
    rows = [row.format(n=n, breed=names[n % 2], one=n % 2, other=1 - n % 2) for n in range(count)]
    return "\n".join([head, *rows]) + "\n"


def convert(tmp_path: Path, files: dict[str, bytes | str], **hints: Any) -> dataset.DatasetRecord:
    uploads.archive(tmp_path, files)
    return uploads.convert("csv", tmp_path, **hints)


class TestConvert:
    @pytest.mark.parametrize(
        ("head", "row", "folder"),
        [
            ("id,breed", "{n},{breed}", "train/"),
            ("image_id,label", "{n}.png,{breed}", "train_images/"),
            ("x;Class;path", "9;{breed};a\\b\\{n}.png", "a/b/"),
            ("file\tweird", "./{n}.png\t{breed}", ""),
            ("image,pug,boxer", "{n},{other}.0,{one}.0", "images/"),
        ],
    )
    def test_columns_are_found(self, tmp_path: Path, head: str, row: str, folder: str) -> None:
        files = {**flat(f"kaggle/{folder}"), "kaggle/labels.csv": table(head, row)}
        record = convert(tmp_path, files)
        assert record.classes == ["boxer", "pug"]
        assert record.notes[0].startswith("classes were read from 'kaggle/labels.csv', column")
        for name in dataset.SPLITS:
            split = dataset.load(tmp_path / "dataset").split(name)
            # The value of a picture is its number; odd ones are boxers.
            assert ((split.images[:, 0, 0, 0] % 2 == 1) == (split.labels == 0)).all()

    def test_numbers_that_name_pictures_too_are_labels(self, tmp_path: Path) -> None:
        files = {**flat("train/"), "train.csv": table("image_id,label", "{n}.png,{one}")}
        assert convert(tmp_path, files).classes == ["0", "1"]

    def test_tables_of_splits_and_without_classes(self, tmp_path: Path) -> None:
        files = {
            **flat("train/"),
            **flat("test/", 4),
            "train.csv": table("id,breed", "{n},{breed}"),
            "test.csv": table("id,breed", "{n},{breed}", 4),
            "sample_submission.csv": table("id,breed", "{n},{breed}", 4),
            "prices.csv": "a,b\n1,2\n",
            "odd/7.png": uploads.picture(7),
        }
        record = convert(tmp_path, files)
        assert record.splits == {"train": 11, "validation": 1, "test": 4}
        told = "the table {!r} was left out: it gives no classes of pictures"
        assert told.format("sample_submission.csv") in record.notes
        assert told.format("prices.csv") in record.notes
        told = "1 pictures have no class in any table and were left out; register the upload again"
        assert any(note.startswith(told) for note in record.notes)

    def test_column_of_splits(self, tmp_path: Path) -> None:
        rows = [f"{n}.png,{'ab'[n % 2]},{['train', 'val', 'test'][n % 3]}" for n in range(12)]
        files = {**flat("i/"), "t.csv": "\n".join(["file,label,split", *rows])}
        record = convert(tmp_path, files)
        assert record.splits == {"train": 4, "validation": 4, "test": 4}
        assert "column 'label', splits from column 'split'" in record.notes[0]

    def test_rows_without_pictures_are_told(self, tmp_path: Path) -> None:
        files = {**flat("i/", 10), "t.csv": table("file,label", "{n},{breed}")}
        note = "2 rows of tables name no picture and were left out: t.csv: '10', t.csv: '11'"
        assert note in convert(tmp_path, files).notes


class TestRefusedArchives:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("file,x,y\n0,1,2\n1,3,4\n", "no column called label or class, but x, y"),
            ("file,label\n0,a\n1,a\n", "fewer than two classes"),
            ("file,label\n0,a\n1,b\n0,b\n", "has the classes 'a' and 'b'"),
            ("file,label\nx,a\ny,b\n", "a 'csv' archive has pictures, and a table"),
        ],
    )
    def test_say_what_is_wrong(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(errors.UploadRefused, match=words):
            convert(tmp_path, {**flat("", 2), "t.csv": text})

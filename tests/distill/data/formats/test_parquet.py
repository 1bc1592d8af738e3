"""Parquet files of the Hub become a prepared data set."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.data.formats.upload import Upload


def parquet(
    labels: list[Any],
    *,
    first: int = 0,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    **more: list[Any],
) -> bytes:
    """Return a file whose pictures have the values `first`, `first` + 1, ..."""
    cells = [
        {"bytes": uploads.picture(first + index), "path": None} for index in range(len(labels))
    ]
    table = pa.table({columns[0]: cells, columns[1]: labels, **more})
    if names is not None:
        features = {columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def convert(workdir: Path, content: bytes | dict[str, bytes | str]) -> dataset.DatasetRecord:
    if isinstance(content, bytes):
        (workdir / "upload").write_bytes(content)
    else:
        uploads.archive(workdir, content)
    return uploads.convert("parquet", workdir)


class TestConvert:
    def test_file_alone_becomes_three_splits(self, tmp_path: Path) -> None:
        record = convert(tmp_path, parquet([0, 1] * 10, names=["cat", "dog"], id=[1] * 20))
        assert record.classes == ["cat", "dog"]
        assert record.splits == {"train": 14, "validation": 2, "test": 4}
        assert record.notes[0] == "columns that are not needed were left out: id"
        for name in dataset.SPLITS:
            split = dataset.load(tmp_path / "dataset").split(name)
            assert (split.images[:, 0, 0, 0] % 2 == split.labels).all()

    def test_parts_and_splits_of_an_archive(self, tmp_path: Path) -> None:
        files: dict[str, bytes | str] = {
            "d/data/train-00000-of-00002.parquet": parquet([0, 1] * 5),
            "d/data/train-00001-of-00002.parquet": parquet([0, 1] * 5, first=10),
            "d/data/validation-00000-of-00001.parquet": parquet([0, 1]),
            "d/data/test-00000-of-00001.parquet": parquet([-1] * 3),
            "d/README.md": "",
        }
        record = convert(tmp_path, files)
        assert record.splits == {"train": 16, "validation": 2, "test": 4}
        assert "the test split was left out: its pictures have no labels" in record.notes

    def test_labels_may_be_names_and_columns_have_other_names(self, tmp_path: Path) -> None:
        content = parquet(["b", "a"] * 10, columns=("img", "fine_label"))
        assert convert(tmp_path, content).classes == ["a", "b"]

    def test_is_recognised_alone(self, tmp_path: Path) -> None:
        (tmp_path / "upload").write_bytes(parquet([0, 1]))
        assert uploads.recognised(Upload(tmp_path / "upload", tmp_path / "scratch")) == "parquet"


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"PAR1 and nothing", "cannot be read as Parquet"),
            (parquet([0, 1], columns=("photo", "kind")), "has the columns photo, kind"),
            (parquet([0, 1], names=["cat"]), "the label 1 is none of the 1 classes"),
            (parquet([0, None]), "names or nothing in others"),
            (parquet([-1, -1]), "no training pictures with a label"),
            (parquet([0.5, 1.0]), "give a number or a name"),
            (parquet([10**9, 1]), "the highest label is 1000000000"),
        ],
    )
    def test_are_named(self, tmp_path: Path, content: bytes, words: str) -> None:
        with pytest.raises(errors.UploadRefused, match=words):
            convert(tmp_path, content)

    def test_with_links_instead_of_pictures_say_the_way_out(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        pq.write_table(pa.table({"image": ["http://x/1.png"], "label": [0]}), stream)
        with pytest.raises(errors.UploadRefused, match="embed the files"):
            convert(tmp_path, stream.getvalue())

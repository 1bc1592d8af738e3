"""A format is one file and one line: what the engine, the catalog and the service do follows."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.distill.data.formats import uploads
from workers import export_catalog
from workers.distill import errors
from workers.distill.config import formats as rules
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import catalog, conversion
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload
from workers.distill.inspection import uploads as inspection
from workers.distill.runtime import events


def recognise_toy(upload: Upload) -> None:
    """Raise `UploadRefused` unless the file begins with a digit and a space."""
    if not (upload.starts_with(b"0 ") or upload.starts_with(b"1 ")):
        raise errors.UploadRefused("unsupported_format", "no toy")


def convert_toy(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Read one grey image of 2x2 pixels a line, as `label p p p p`."""
    table: NDArray[np.uint8] = np.loadtxt(upload.path, dtype=np.uint8)
    images, labels = table[:, 1:].reshape(-1, 1, 2, 2), table[:, 0].astype(np.int64)
    return conversion.write_arrays(
        folder,
        {"train": (images, labels)},
        classes=["dark", "light"],
        flip=False,
        hints=hints,
        notes=upload.notes,
        task=task,
    )


TOY = Format(
    name="toy",
    title="text with one image a line",
    description="Each line is a label and four pixels.",
    tasks=("classification",),
    suffixes=(".txt",),
    recognise=recognise_toy,
    convert=convert_toy,
)


class TestTable:
    def test_names_each_format_as_the_format_does(self) -> None:
        assert {name: entry.name for name, entry in catalog.FORMATS.items()} == {
            name: name for name in catalog.FORMATS
        }

    def test_says_everything_that_callers_are_told(self) -> None:
        for entry in catalog.FORMATS.values():
            assert entry.tasks
            assert all(suffix.startswith(".") for suffix in entry.suffixes)
            assert entry.description.endswith(".")
            assert not entry.title.endswith(".")
            # A line of the client's generated module.
            assert len(f'    "{entry.name}": "{entry.title}",') <= 100


def an_upload(workdir: Path, files: dict[str, bytes | str]) -> Upload:
    uploads.archive(workdir, files)
    return Upload(workdir / "upload", workdir / "scratch")


CLASS_FOLDERS: dict[str, bytes | str] = {f"{name}/1.png": uploads.picture(1) for name in "ab"}
YOLO: dict[str, bytes | str] = {
    "data.yaml": "names: [a]\ntrain: images/train\n",
    "images/train/1.png": uploads.picture(1),
    "labels/train/1.txt": "0 0.5 0.5 0.5 0.5",
}
ARCHIVES: dict[str, dict[str, bytes | str]] = {
    "imagefolder": CLASS_FOLDERS,
    "cifar10": {"cifar-10-batches-py/data_batch_1": b"x", "cifar-10-batches-py/test_batch": b"x"},
    "cifar100": {"cifar-100-binary/train.bin": b"x"},
    "npz": {"x_train.npy": b"x", "y_train.npy": b"x"},
    "csv": {"labels.csv": "id,breed\n1,pug\n2,boxer", "1.jpg": b"x", "2.jpg": b"x"},
    "idx": {"MNIST/raw/train-images-idx3-ubyte.gz": b"x"},
    "parquet": {"data/train-00000-of-00001.parquet": b"x"},
    "coco": {"annotations/instances_train.json": "{}", "train/1.jpg": b"x"},
    "voc": {"VOC/JPEGImages/1.jpg": b"x", "VOC/Annotations/1.xml": "x"},
    "yolo": YOLO,
    "masks": {"images/train/1.png": b"x", "masks/train/1.png": b"x", "classes.txt": "a\nb"},
}


class TestChoose:
    def test_returns_a_format_that_can_hold_the_labels(self, tmp_path: Path) -> None:
        upload = an_upload(tmp_path, {})
        assert catalog.choose("npz", "segmentation", upload) is catalog.FORMATS["npz"]

    @pytest.mark.parametrize(
        ("name", "task"), [("none", "classification"), ("cifar10", "segmentation")]
    )
    def test_refuses_with_the_sentence_of_the_rule(
        self, tmp_path: Path, name: str, task: Task
    ) -> None:
        tasks = {key: entry.tasks for key, entry in catalog.FORMATS.items()}
        with pytest.raises(errors.UploadRefused) as caught:
            catalog.choose(name, task, an_upload(tmp_path, {}))
        assert caught.value.message == rules.refusal(name, task, tasks)
        assert caught.value.refusal == rules.CODE

    # Any archive of pictures has the layout of images, which has to be asked for.
    @pytest.mark.parametrize("name", [name for name in catalog.FORMATS if name != "images"])
    def test_recognises_each_format_and_says_so(self, tmp_path: Path, name: str) -> None:
        upload = an_upload(tmp_path, ARCHIVES[name])
        assert catalog.choose(rules.AUTO, catalog.FORMATS[name].tasks[0], upload).name == name
        assert upload.notes == [f"the format was recognised: {name}"]

    def test_refuses_what_could_be_two_formats_with_both_names(self, tmp_path: Path) -> None:
        upload = an_upload(tmp_path, {**YOLO, "JPEGImages/1.jpg": b"x"})
        with pytest.raises(errors.UploadRefused, match="could be voc and yolo"):
            catalog.choose(rules.AUTO, "detection", upload)

    def test_says_which_task_a_recognised_format_has(self, tmp_path: Path) -> None:
        with pytest.raises(errors.UploadRefused, match=r"as yolo, .* with task detection"):
            catalog.choose(rules.AUTO, "classification", an_upload(tmp_path, YOLO))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
            (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
            (b"\x80\x04K\x01.", "a pickle"),
        ],
    )
    def test_says_what_an_unknown_file_is(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "upload").write_bytes(content)
        upload = Upload(tmp_path / "upload", tmp_path / "scratch")
        with pytest.raises(errors.UploadRefused, match=words) as caught:
            catalog.choose(rules.AUTO, "classification", upload)
        assert ", ".join(catalog.FORMATS) in caught.value.message

    def test_says_of_an_unknown_archive_why_it_is_of_no_format(self, tmp_path: Path) -> None:
        with pytest.raises(errors.UploadRefused) as caught:
            catalog.choose(rules.AUTO, "classification", an_upload(tmp_path, {"a": "b"}))
        assert all(f"\n{name}: " in caught.value.message for name in catalog.FORMATS)


class TestToyFormat:
    @pytest.fixture(autouse=True)
    def added(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Add the one line."""
        monkeypatch.setitem(catalog.FORMATS, TOY.name, TOY)

    def test_is_inspected(self, tmp_path: Path) -> None:
        rows = [f"{index % 2} {' '.join([str(255 * (index % 2))] * 4)}" for index in range(20)]
        (tmp_path / "upload").write_text("\n".join(rows))
        request = {"kind": "dataset"}
        (tmp_path / "request.json").write_text(json.dumps(request))
        with (tmp_path / "lines").open("wb") as stream:
            reporter = events.Reporter(stream.fileno())
            assert inspection.execute(tmp_path / "request.json", tmp_path, reporter) == 0
        assert dataset.load(tmp_path / "dataset").split("train").images.shape == (14, 1, 2, 2)

    def test_is_published(self) -> None:
        *_, entry = catalog.describe()
        assert entry["name"] == "toy"
        assert '    "toy": "text with one image a line",\n' in export_catalog.client_formats(
            [entry]
        )
        assert "## toy: text with one image a line\n" in export_catalog.formats_page([entry])

"""A format is one file and one line: what the engine, the catalog and the service do follows."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from workers import export_catalog
from workers.distill import errors, inspection
from workers.distill.config import formats as rules
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import catalog, conversion
from workers.distill.data.formats.base import Format
from workers.distill.runtime import events


def convert_toy(
    upload: Path, _scratch: Path, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Read one grey image of 2x2 pixels a line, as `label p p p p`."""
    table: NDArray[np.uint8] = np.loadtxt(upload, dtype=np.uint8)
    images, labels = table[:, 1:].reshape(-1, 1, 2, 2), table[:, 0].astype(np.int64)
    return conversion.write_arrays(
        folder,
        {"train": (images, labels)},
        classes=["dark", "light"],
        flip=False,
        hints=hints,
        task=task,
    )


TOY = Format(
    name="toy",
    title="text with one image a line",
    description="Each line is a label and four pixels.",
    tasks=("classification",),
    suffixes=(".txt",),
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


class TestChoose:
    def test_returns_a_format_that_can_hold_the_labels(self) -> None:
        assert catalog.choose("npz", "segmentation") is catalog.FORMATS["npz"]

    @pytest.mark.parametrize(
        ("name", "task"), [("none", "classification"), ("cifar10", "segmentation")]
    )
    def test_refuses_with_the_sentence_of_the_rule(self, name: str, task: Task) -> None:
        tasks = {key: entry.tasks for key, entry in catalog.FORMATS.items()}
        with pytest.raises(errors.UploadRefused) as caught:
            catalog.choose(name, task)
        assert caught.value.message == rules.refusal(name, task, tasks)
        assert caught.value.refusal == rules.CODE


class TestToyFormat:
    @pytest.fixture(autouse=True)
    def added(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Add the one line."""
        monkeypatch.setitem(catalog.FORMATS, TOY.name, TOY)

    def test_is_inspected(self, tmp_path: Path) -> None:
        rows = [f"{index % 2} {' '.join([str(255 * (index % 2))] * 4)}" for index in range(20)]
        (tmp_path / "upload").write_text("\n".join(rows))
        request = {"kind": "dataset", "format": "toy"}
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

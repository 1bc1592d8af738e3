"""A few labelled images of a built-in data set, with the splits by which all are measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from workers.distill.data import few_labels
from workers.distill.data.builtin import digits


def test_are_drawn_class_by_class_and_measured_as_all(tmp_path: Path) -> None:
    record = few_labels.write("digits", 100, tmp_path / "few.npz")
    assert record.splits["train"] == 1257
    _, whole = digits.prepare()
    with np.load(tmp_path / "few.npz") as few:
        assert np.bincount(few["y_train"]).min() >= 9
        assert few["x_train"].shape == (100, 1, 8, 8)
        assert (few["x_test"] == whole["test"][0].numpy()).all()
        assert (few["y_val"] == whole["validation"][1].numpy()).all()
        known = {image.tobytes() for image in whole["train"][0].numpy()}
        assert all(image.tobytes() in known for image in few["x_train"])


def test_program_tells_the_input_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["digits", "--labels", "20", "--output", str(tmp_path / "few.npz")]
    assert few_labels.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["input"]["mean"] == [0.305338]


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("digits", 9, "labels must be 10 to 1257, got 9"),
        ("digits", 1258, "labels must be 10 to 1257, got 1258"),
        ("cats", 10, "no built-in data set 'cats'"),
    ],
)
def test_that_cannot_be_had_are_refused(tmp_path: Path, name: str, labels: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        few_labels.write(name, labels, tmp_path / "few.npz")

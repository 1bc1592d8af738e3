"""A whole run of segmentation tells what its classes weighed, and a student of one class."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.distill import folders
from workers.distill.config.job import Input
from workers.distill.data import dataset

SIDE = 16
INPUT = {"channels": 1, "height": SIDE, "width": SIDE, "mean": [0.3], "std": [0.3]}
COUNTS = {"train": 4, "validation": 2, "test": 2}


def prepare(workdir: Path, **training: Any) -> Path:
    """Write a folder of grey images with a twentieth of another class, and return its recipe."""
    record = dataset.DatasetRecord(
        task="segmentation",
        classes=["ground", "cat"],
        splits=COUNTS,
        input=Input.model_validate(INPUT),
    )
    splits = {}
    for name, count in COUNTS.items():
        masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
        masks[:, 0, :13] = 1
        splits[name] = (torch.full((count, 1, SIDE, SIDE), 90, dtype=torch.uint8), masks)
    dataset.write(workdir / "dataset", record, splits)
    student = {"network": "retort/fcn", "classes": 2, "input": INPUT}
    recipe = {
        "task": "segmentation",
        "student": {**student, "arguments": {}},
        "method": {"name": "ce"},
        "training": {"epochs": 2, "batch_size": 4, "augmentation": "none", **training},
        "report": False,
        "accelerator": "cpu",
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


class TestClassWeights:
    def test_are_told_with_the_result(self, tmp_path: Path) -> None:
        code, lines = folders.run_here(prepare(tmp_path, class_weights="auto"))
        assert code == 0, lines[-1]
        told = lines[-1]["class_weights"]
        assert list(told) == ["ground", "cat"]
        assert told["cat"] > 5 * told["ground"] > 5
        assert json.loads((tmp_path / "model.json").read_text())["training"]["class_weights"] == (
            "auto"
        )

    def test_that_were_not_asked_for_are_not_told(self, tmp_path: Path) -> None:
        # At this rate the second step drives every pixel to the commonest class.
        training = {"optimizer": {"learning_rate": 1.0}, "epochs": 4}
        code, lines = folders.run_here(prepare(tmp_path, **training))
        assert code == 0, lines[-1]
        assert "class_weights" not in lines[-1]
        (told,) = [w for w in lines[-1]["warnings"] if w["code"] == "one_class_predicted"]
        assert told["message"].startswith("the student takes 100.0% of the pixels for 'ground'")

    def test_have_to_be_as_many_as_classes(self, tmp_path: Path) -> None:
        code, lines = folders.run_here(prepare(tmp_path, class_weights=[1, 2, 3]))
        assert code != 0
        assert (
            "one number for each class of the data set (2), in its order, got 3"
            in (lines[-1]["message"])
        )

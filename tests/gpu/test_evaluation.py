"""Scores, sizes and pictures of a run on the device are those of the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from tests.distill.synthesis import test_segmentation
from tests.gpu import scenes
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.networks import weights

pytestmark = pytest.mark.gpu

BUDGET = {**test_segmentation.BUDGET, "steps": 2, "student_steps": 2}


def dense(workdir: Path, accelerator: str) -> Path:
    """Write the folder of a dense job without data, and return the path of its recipe."""
    record = dataset.DatasetRecord(
        task="segmentation",
        classes=["across", "upright"],
        splits=test_segmentation.COUNTS,
        input=Input.model_validate(test_segmentation.INPUT),
    )
    sizes = test_segmentation.COUNTS
    splits = {name: test_segmentation.shapes(sizes[name], len(name)) for name in sizes}
    dataset.write(workdir / "dataset", record, splits)
    (workdir / "teacher").mkdir()
    weights.save_student(
        workdir / "teacher" / "model.safetensors",
        test_segmentation.trained_teacher(),
        {"format": "pt"},
    )
    recipe: dict[str, Any] = {
        "version": 1,
        "task": "segmentation",
        "teacher": test_segmentation.choice(test_segmentation.TEACHER),
        "student": test_segmentation.choice(test_segmentation.STUDENT),
        "method": {"name": "noise", "synthesis": BUDGET},
        "training": {**scenes.TRAINING, "batch_size": 16},
        "report": True,
        "accelerator": accelerator,
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


class TestEvaluation:
    def test_other_sizes_are_scored_as_on_the_cpu(self, tmp_path: Path) -> None:
        outcome, expected = scenes.on_both(
            tmp_path, training={**scenes.TRAINING, "evaluate_sizes": [12]}
        )
        one, other = (ended.result["scores_by_size"][0]["scores"] for ended in (outcome, expected))
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.1)

    def test_scores_and_report_are_those_of_the_cpu(self, tmp_path: Path) -> None:
        outcome, expected = scenes.on_both(tmp_path, report=True, baseline=True)
        assert folders.of_type(outcome.lines, "warning") == []
        one, other = outcome.result, expected.result
        assert one["files"] == other["files"]
        assert all((outcome.workdir / file["path"]).exists() for file in one["files"])
        assert one["parameters"] == other["parameters"]
        assert one["flops"] == other["flops"]
        assert one["latency_ms"]["student"] > 0
        assert 0 < one["floor_share"] <= 1
        assert one["scores"].keys() == other["scores"].keys()
        for name, scores in one["scores"].items():
            for key in ("ece", "loss", "samples"):
                assert scores[key] == pytest.approx(other["scores"][name][key], rel=1e-2), name
            # One image of twenty may lie on the border between two classes.
            assert scores["accuracy"] == pytest.approx(other["scores"][name]["accuracy"], abs=0.051)

    def test_validation_is_that_of_the_cpu(self, tmp_path: Path) -> None:
        histories = []
        for outcome in scenes.on_both(tmp_path):
            metrics = json.loads((outcome.workdir / "metrics.json").read_text())
            histories.append(metrics["history"]["student"][-1])
        assert histories[0].keys() == histories[1].keys()
        for key in ("validation/loss", "validation/cka", "loss/total"):
            assert histories[0][key] == pytest.approx(histories[1][key], rel=1e-2), key

    def test_dense_networks_are_scored_as_on_the_cpu(self, tmp_path: Path) -> None:
        outcome = scenes.run(dense(tmp_path / "device", scenes.DEVICE), on_device=True)
        expected = scenes.run(dense(tmp_path / "cpu", "cpu"), on_device=False)
        assert folders.of_type(outcome.lines, "warning") == []
        teacher, other = (one.result["scores"]["teacher"] for one in (outcome, expected))
        assert teacher["pixels"] == other["pixels"]
        for key in ("accuracy", "miou"):
            assert teacher[key] == pytest.approx(other[key], abs=5e-3)
        assert (
            outcome.result["scores"]["student"].keys()
            == expected.result["scores"]["student"].keys()
        )

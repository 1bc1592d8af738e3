"""What images without labels count for in a run, and what students are scored by."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distill import folders
from workers.distill.data import dataset
from workers.distill.data.dataset import UNLABELLED

PARTLY = {"train": 9}
NONE = {"train": 0, "validation": 0, "test": 0}


def keep_labels(workdir: Path, kept: dict[str, int]) -> None:
    """Take the labels of a prepared set away, but for the first so many of some splits."""
    stored = dataset.load(workdir / "dataset")
    splits, labelled = {}, {}
    for name in dataset.SPLITS:
        content = stored.split(name)
        labels = content.labels.clone()
        labelled[name] = kept.get(name, len(labels))
        labels[labelled[name] :] = UNLABELLED
        splits[name] = (content.images.clone(), labels)
    changes: dict[str, Any] = {"labelled": labelled}
    if not any(labelled.values()):
        changes["classes"] = []
    dataset.write(workdir / "dataset", stored.record.model_copy(update=changes), splits)


def run(
    workdir: Path, kept: dict[str, int], **changes: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run a recipe on a set with few labels; return its last line, and its warnings by code."""
    recipe = folders.prepare(workdir, **{"method": {"name": "kd"}, **changes})
    keep_labels(workdir, kept)
    _, lines = folders.run_here(recipe)
    warnings = {line["code"]: line["message"] for line in folders.of_type(lines, "warning")}
    return lines[-1], warnings


class TestSomeLabels:
    def test_the_task_counts_the_labelled_alone(self, tmp_path: Path) -> None:
        result, warnings = run(tmp_path, PARTLY, baseline=True)
        assert result["labels"] == {
            "labelled": 9,
            "pseudo": 0,
            "unlabelled": 32,
            "left_out": {"validation": 0, "test": 0},
            "scored_by": {"validation": "labels", "test": "labels"},
        }
        assert result["scores"]["baseline"]["samples"] == 20
        assert "scored_by_teacher" not in warnings

    def test_pseudo_labels_are_the_teachers_and_not_the_baselines(self, tmp_path: Path) -> None:
        plain, _ = run(tmp_path / "plain", PARTLY, baseline=True)
        pseudo = {"pseudo_labels": {"threshold": 0}}
        result, _ = run(
            tmp_path / "pseudo", PARTLY, baseline=True, method={"name": "dkd"}, training=pseudo
        )
        assert (result["labels"]["pseudo"], result["labels"]["unlabelled"]) == (32, 0)
        assert result["scores"]["baseline"] == plain["scores"]["baseline"]

    def test_of_which_the_teacher_is_not_sure_stay_without(self, tmp_path: Path) -> None:
        result, _ = run(tmp_path, PARTLY, training={"pseudo_labels": {"threshold": 1}})
        assert (result["labels"]["pseudo"], result["labels"]["unlabelled"]) == (0, 32)

    def test_images_without_a_label_are_not_scored(self, tmp_path: Path) -> None:
        result, _ = run(tmp_path, {"train": 9, "validation": 6, "test": 15})
        assert result["labels"]["left_out"] == {"validation": 6, "test": 5}
        assert result["scores"]["student"]["samples"] == 15

    def test_a_method_that_needs_all_labels_is_refused(self, tmp_path: Path) -> None:
        failure, _ = run(tmp_path, PARTLY, method={"name": "dkd"})
        assert failure["type"] == "failure"
        assert "32 of the 41 training images have no label" in failure["message"]


class TestNoLabels:
    def test_the_teacher_names_the_classes_and_scores(self, tmp_path: Path) -> None:
        named = folders.network(class_names=["a", "b", "c"])
        result, warnings = run(
            tmp_path,
            NONE,
            teacher=named,
            baseline=True,
            method={"name": "at"},  # whose gradient is balanced where there are labels
        )
        scores = result["scores"]
        assert scores["teacher"]["accuracy"] == 1
        assert scores["student"]["accuracy"] == scores["student"]["agreement"]
        assert scores["baseline"] is None
        assert warnings.keys() >= {"scored_by_teacher", "no_baseline"}
        assert result["labels"]["scored_by"] == {"validation": "teacher", "test": "teacher"}
        assert "balance" not in result
        assert result["conclusion"].startswith("The student agrees with its teacher on ")
        assert json.loads((tmp_path / "model.json").read_text())["classes"] == ["a", "b", "c"]

    def test_labels_alone_teach_nothing(self, tmp_path: Path) -> None:
        failure, _ = run(tmp_path, {"train": 0}, teacher=None, method={"name": "ce"})
        assert "method ce learns from labels alone" in failure["message"]

    def test_without_a_teacher_nothing_is_scored(self, tmp_path: Path) -> None:
        failure, _ = run(tmp_path, {"test": 0}, teacher=None, method={"name": "ce"})
        assert "no image of the test split has a label" in failure["message"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_counts_that_are_not_as_recorded_are_refused(tmp_path: Path, split: str) -> None:
    recipe = folders.prepare(tmp_path, method={"name": "kd"})
    keep_labels(tmp_path, PARTLY)
    path = tmp_path / "dataset" / dataset.RECORD_FILE
    record = json.loads(path.read_text())
    record["labelled"][split] += 1
    path.write_text(json.dumps(record))
    _, lines = folders.run_here(recipe)
    assert f"labels of the {split} split are classes" in lines[-1]["message"]

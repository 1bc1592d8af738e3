import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distill import folders
from tests.distill.functional.test_detection_metrics import TINY
from tests.distill.reporting.test_examples_report import some_examples
from workers.distill.evaluation import embedding
from workers.distill.functional.detection_metrics import Detections
from workers.distill.reporting import report_folder, synthesis_report
from workers.distill.tasks.catalog import TASKS
from workers.distill.tasks.classification import confusion

RANDOM = np.random.default_rng(0)
PICTURES = {"losses", "accuracy", "cka", "confusion", "calibration", "correlation", "tsne", "pca"}


def evidence(classes: int = 3, images: int = 12, **changes: Any) -> report_folder.Evidence:
    """Return made-up outputs of a teacher and a student."""
    labels = np.arange(images) % classes
    mapped = embedding.images_to_map(labels)
    outputs = {
        name: report_folder.Outputs(
            RANDOM.normal(size=(images, classes)).astype(np.float32),
            RANDOM.normal(size=(len(mapped), 4)).astype(np.float32),
        )
        for name in ("teacher", "student")
    }
    history = [{"epoch": 1, "validation/accuracy": 0.5, "train/accuracy": 0.4, "loss/total": 1.0}]
    outputs = changes.get("outputs", outputs)
    facts: dict[str, Any] = {
        "topics": TASKS["classification"].report_topics,
        "unit": "images",
        "primary_metric": "accuracy",
        "classes": [f"class {number}" for number in range(classes)],
        "networks": list(outputs),
        "test_images": images,
        "confusions": {
            name: confusion(torch.from_numpy(one.logits), torch.from_numpy(labels)).numpy()
            for name, one in outputs.items()
        },
        "labels": labels,
        "mapped": mapped,
        "outputs": outputs,
        "histories": {"student": history},
        "best_epochs": {"student": 1},
        "teacher_score": 0.75,
    }
    return report_folder.Evidence(**{**facts, **changes})


def synthesis(**changes: Any) -> synthesis_report.SynthesisEvidence:
    """Return what is told of a job that kept no snapshot of its buffer."""
    facts: dict[str, Any] = {
        "method": "fast",
        "snapshots": [],
        "synthesis_seconds": [2.0],
        "distillation_seconds": [3.0],
        "images": 64,
        "calls": 2,
        "training_images_read": 0,
    }
    return synthesis_report.SynthesisEvidence(**{**facts, **changes})


def without_test(**changes: Any) -> report_folder.Evidence:
    """Return what a job without any data set leaves."""
    nothing = np.zeros(0, np.int64)
    facts: dict[str, Any] = {
        "labels": nothing,
        "mapped": nothing,
        "outputs": {},
        "confusions": {},
        "test_images": 0,
        "histories": {"student": [{"epoch": 1, "loss/total": 1.0}]},
        "teacher_score": None,
    }
    return evidence(**{**facts, **changes})


def named(content: report_folder.Evidence) -> dict[str, report_folder.Topic]:
    return {topic.name: topic for topic in report_folder.topics(content)}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run with teacher and baseline that makes a report."""
    workdir = tmp_path_factory.mktemp("reported")
    training = {"epochs": 2, "batch_size": 8}
    recipe = folders.prepare(workdir, report=True, baseline=True, training=training)
    code, lines = folders.run_here(recipe)
    assert code == 0
    return workdir, lines


@pytest.mark.slow
class TestRun:
    def test_lists_every_file_that_it_wrote(
        self, reported: tuple[Path, list[dict[str, Any]]]
    ) -> None:
        workdir, lines = reported
        warned = {told["code"] for told in folders.of_type(lines, "warning")}
        assert warned <= {"teacher_weak"}  # it was hardly trained
        listed = {file["path"] for file in lines[-1]["files"]}
        files = {f"report/{path.name}" for path in (workdir / "report").iterdir()}
        assert {path for path in listed if path.startswith("report/")} == files
        assert lines[-1]["report_seconds"] > 0
        index = json.loads((workdir / "report" / "index.json").read_text())
        pictures = [picture for topic in index["topics"] for picture in topic["pictures"]]
        assert {picture["files"][0].removesuffix(".png") for picture in pictures} == PICTURES
        named = {name for picture in pictures for name in picture["files"]}
        named |= {topic["numbers"] for topic in index["topics"]}
        assert {f"report/{name}" for name in named} == files - {"report/index.json"}
        assert all(picture["about"].endswith(".") for picture in pictures)

    def test_agrees_with_the_scores(self, reported: tuple[Path, list[dict[str, Any]]]) -> None:
        workdir, lines = reported
        scores = lines[-1]["scores"]
        folder = workdir / "report"
        confusion = json.loads((folder / "confusion.json").read_text())["networks"]
        bins = json.loads((folder / "calibration.json").read_text())["networks"]
        for name in ("teacher", "student", "baseline"):
            right = sum(images for true, said, images in confusion[name] if true == said)
            assert right / 20 == scores[name]["accuracy"]
            assert sum(bins[name]["counts"]) == 20
            error = bins[name]["expected_calibration_error"]
            assert error == pytest.approx(scores[name]["ece"], abs=2e-6)

    def test_changes_nothing_of_the_student(
        self, reported: tuple[Path, list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        training = {"epochs": 2, "batch_size": 8}
        recipe = folders.prepare(tmp_path, report=False, baseline=True, training=training)
        _, lines = folders.run_here(recipe)
        assert lines[-1]["scores"] == reported[1][-1]["scores"]
        assert not (tmp_path / "report").exists()
        weights, others = (
            (folder / "student.safetensors").read_bytes() for folder in (tmp_path, reported[0])
        )
        assert weights == others

    def test_tells_of_a_report_that_cannot_be_written(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, report=True, method={"name": "ce"}, teacher=None)
        (tmp_path / "report.tmp").write_text("a file where the folder should be")
        code, lines = folders.run_here(recipe)
        assert code == 0
        assert [line["code"] for line in folders.of_type(lines, "warning")] == ["report_failed"]
        assert lines[-1]["scores"]["student"]["accuracy"] > 0


class TestWrite:
    @pytest.mark.slow
    def test_gives_the_same_files_again_and_leaves_no_others(self, tmp_path: Path) -> None:
        content = evidence()
        contents = []
        for _ in range(2):
            (tmp_path / "report").mkdir(exist_ok=True)
            (tmp_path / "report" / "left-over.png").write_text("")
            files = report_folder.write(tmp_path, content)
            contents.append({path: (tmp_path / path).read_bytes() for path in files})
        assert contents[0] == contents[1]
        assert "report/left-over.png" not in contents[0]

    def test_says_how_many_training_images_were_read(self, tmp_path: Path) -> None:
        files = report_folder.write(tmp_path, without_test(synthesis=synthesis()))
        folder = tmp_path / "report"
        index = json.loads((folder / "index.json").read_text())
        assert (index["training_images_read"], index["test_images"]) == (0, 0)
        assert index["networks"] == []
        assert {path.removeprefix("report/") for path in files} == {
            *("index.json", "curves.json", "synthesis.json"),
            *("losses.png", "losses.svg", "time-split.png", "time-split.svg"),
        }
        numbers = json.loads((folder / "synthesis.json").read_text())
        assert numbers["images_invented"] == 64
        seconds = numbers["seconds_until_the_end_of_each_epoch"]
        assert seconds == {"synthesis": [2.0], "distillation": [3.0]}


class TestTopics:
    def test_without_a_test_split_are_those_of_training(self) -> None:
        topics = named(without_test())
        assert set(topics) == {"curves"}
        assert set(topics["curves"].pictures) == {"losses"}
        assert set(named(without_test(synthesis=synthesis()))) == {"curves", "synthesis"}

    def test_of_synthetic_images_follow_agreement(self) -> None:
        history = [{"epoch": 1, "loss/total": 1.0, "train/agreement": 0.5}]
        topics = named(without_test(histories={"student": history}))
        assert set(topics["curves"].pictures) == {"losses", "agreement"}

    def test_of_a_balanced_method_follow_its_factor(self) -> None:
        history = [
            {"epoch": epoch, "loss/total": 1.0, "balance/ratio": 90.0, "balance/factor": 0.01}
            for epoch in (1, 2)
        ]
        picture, about = named(without_test(histories={"student": history}))["curves"].pictures[
            "balance"
        ]
        (axes,) = picture.axes
        assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
            [90.0, 90.0],
            [0.01, 0.01],
        ]
        assert "method.balance" in about

    def test_say_which_epoch_is_delivered(self) -> None:
        for summary, words in (
            (None, "The epoch with the highest"),
            (synthesis(), "The last epoch"),
        ):
            _, about = report_folder.curves(evidence(synthesis=summary)).pictures["accuracy"]
            assert about.startswith(words)
            assert "Train accuracy" in about

    def test_of_a_dense_task_follow_from_its_confusion(self) -> None:
        history = [
            {"epoch": 1, "loss/total": 1.0, "validation/accuracy": 0.5, "validation/miou": 0.3}
        ]
        student = np.array([[6, 2, 0], [4, 8, 0], [0, 0, 0]])
        confusions = {"teacher": np.diag([8, 12, 0]), "student": student}
        topics = named(
            without_test(
                topics=TASKS["segmentation"].report_topics,
                unit="pixels",
                primary_metric="miou",
                networks=list(confusions),
                histories={"student": history},
                confusions=confusions,
                test_images=5,
            )
        )
        assert set(topics) == {"curves", "confusion", "overlap"}
        pictures = topics["curves"].pictures
        assert set(pictures) == {"losses", "miou", "accuracy"}
        chosen = "The epoch with the highest validation mean IoU is delivered."
        assert pictures["miou"][1] == chosen
        assert pictures["accuracy"][1] == f"{chosen} Accuracy is the share of pixels."
        counted = topics["confusion"].numbers["networks"]["student"]
        assert counted == [[0, 0, 6], [0, 1, 2], [1, 0, 4], [1, 1, 8]]
        shares = topics["overlap"].numbers["networks"]
        assert shares["student"]["intersection_over_union"] == [0.5, round(8 / 14, 6), None]
        assert shares["student"]["mean"] == pytest.approx((0.5 + 8 / 14) / 2, abs=1e-6)
        assert shares["teacher"] == {"intersection_over_union": [1.0, 1.0, None], "mean": 1.0}

    def test_of_detection_are_boxes_and_examples(self) -> None:
        history = [{"epoch": 1, "loss/total": 1.0, "validation/ap": 0.5, "validation/ap50": 0.6}]
        found = named(
            without_test(
                topics=("detection", "examples"),
                unit="detections",
                primary_metric="ap",
                networks=["student"],
                histories={"student": history},
                detections={"student": Detections(TINY, 2)},
                examples=some_examples(),
                test_images=2,
            )
        )
        assert {name: set(topic.pictures) for name, topic in found.items()} == {
            "curves": {"losses", "ap"},
            "detection": {
                "precision-recall",
                "average-precision",
                "average-precision-by-size",
                "detection-errors",
            },
            "examples": {"examples"},
        }
        picture, about = found["curves"].pictures["ap"]
        assert picture.axes[0].get_title(loc="left") == "AP while training"
        assert about == "The epoch with the highest validation AP is delivered."

    def test_need_no_teacher(self) -> None:
        whole = evidence()
        alone = {"student": whole.outputs["student"]}
        topics = named(evidence(outputs=alone, teacher_score=None))
        assert set(topics) == {"curves", "confusion", "calibration", "embedding"}
        assert set(topics["curves"].pictures) == {"losses", "accuracy"}

    def test_need_no_map_of_a_handful_of_images(self) -> None:
        assert "embedding" not in named(evidence(images=4))

    def test_tell_of_the_errors_by_name(self) -> None:
        logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 1, 1, 0]]
        student = report_folder.Outputs(logits, RANDOM.normal(size=(6, 4)).astype(np.float32))
        numbers = named(evidence(images=6, outputs={"student": student}))["confusion"].numbers
        assert numbers["networks"]["student"] == [
            [0, 0, 1],
            [0, 1, 1],
            [1, 1, 2],
            [2, 0, 1],
            [2, 2, 1],
        ]
        assert numbers["students_most_frequent_errors"] == [
            ["class 0", "class 1", 1],
            ["class 2", "class 0", 1],
        ]

    def test_hold_the_correlations_of_the_logits(self) -> None:
        content = evidence()
        numbers = named(content)["correlation"].numbers
        logits = {name: outputs.logits for name, outputs in content.outputs.items()}
        expected = np.corrcoef(logits["student"], rowvar=False)
        np.testing.assert_allclose(numbers["matrices"]["student"], expected, atol=1e-6)
        difference = np.abs(expected - np.corrcoef(logits["teacher"], rowvar=False))
        mean = numbers["mean_size_of_difference"]["student"]
        assert mean == pytest.approx(difference.mean(), abs=1e-5)
        first, second, size = numbers["largest_differences"]["student"][0]
        assert abs(size) == pytest.approx(difference.max(), abs=1e-5)
        assert first != second

    @pytest.mark.slow
    def test_of_a_thousand_classes_leave_out_what_nobody_reads(self) -> None:
        topics = named(evidence(classes=1200, images=2400))
        assert topics["correlation"].numbers["matrices"] is None
        assert len(topics["correlation"].numbers["classes"]) == 1000
        assert len(topics["confusion"].numbers["networks"]["student"]) <= 2400

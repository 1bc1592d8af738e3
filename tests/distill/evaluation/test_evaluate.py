import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import evaluate
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Network
from workers.distill.tasks import segmentation
from workers.distill.tasks.catalog import TASKS


class TestScoreFile:
    def test_counts_on_any_split(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, teacher=None, method={"name": "ce"})
        assert folders.run_here(recipe)[0] == 0
        scores = evaluate.evaluate_file(
            tmp_path / "student.safetensors", tmp_path / "dataset", "validation"
        )
        assert scores["samples"] == 12
        assert scores["accuracy"] == scores["correct"] / 12

    def test_in_a_size_that_the_network_does_not_take_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folders.prepare(tmp_path, teacher=None, method={"name": "ce"})
        network = catalog.build(
            "retort/mlp", classes=3, channels=1, height=8, width=8, arguments={}
        )
        said = {"network": network.reference, "arguments": {}, "classes": 3, "input": folders.INPUT}
        student = tmp_path / "student.safetensors"
        weights.save_student(student, network, {weights.HEADER_KEY: json.dumps(said)})
        arguments = [str(student), "--dataset", str(tmp_path / "dataset")]
        assert evaluate.main(arguments) == 0
        capsys.readouterr()
        assert evaluate.main([*arguments, "--side", "12"]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert "12x12, and retort/mlp takes images of the size alone that it was" in told.err


CPU = torch.device("cpu")
DENSE_SIZE = Input(channels=1, height=8, width=8, mean=[0.3], std=[0.3])


def masks(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures of 8x8 whose bright pixels are of class 1, and some without a class."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 2, (count, 8, 8), generator=generator).to(torch.uint8)
    truth[:, 0, 0] = 255
    return (truth == 1).to(torch.uint8)[:, None] * 200, truth


def a_dense_network(seed: int, side: int = 8) -> Network:
    torch.manual_seed(seed)
    return catalog.build(
        "retort/fcn", classes=2, channels=1, height=side, width=side, arguments={"widths": [4]}
    )


def a_view(side: int = 8) -> Preprocessor:
    expected = DENSE_SIZE.model_copy(update={"height": side, "width": side})
    return Preprocessor("student", expected, DENSE_SIZE, CPU)


def dense_scores(
    networks: evaluate.Networks,
    images: torch.Tensor,
    truth: torch.Tensor,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Return the test scores by role."""
    evaluations = evaluate.evaluate_split(
        TASKS["segmentation"],
        networks,
        evaluate.LabelledImages(images, truth),
        classes=2,
        on_batch=on_batch,
    )
    return {role: evaluation.metrics.test_scores() for role, evaluation in evaluations.items()}


class TestDenseScores:
    def test_equal_the_scores_of_all_logits_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, truth = masks(7)
        student, teacher = a_dense_network(1).train(), a_dense_network(2).eval()
        # Two images at a time.
        monkeypatch.setattr(segmentation, "BATCH_LOGITS", 2 * 2 * 64)
        rounds: list[None] = []
        scores = dense_scores(
            {"teacher": (teacher, a_view()), "student": (student, a_view())},
            images,
            truth,
            lambda: rounds.append(None),
        )["student"]
        assert len(rounds) == 4
        assert student.training
        assert not teacher.training
        with torch.no_grad():
            answers, teacher_answers = (
                one.eval()(a_view()(images)).argmax(1) for one in (student, teacher)
            )
        judged = truth != 255
        assert scores["samples"] == 7
        assert scores["pixels"] == int(judged.sum()) == 7 * 63
        assert scores["accuracy"] == int((answers == truth)[judged].sum()) / (7 * 63)
        assert scores["agreement"] == int((answers == teacher_answers)[judged].sum()) / (7 * 63)
        expected = []
        for number in range(2):
            there, said = (truth == number) & judged, (answers == number) & judged
            expected.append(int((there & said).sum()) / int((there | said).sum()))
        assert scores["iou"] == expected
        assert scores["miou"] == pytest.approx(sum(expected) / 2, rel=1e-12)
        low, high = scores["miou_interval"]
        assert low < scores["miou"] < high

    def test_say_nothing_of_agreement_without_a_teacher(self) -> None:
        images, truth = masks(3)
        scores = dense_scores({"student": (a_dense_network(1), a_view())}, images, truth)["student"]
        assert list(scores) == [
            "accuracy",
            "miou",
            "miou_interval",
            "iou",
            "samples",
            "pixels",
        ]

    def test_a_network_of_another_size_is_judged_at_the_size_of_the_masks(self) -> None:
        images, truth = masks(3)
        network = a_dense_network(1, side=16)
        scores = dense_scores({"student": (network, a_view(16))}, images, truth)["student"]
        assert scores["pixels"] == 3 * 63

    def test_teacher_agrees_with_itself(self) -> None:
        images, truth = masks(3)
        network = a_dense_network(1)
        pair = (network, a_view())
        scores = dense_scores({"teacher": pair, "student": pair}, images, truth)
        assert scores["student"]["agreement"] == 1
        assert "agreement" not in scores["teacher"]


class TestScoreFileOfMasks:
    def write(self, folder: Path, network: Network) -> Path:
        record = dataset.DatasetRecord(
            task="segmentation",
            classes=["dark", "bright"],
            splits={"train": 4, "validation": 2, "test": 3},
            input=DENSE_SIZE,
        )
        dataset.write(
            folder / "dataset", record, {name: masks(n) for name, n in record.splits.items()}
        )
        said = {
            "network": network.reference,
            "arguments": dict(network.arguments),
            "classes": 2,
            "input": DENSE_SIZE.model_dump(),
        }
        student = folder / "student.safetensors"
        weights.save_student(student, network, {weights.HEADER_KEY: json.dumps(said)})
        return student

    def test_counts_pixels_on_any_split(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        network = a_dense_network(1)
        student = self.write(tmp_path, network)
        arguments = [str(student), "--dataset", str(tmp_path / "dataset"), "--split", "test"]
        assert evaluate.main(arguments) == 0
        scores = json.loads(capsys.readouterr().out)
        correct = scores.pop("correct")
        assert scores == dense_scores({"student": (network, a_view())}, *masks(3))["student"]
        assert scores["accuracy"] == correct / scores["pixels"]
        assert scores["samples"] == 3
        assert evaluate.main([*arguments, "--side", "12"]) == 1
        assert "--side 12 scores classifiers alone" in capsys.readouterr().err

    def test_student_of_another_task_is_refused(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        network = catalog.build(
            folders.NETWORK, classes=2, channels=1, height=8, width=8, arguments={}
        )
        student = self.write(tmp_path, network)
        with pytest.raises(errors.IncompatibleNetworks, match="is for classification, and the"):
            evaluate.evaluate_file(student, tmp_path / "dataset", "test")

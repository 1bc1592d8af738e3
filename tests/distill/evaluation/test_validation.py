import json
from pathlib import Path

import pytest
import torch

from tests.distill import folders
from workers.distill.config.job import Input
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import evaluate, validation
from workers.distill.networks import catalog
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision
from workers.distill.tasks.catalog import TASKS

CPU = torch.device("cpu")
SIZE = Input.model_validate(folders.INPUT)
VIEW = Preprocessor("student", SIZE, SIZE, CPU)


def a_network(seed: int) -> Network:
    torch.manual_seed(seed)
    return catalog.build(folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={})


def validating(task: str, images: torch.Tensor, labels: torch.Tensor) -> validation.ValidationSplit:
    samples = evaluate.LabelledImages(images, labels)
    precision = Precision("float32", CPU)
    return validation.ValidationSplit(samples, TASKS[task], 3, precision, lambda: None)


def a_split(count: int = 12) -> validation.ValidationSplit:
    images, labels = folders.images(count, 3, 0)
    return validating("classification", images, labels)


class TestValidator:
    def test_finds_a_copy_of_the_teacher_alike(self) -> None:
        split = a_split()
        teacher = a_network(1)
        example = validation.TeacherScores(split, teacher, VIEW)
        metrics = validation.Validator(split, VIEW, example)(teacher)
        assert metrics["accuracy"] == example.primary
        assert metrics["cka"] == pytest.approx(1.0, abs=1e-6)
        other = validation.Validator(split, VIEW, example)(a_network(2))
        assert other["cka"] < 1

    def test_says_nothing_of_likeness_without_a_teacher(self) -> None:
        assert set(validation.Validator(a_split(), VIEW)(a_network(1))) == {"accuracy", "loss"}

    def test_says_nothing_of_likeness_on_too_few_images(self) -> None:
        split = a_split(3)
        example = validation.TeacherScores(split, a_network(1), VIEW)
        assert "cka" not in validation.Validator(split, VIEW, example)(a_network(1))

    def test_scores_alike_with_and_without_a_teacher(self) -> None:
        split, network = a_split(), a_network(1)
        alone = validation.Validator(split, VIEW)(network)
        example = validation.TeacherScores(split, a_network(2), VIEW)
        beside = validation.Validator(split, VIEW, example)(network)
        assert {name: beside[name] for name in alone} == alone


def a_dense_network(seed: int) -> Network:
    torch.manual_seed(seed)
    return catalog.build(
        "retort/fcn", classes=3, channels=1, height=8, width=8, arguments={"widths": [4]}
    )


def a_dense_split(count: int = 12) -> validation.ValidationSplit:
    images, _ = folders.images(count, 3, 0)
    masks = (images[:, 0] // 100).to(torch.uint8)
    masks[:, 7] = 255
    return validating("segmentation", images, masks)


class TestValidatorOfMasks:
    def test_judges_the_pixels(self) -> None:
        split, network = a_dense_split(), a_dense_network(1)
        example = validation.TeacherScores(split, a_dense_network(2), VIEW)
        metrics = validation.Validator(split, VIEW, example)(network)
        assert list(metrics) == ["accuracy", "miou", "loss"]
        scored = split.evaluate(network, VIEW, features=False).metrics.test_scores()
        assert metrics["accuracy"] == scored["accuracy"]
        assert metrics["miou"] == scored["miou"]
        with torch.no_grad():
            logits = network.eval()(VIEW(split.samples.every_image()))
        loss = torch.nn.functional.cross_entropy(
            logits, split.samples.labels.long(), ignore_index=255
        )
        # A mean of float32 against one in float64.
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)

    def test_teacher_is_judged_alike(self) -> None:
        split, teacher = a_dense_split(), a_dense_network(2)
        example = validation.TeacherScores(split, teacher, VIEW)
        assert example.primary == validation.Validator(split, VIEW)(teacher)["miou"]


class TestSample:
    def test_is_drawn_once_for_all_and_in_order(self) -> None:
        images, labels = torch.zeros(2000, 1, 1, 1, dtype=torch.uint8), torch.arange(2000) % 7
        first, second = (
            validating("classification", images, labels).feature_rows for _ in range(2)
        )
        assert torch.equal(first, second)
        assert len(first) == validation.IMAGES
        assert bool((first.diff() > 0).all())
        assert len(labels[first].unique()) == 7


class TestRun:
    def test_tells_likeness_of_student_and_baseline_at_each_validation(
        self, tmp_path: Path
    ) -> None:
        training = {"epochs": 2, "evaluate_every_epochs": 2}
        recipe = folders.prepare(tmp_path, baseline=True, training=training)
        code, lines = folders.run_here(recipe)
        assert code == 0
        points = [p for line in folders.of_type(lines, "metrics") for p in line["points"]]
        metrics = {point["key"]: point["value"] for point in points}
        history = json.loads((tmp_path / "metrics.json").read_text())["history"]
        assert ["validation/cka" in entry for entry in history["student"]] == [False, True]
        assert history["student"][1]["validation/cka"] == metrics["validation/cka"]
        assert history["baseline"][1]["validation/cka"] == metrics["baseline/validation/cka"]
        for entry in history["student"]:
            parts = entry["loss/task"] + entry["loss/dkd"]
            assert entry["loss/total"] == pytest.approx(parts, rel=1e-5)

"""The table of tasks, and what it takes to add one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.distill import folders
from tests.distill.tasks.multilabel import MultiLabel
from workers.distill import errors
from workers.distill.config import descriptions, job
from workers.distill.data import dataset
from workers.distill.networks import weights
from workers.distill.networks.interface import Features
from workers.distill.tasks import catalog


class TestTable:
    def test_has_the_names_that_a_job_may_ask_for(self) -> None:
        assert tuple(catalog.TASKS) == get_args(job.Task)

    @pytest.mark.parametrize("name", catalog.TASKS)
    def test_knows_each_task_by_its_own_name(self, name: str) -> None:
        assert catalog.TASKS[name].name == name

    def test_decides_by_the_metrics_that_the_service_knows(self) -> None:
        deciding = {name: task.primary_metric for name, task in catalog.TASKS.items()}
        assert deciding == descriptions.PRIMARY_METRICS

    @pytest.mark.parametrize(
        "name", [name for name, task in catalog.TASKS.items() if task.uses_logits_only]
    )
    def test_each_task_of_logits_scores_its_primary_metric(self, name: str) -> None:
        task = catalog.TASKS[name]
        images = torch.zeros(4, 1, 2, 2)
        logits = torch.zeros([side or 1 for side in task.output_shape(images, 3)])
        metrics = task.metrics(3, torch.device("cpu"))
        metrics.update(Features.from_logits(logits), task.predicted_targets(logits))
        assert {task.primary_metric, "loss"} <= set(metrics.validation_scores())
        assert {task.primary_metric, "accuracy", "samples"} <= set(metrics.test_scores())
        assert metrics.validation_scores()[task.primary_metric] == 1


def rows_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy pictures, each with some of three bright rows, and which ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count, 3), generator=generator).float()
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for row in range(3):
        pixels[labels[:, row] == 1, 0, 2 * row + 1] = 250
    return pixels, labels


def prepare(workdir: Path) -> Path:
    """Write the folder of a job whose images have any number of classes."""
    recipe = folders.prepare(
        workdir,
        task="multilabel",
        teacher=None,
        method={"name": "ce"},
        training={"epochs": 6, "batch_size": 8, "augmentation": "none"},
        report=True,
    )
    write_dataset(workdir / "dataset", {n: rows_of(c, len(n)) for n, c in folders.COUNTS.items()})
    return recipe


def write_dataset(folder: Path, splits: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write a data set whose record names a task that only the child process knows."""
    record = dataset.DatasetRecord(
        classes=["first", "second", "third"],
        splits={"train": 41, "validation": 12, "test": 20},
        input=job.Input.model_validate(folders.INPUT),
    )
    dataset.write(folder, record, splits)
    content = {**record.model_dump(mode="json"), "task": "multilabel"}
    (folder / dataset.RECORD_FILE).write_text(json.dumps(content))


def run_with_third_task(module: str, *arguments: object) -> list[dict[str, Any]]:
    """Run a module of the engine where the task is registered, and return its lines."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.distill.tasks.multilabel", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=folders.ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestThirdTask:
    @pytest.mark.slow
    def test_is_trained_and_scored_by_its_own_loss_and_metrics(self, tmp_path: Path) -> None:
        lines = run_with_third_task("workers.distill", prepare(tmp_path), "--workdir", tmp_path)
        assert folders.of_type(lines, "warning") == []
        result = lines[-1]
        scores = result["scores"]["student"]
        assert set(scores) == {"mean_average_precision", "loss", "accuracy", "samples"}
        assert scores["mean_average_precision"] > 0.8
        assert scores["samples"] == 20
        history = json.loads((tmp_path / "metrics.json").read_text())["history"]["student"]
        assert history[0]["loss/task"] > history[-1]["loss/task"]
        assert history[-1]["train/accuracy"] > history[0]["train/accuracy"]

        # The epoch with the highest primary metric is delivered.
        values = [entry["validation/mean_average_precision"] for entry in history]
        assert result["best_epoch"] == 1 + values.index(max(values))
        assert (tmp_path / "report" / "mean_average_precision.png").exists()

        # The student's file alone gives the same scores.
        student = tmp_path / "student.safetensors"
        assert weights.read_header(student)["task"] == "multilabel"
        module = "workers.distill.evaluation.evaluate"
        (again,) = run_with_third_task(module, student, "--dataset", tmp_path / "dataset")
        assert {key: again[key] for key in scores} == pytest.approx(scores)

    @pytest.mark.parametrize("wrong", [lambda labels: labels * 2, lambda labels: labels[:, :2]])
    def test_checks_its_targets(
        self, tmp_path: Path, wrong: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        splits = {name: rows_of(count, 0) for name, count in folders.COUNTS.items()}
        splits["train"] = (splits["train"][0], wrong(splits["train"][1]))
        write_dataset(tmp_path, splits)
        record = dataset.DatasetRecord.model_validate_json(
            (tmp_path / dataset.RECORD_FILE).read_text().replace("multilabel", "classification")
        )
        with pytest.raises(errors.BadDataset, match="labels of the train split should be"):
            MultiLabel().read_split(dataset.StoredDataset(record, tmp_path), "train")

"""Whole runs of detection: methods on pyramids and heads, resumed with the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from workers.distill.config.job import Input
from workers.distill.data import boxes, dataset
from workers.distill.networks import catalog, weights
from workers.distill.runtime import signals

SIDE = 32
INPUT = {"channels": 1, "height": SIDE, "width": SIDE, "mean": [0.3], "std": [0.3]}
SMALL = {"width": 4, "blocks": 1, "fpn_channels": 32, "detections_per_image": 10}
COUNTS = {"train": 12, "validation": 4, "test": 4}
PYRAMIDS = {
    "name": "combine",
    "methods": [{"name": name} for name in ("densepcka", "mgd", "headkd", "ld", "crosskd")],
}
PROPOSALS = {"name": "combine", "methods": [{"name": "roidkd"}, {"name": "reviewkd"}]}


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise with one bright square each, whose class is whether it is large."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 90, (count, 1, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    rows = []
    for index, image in enumerate(images):
        side = 8 + 8 * (index % 2)
        x, y = torch.randint(0, SIDE - side, (2,), generator=draw).tolist()
        image[0, y : y + side, x : x + side] = 250
        rows.append(torch.tensor([[index % 2, x, y, x + side, y + side, side**2, 0.0]]))
    return images, boxes.padded(rows, most=1), torch.ones(count)


def prepare(workdir: Path, reference: str, method: dict[str, Any], **training: Any) -> Path:
    """Write a whole working folder, and return the path of its recipe."""
    record = dataset.DatasetRecord(
        task="detection",
        classes=["small", "large"],
        splits=COUNTS,
        input=Input.model_validate(INPUT),
    )
    splits = {name: pictures(count, len(name)) for name, count in COUNTS.items()}
    dataset.write(workdir / "dataset", record, splits)
    (workdir / "teacher").mkdir()
    small = {**SMALL, "reg_max": 8} if reference == "retort/fcos" else SMALL
    torch.manual_seed(7)
    teacher = catalog.build(
        reference,
        classes=2,
        channels=1,
        height=SIDE,
        width=SIDE,
        arguments={**small, "fpn_channels": 64},
    )
    weights.save_student(workdir / "teacher" / "model.safetensors", teacher, {"format": "pt"})
    chosen = {"network": reference, "classes": 2, "input": INPUT}
    recipe = {
        "version": 1,
        "task": "detection",
        "teacher": {**chosen, "arguments": {**small, "fpn_channels": 64}},
        "student": {**chosen, "arguments": small},
        "method": method,
        "training": {
            "epochs": 2,
            "batch_size": 4,
            "augmentation": "flip",
            "checkpoint_seconds": 0.02,
            "optimizer": {"name": "adamw"},
            **training,
        },
        "report": False,
        "baseline": False,
        "accelerator": "cpu",
        "provenance": {"job": "job_1", "attempt": 1, "teacher": "squares@1"},
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "method"),
    [("retort/fcos", PYRAMIDS), ("retort/fasterrcnn", PROPOSALS)],
    ids=["pyramids", "proposals"],
)
def test_a_stopped_run_ends_with_the_same_bytes(
    tmp_path: Path, reference: str, method: dict[str, Any]
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    code, lines = folders.run_here(prepare(tmp_path / "whole", reference, method))
    assert code == 0, lines[-1]
    if method is PYRAMIDS:
        assert lines[-1]["method"] == {"densepcka": {"patches": [16, 16]}}
    stopped = prepare(tmp_path / "stopped", reference, method)
    code, _ = folders.run_here(stopped, folders.StopsAt(5))
    assert code == signals.EXIT_CODE
    code, resumed = folders.run_here(stopped)
    assert code == 0
    assert resumed[0]["resumed_from_step"] > 0
    students = (
        (tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert next(students) == next(students)
    assert resumed[-1]["scores"] == lines[-1]["scores"]

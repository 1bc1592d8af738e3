"""Working folders of two steps of detection or segmentation, with networks that a method fits."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.distill.run import test_detection
from tests.gpu import scenes
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.methods import catalog
from workers.distill.methods.dense.base import ProposalsMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks import weights

SIDE, CLASSES = test_detection.SIDE, ["small", "large"]
COUNTS = {"train": 8, "validation": 2, "test": 2}
SMALL: dict[str, Any] = {"width": 4, "blocks": 1, "fpn_channels": 32}
OF_TASK: dict[str, tuple[str, dict[str, Any]]] = {
    "segmentation": ("retort/segmenter", SMALL),
    "detection": ("retort/fcos", {**SMALL, "detections_per_image": 10, "reg_max": 8}),
}
PROPOSALS = ("retort/fasterrcnn", {**SMALL, "detections_per_image": 10})


def recipe(task: str, method: dict[str, Any], accelerator: str = "cpu") -> dict[str, Any]:
    """Return a recipe of two steps; the networks are those that the method needs."""
    kind = catalog.METHODS[method["name"]]
    network, arguments = PROPOSALS if issubclass(kind, ProposalsMethod) else OF_TASK[task]
    chosen = {"network": network, "classes": len(CLASSES), "input": test_detection.INPUT}
    has_teacher = "teacher" in kind.needs
    return {
        "task": task,
        "teacher": {**chosen, "arguments": {**arguments, "width": 8}} if has_teacher else None,
        "student": {**chosen, "arguments": arguments},
        "initial": True,
        "method": method,
        "training": {**scenes.TRAINING, "batch_size": 4, "augmentation": "flip"},
        "report": False,
        "accelerator": accelerator,
    }


def prepare(workdir: Path, task: str, method: dict[str, Any], accelerator: str) -> Path:
    """Write the folder of a recipe, and return the recipe's path."""
    record = dataset.DatasetRecord(
        task=task,
        classes=CLASSES if task == "detection" else ["ground", "square"],
        splits=COUNTS,
        input=Input.model_validate(test_detection.INPUT),
    )
    splits = {}
    for name, count in COUNTS.items():
        images, squares, areas = test_detection.pictures(count, len(name))
        masks = (images[:, 0] == 250).to(torch.uint8)
        splits[name] = (images, squares, areas) if task == "detection" else (images, masks)
    dataset.write(workdir / "dataset", record, splits)
    content = recipe(task, method, accelerator)
    for role, folder, seed in (("teacher", "teacher", 7), ("student", "initial", 11)):
        if content[role] is None:
            continue
        (workdir / folder).mkdir()
        torch.manual_seed(seed)
        built = networks.build(
            content[role]["network"],
            classes=len(CLASSES),
            channels=1,
            height=SIDE,
            width=SIDE,
            arguments=content[role]["arguments"],
        )
        weights.save_student(workdir / folder / "model.safetensors", built, {"format": "pt"})
    path = workdir / "recipe.json"
    path.write_text(json.dumps(content))
    return path

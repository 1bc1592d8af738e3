"""Which upload formats exist: one line each."""

from typing import Any

from workers.distill import errors
from workers.distill.config import formats as rules
from workers.distill.config.job import Task
from workers.distill.data.formats import cifar, coco, imagefolder, masks, npz, voc, yolo
from workers.distill.data.formats.base import Format

FORMATS: dict[str, Format] = {
    "imagefolder": imagefolder.FORMAT,
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "npz": npz.FORMAT,
    "coco": coco.FORMAT,
    "voc": voc.FORMAT,
    "yolo": yolo.FORMAT,
    "masks": masks.FORMAT,
}


def choose(name: str, task: Task) -> Format:
    """Return the format of that name; raises `UploadRefused` if it cannot hold labels of `task`."""
    refusal = rules.refusal(name, task, {key: entry.tasks for key, entry in FORMATS.items()})
    if refusal is not None:
        raise errors.UploadRefused(rules.CODE, refusal)
    return FORMATS[name]


def describe() -> list[dict[str, Any]]:  # Any: JSON for the catalog
    """Return the formats as the catalog publishes them."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "description": entry.description,
            "tasks": list(entry.tasks),
            "suffixes": list(entry.suffixes),
        }
        for entry in FORMATS.values()
    ]

"""The images that a data-free job has invented, as a data set that other jobs can train on.

A folder `synthetic/` in the working folder, in the form of every prepared data set (`data.stored`).
Labels are the teacher's answers, so accuracy on it is agreement with that teacher.
"""

import shutil

import torch
from jaxtyping import Integer
from torch import Tensor

from workers.distill.data import dataset
from workers.distill.data.formats import conversion
from workers.distill.run.prepare import JobContext
from workers.distill.synthesis.data_source import SyntheticDataSource

FOLDER = "synthetic"
FEWEST = 3
"""One image for each split."""
LOOK_BATCH = 16
NOTES = (
    "images were invented by distillation without data; no image of a data set was read",
    "labels are the teacher's answers: accuracy on this data set is agreement with the teacher",
)


def refusal(setting: JobContext, studio: SyntheticDataSource) -> str | None:
    """Return why the buffer cannot be a data set, or None if it can."""
    held, classes = studio.replay.count, len(setting.classes)
    if held < FEWEST:
        return (
            f"the buffer holds {held} images, and a data set needs at least {FEWEST}: one for each "
            "split"
        )
    if setting.recipe.task == "segmentation" and classes > dataset.IGNORE_INDEX:
        return (
            f"masks have at most {dataset.IGNORE_INDEX} classes, and the teacher tells {classes} "
            "apart"
        )
    return None


def write(setting: JobContext, studio: SyntheticDataSource, *, flip: bool) -> list[str]:
    """Write the replay buffer, and return the files, relative to the working folder."""
    folder = setting.workdir / FOLDER
    unfinished = setting.workdir / f"{FOLDER}.tmp"
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    images = studio.replay.images
    size = setting.size
    conversion.write_arrays(
        unfinished,
        {"train": (images.cpu().numpy(), answers(setting, studio).cpu().numpy())},
        classes=setting.classes,
        flip=flip,
        # Networks go on seeing such images as the teacher does.
        hints=conversion.InputHints(mean=size.mean, std=size.std),
        notes=NOTES,
        task=setting.recipe.task,
    )
    unfinished.replace(folder)
    return [f"{FOLDER}/{path.name}" for path in sorted(folder.iterdir()) if path.is_file()]


def answers(setting: JobContext, studio: SyntheticDataSource) -> Integer[Tensor, "N *S"]:
    """Return what the teacher takes each image for: a class, or a mask of classes."""
    if setting.recipe.task == "classification":
        return studio.replay.classes()
    teacher, view, images = setting.teacher, setting.teacher_view, studio.replay.images
    if teacher is None or view is None:
        raise ValueError("invented images have a teacher")
    found = []
    with torch.inference_mode():
        for first in range(0, len(images), LOOK_BATCH):
            seen = view(images[first : first + LOOK_BATCH])
            found.append(teacher(seen).argmax(1).to(torch.uint8))
    return torch.cat(found)

"""The synthetic images of a data-free job, as a data set that other jobs can train on.

A folder `synthetic/` in the working folder, in the form of every prepared data set: `data.dataset`.
Labels are the teacher's answers, so accuracy on it is agreement with that teacher.
"""

import shutil

import torch
from jaxtyping import Shaped
from torch import Tensor

from workers.distill.data.formats import conversion
from workers.distill.run.prepare import JobContext
from workers.distill.synthesis.data_source import SyntheticDataSource

FOLDER = "synthetic"
FEWEST = 3
"""One image for each split."""
TEACHER_BATCH = 16
NOTES = (
    "images were invented by distillation without data; no image of a data set was read",
    "labels are the teacher's answers: accuracy on this data set is agreement with the teacher",
)


def refusal(setting: JobContext, studio: SyntheticDataSource) -> str | None:
    """Return why the buffer cannot be a data set, or None if it can."""
    held = studio.replay.count
    if held < FEWEST:
        return (
            f"the buffer holds {held} images, and a data set needs at least {FEWEST}: one for each "
            "split"
        )
    return setting.task.class_count_fault(len(setting.classes))


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
        {"train": (images.cpu().numpy(), teacher_targets(setting, studio).cpu().numpy())},
        classes=setting.classes,
        flip=flip,
        # Networks go on seeing such images as the teacher does.
        wish=conversion.InputHints(mean=size.mean, std=size.std),
        notes=NOTES,
        task=setting.recipe.task,
    )
    unfinished.replace(folder)
    return [f"{FOLDER}/{path.name}" for path in sorted(folder.iterdir()) if path.is_file()]


def teacher_targets(setting: JobContext, studio: SyntheticDataSource) -> Shaped[Tensor, "N *T"]:
    """Return what the teacher says of each image, in the form in which the task stores targets."""
    if studio.replay.logits is not None:
        return setting.task.predicted_targets(studio.replay.logits)
    teacher, view, images = setting.teacher, setting.teacher_view, studio.replay.images
    if teacher is None or view is None:
        raise ValueError("synthetic images have a teacher")
    targets = []
    with torch.inference_mode():
        for first in range(0, len(images), TEACHER_BATCH):
            logits = teacher(view(images[first : first + TEACHER_BATCH]))
            targets.append(setting.task.predicted_targets(logits))
    return torch.cat(targets)

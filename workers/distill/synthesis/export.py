"""The synthetic images of a data-free job, as a data set that other jobs can train on.

A folder `synthetic/` in the working folder, in the form of every prepared data set: `data.dataset`.
Labels are the teacher's answers, so accuracy on it is agreement with that teacher.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor

from workers.distill.config.job import Input, Task
from workers.distill.data.formats import conversion
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.networks.interface import Network
from workers.distill.synthesis.replay_buffer import ReplayBuffer

FOLDER = "synthetic"
FEWEST = 3
"""One image for each split."""
TEACHER_BATCH = 16
NOTES = (
    "images were synthesized by distillation without data; no image of a data set was read",
    "labels are the teacher's answers: accuracy on this data set is agreement with the teacher",
)


class Targets(Protocol):
    """What an export asks of a task (`tasks.base.BaseTask`)."""

    name: ClassVar[Task]

    def class_count_fault(self, classes: int) -> str | None:
        """Return why there cannot be so many classes, or None."""

    def predicted_targets(self, logits: Tensor) -> Tensor:
        """Return a network's answers in the form in which targets are stored."""


@dataclass(frozen=True)
class ExportContext:
    """What an export needs to know besides the images."""

    workdir: Path
    task: Targets
    classes: list[str]
    size: Input
    flip: bool
    """Whether mirrored images keep their labels."""
    teacher: Network
    teacher_preprocessor: Preprocessor


def refusal(context: ExportContext, replay: ReplayBuffer) -> str | None:
    """Return why the buffer cannot be a data set, or None if it can."""
    if replay.count < FEWEST:
        return (
            f"the buffer holds {replay.count} images, and a data set needs at least {FEWEST}: one "
            "for each split"
        )
    return context.task.class_count_fault(len(context.classes))


def write(context: ExportContext, replay: ReplayBuffer) -> list[str]:
    """Write the replay buffer, and return the files, relative to the working folder."""
    folder = context.workdir / FOLDER
    unfinished = context.workdir / f"{FOLDER}.tmp"
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    targets = teacher_targets(context, replay)
    conversion.write_arrays(
        unfinished,
        {"train": (replay.images.cpu().numpy(), targets.cpu().numpy())},
        classes=context.classes,
        flip=context.flip,
        # Networks get such images normalised as the teacher does.
        hints=conversion.InputHints(mean=context.size.mean, std=context.size.std),
        notes=NOTES,
        task=context.task.name,
    )
    unfinished.replace(folder)
    return [f"{FOLDER}/{path.name}" for path in sorted(folder.iterdir()) if path.is_file()]


def teacher_targets(context: ExportContext, replay: ReplayBuffer) -> Shaped[Tensor, "N *T"]:
    """Return what the teacher says of each image, in the form in which the task stores targets."""
    if replay.logits is not None:
        return context.task.predicted_targets(replay.logits)
    images, targets = replay.images, []
    with torch.inference_mode():
        for first in range(0, len(images), TEACHER_BATCH):
            inputs = context.teacher_preprocessor(images[first : first + TEACHER_BATCH])
            targets.append(context.task.predicted_targets(context.teacher(inputs)))
    return torch.cat(targets)

"""Distil a segmenter: data set, teacher, job, downloaded student, and the masks that it paints.

    python -m examples.segmentation                       # composed scenes of digits, built in
    python -m examples.segmentation --archive masks.zip   # your own pictures and masks
    python -m examples.segmentation --archive masks.zip --teacher teacher.safetensors

It needs a running service (`make up`). Without `--teacher`, a `retort/segmenter` of the default
size is trained first; a teacher of your own has to be one, or change `WANTED`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from examples import dense_walk

WANTED = dense_walk.Wanted(
    task="segmentation",
    builtin="digit_scenes_masks",
    format="masks",
    network="retort/segmenter",
    student=dense_walk.SMALL,
    method="cwd",
    # Most pixels are background: with equal weights nothing else is learned for long.
    training={"epochs": 4, "optimizer": {"learning_rate": 4e-3}, "class_weights": "auto"},
    steps=900,
)


def main() -> None:
    """Distil, and paint the student's classes below pictures."""
    asked = dense_walk.arguments(WANTED, __doc__ or "")
    student = dense_walk.distil(WANTED, asked)
    pictures = dense_walk.shown(student, asked)
    if pictures is not None:
        paint(student, pictures, student.with_suffix(".png"))


def paint(student: Path, images: torch.Tensor, path: Path) -> None:
    """Paint images uint8 [N, 3, H, W] above a student's classes, of which the first is black.

    Prints how many pixels each class has.
    """
    logits, classes = dense_walk.answers(student, images)
    answered = logits.argmax(1)
    colours = np.random.default_rng(0).integers(64, 256, (len(classes), 3), dtype=np.uint8)
    colours[0] = 0
    pixels = images.permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(part), axis=1) for part in (pixels, colours[answered.numpy()])]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
    for number, count in enumerate(torch.bincount(answered.flatten(), minlength=len(classes))):
        dense_walk.say(f"{classes[number]}: {int(count):,} pixels")
    dense_walk.say(f"the masks are painted in {path}")


if __name__ == "__main__":
    main()

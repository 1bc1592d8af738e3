"""Distil a detector: data set, teacher, job, downloaded student, and the boxes that it draws.

    python -m examples.detection                          # composed scenes of digits, built in
    python -m examples.detection --archive coco.zip       # your own pictures, in COCO's layout
    python -m examples.detection --archive coco.zip --teacher teacher.safetensors

It needs a running service (`make up`). Without `--teacher`, a `retort/fcos` of the default size is
trained first; a teacher of your own has to be one, or change `WANTED`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from examples import dense_walk

WANTED = dense_walk.Wanted(
    task="detection",
    builtin="digit_scenes",
    format="coco",
    network="retort/fcos",
    student={**dense_walk.SMALL, "head_convs": 1},
    method="mimic",
    training={},
    steps=600,
)
SURE = 0.3
"""Boxes with a lower score are not drawn."""
ENLARGED = 4


def main() -> None:
    """Distil, and draw the student's boxes into pictures."""
    asked = dense_walk.arguments(WANTED, __doc__ or "")
    student = dense_walk.distil(WANTED, asked)
    pictures = dense_walk.shown(student, asked)
    if pictures is not None:
        draw(student, pictures, student.with_suffix(".png"))


def draw(student: Path, images: torch.Tensor, path: Path) -> None:
    """Draw a student's boxes into images uint8 [N, 3, H, W] side by side, and print them."""
    found, classes = dense_walk.answers(student, images)
    tiles = []
    for image, rows in zip(images, found.tolist(), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.resize((picture.width * ENLARGED, picture.height * ENLARGED))
        pen = ImageDraw.Draw(picture)
        for number, score, *corners in rows:
            # A row of padding has class -1.
            if number < 0 or score < SURE:
                continue
            name = classes[int(number)]
            dense_walk.say(f"{name} {score:.2f} {[round(corner, 1) for corner in corners]}")
            pen.rectangle([corner * ENLARGED for corner in corners], outline="yellow", width=2)
            pen.text((corners[0] * ENLARGED + 3, corners[1] * ENLARGED), name, fill="yellow")
        tiles.append(np.asarray(picture))
    Image.fromarray(np.concatenate(tiles, axis=1)).save(path)
    dense_walk.say(f"the boxes are drawn in {path}")


if __name__ == "__main__":
    main()

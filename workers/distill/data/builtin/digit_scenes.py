"""The built-in data sets `digit_scenes` and `digit_scenes_masks`: digits pasted onto photographs.

Scenes of 96x96 RGB pixels, composed from scikit-learn's real handwritten digits and from real
photographs that scikit-learn and scikit-image ship; boxes and masks are exact by construction. A
background is a random square of a photograph, darkened; 1 to 4 digits of random size and bright
colour lie on it, with the digit's intensity as opacity. Training, validation and test share neither
a digit nor a photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from workers.distill.config.job import Input
from workers.distill.data import boxes, dataset, splits
from workers.distill.data.builtin import digits as handwritten

SIDE = 96
CROP_SIDES = (96, 256)
DARKNESS = 0.7
DIGITS = (1, 4)
DIGIT_SIDES = (16, 36)
DARKEST_COLOUR = 0.6
VISIBLE = 0.3
"""Opacity above which a pixel belongs to its digit."""
MOST_OVERLAP = 2
"""Pixels by which two boxes may overlap along both axes."""
MOST_TRIES = 50
"""Places tried for a digit before it is left out."""
NOTES = [
    "composed scenes: real digits on real photographs",
    "training, validation and test share neither a digit nor a photograph",
]


@dataclass(frozen=True)
class SceneSource:
    """What the scenes of one split are made from."""

    scenes: int
    seed: int
    digits: int
    photographs: tuple[str, ...]


PARTS = {
    "train": SceneSource(
        scenes=2000,
        seed=1,
        digits=1050,
        photographs=(
            "sklearn/datasets/images/china.jpg",
            "skimage/data/astronaut.png",
            "skimage/data/coins.png",
            "skimage/data/grass.png",
            "skimage/data/hubble_deep_field.jpg",
            "skimage/data/motorcycle_left.png",
            "skimage/data/rocket.jpg",
        ),
    ),
    "validation": SceneSource(
        scenes=200,
        seed=3,
        digits=150,
        photographs=("skimage/data/brick.png", "skimage/data/coffee.png"),
    ),
    "test": SceneSource(
        scenes=250,
        seed=2,
        digits=597,
        photographs=(
            "sklearn/datasets/images/flower.jpg",
            "skimage/data/camera.png",
            "skimage/data/chelsea.png",
            "skimage/data/gravel.png",
            "skimage/data/moon.png",
        ),
    ),
}


CLASSES = tuple(str(digit) for digit in range(10))
INPUT = Input(
    channels=3,
    height=SIDE,
    width=SIDE,
    mean=[0.31117, 0.290054, 0.292614],
    std=[0.215251, 0.203948, 0.205331],
)
"""With the moments of the training scenes."""
BOXES = {
    "train": [517, 498, 457, 544, 516, 507, 498, 491, 446, 492],
    "validation": [56, 51, 53, 52, 49, 60, 51, 45, 46, 40],
    "test": [72, 66, 62, 58, 60, 59, 60, 62, 58, 60],
}
"""Boxes of each class."""


@dataclass(frozen=True)
class Scenes:
    """Composed images uint8 [N, 3, H, W], boxes [N, 4, 7], masks uint8 [N, H, W]."""

    images: NDArray[np.uint8]
    boxes: Tensor
    masks: NDArray[np.uint8]


def compose(name: str, count: int) -> Scenes:
    """Return the first `count` scenes of a split."""
    part = PARTS[name]
    # RandomState, not Generator: NumPy promises that its stream never changes.
    draw = np.random.RandomState(part.seed)
    photographs = [_photograph(path) for path in part.photographs]
    digits, classes = _digits(name)
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    masks = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    rows = []
    for image, mask in zip(images, masks, strict=True):
        scene = _background(photographs[draw.randint(len(photographs))], draw)
        chosen = draw.choice(len(digits), draw.randint(DIGITS[0], DIGITS[1] + 1), replace=False)
        taken: list[list[float]] = []
        for index in chosen:
            _paste(scene, mask, digits[index], int(classes[index]), taken, draw)
        image[:] = np.rint(scene)
        rows.append(torch.tensor(taken).reshape(-1, boxes.COLUMNS))
    table = boxes.padded(rows, most=DIGITS[1])
    return Scenes(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), table, masks)


def describe() -> dataset.DatasetRecord:
    """Return the record of the scenes with boxes without composing anything."""
    return describe_masks().model_copy(
        update={"task": "detection", "classes": list(CLASSES), "boxes": BOXES}
    )


def describe_masks() -> dataset.DatasetRecord:
    """Return the record of the scenes with masks without composing anything."""
    return dataset.DatasetRecord(
        task="segmentation",
        classes=["background", *CLASSES],
        splits={
            "train": PARTS["train"].scenes,
            "validation": PARTS["validation"].scenes,
            "test": PARTS["test"].scenes,
        },
        input=INPUT,
        # A mirrored digit is not a digit.
        flip=False,
        notes=NOTES,
    )


def write(folder: Path) -> dataset.DatasetRecord:
    """Write the scenes with boxes as a prepared data set and return its record."""
    scenes = {name: compose(name, part.scenes) for name, part in PARTS.items()}
    counts = {name: boxes.counts(made.boxes, len(CLASSES)) for name, made in scenes.items()}
    record = describe().model_copy(update={"boxes": counts})
    tensors = {
        name: (torch.from_numpy(made.images), made.boxes, torch.ones(len(made.images)))
        for name, made in scenes.items()
    }
    dataset.write(folder, record, tensors)
    return record


def write_masks(folder: Path) -> dataset.DatasetRecord:
    """Write the scenes with masks as a prepared data set and return its record."""
    record = describe_masks()
    scenes = {name: compose(name, part.scenes) for name, part in PARTS.items()}
    tensors = {
        name: (torch.from_numpy(made.images), torch.from_numpy(made.masks))
        for name, made in scenes.items()
    }
    dataset.write(folder, record, tensors)
    return record


def _photograph(path: str) -> Image.Image:
    """Return a photograph that a package ships as a plain file, named from the package on."""
    with Image.open(handwritten.installed_file(path)) as image:
        return image.convert("RGB")


def _digits(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a split's digits uint8 [D, 8, 8], scaled to 0..255, and their classes [D]."""
    pixels, labels = handwritten.read()
    parts = splits.stratified(labels, [part.digits for part in PARTS.values()])
    chosen = dict(zip(PARTS, parts, strict=True))[name]
    return pixels[chosen], labels[chosen]


def _background(photograph: Image.Image, draw: np.random.RandomState) -> NDArray[np.float64]:
    """Return a random square of a photograph, resized and darkened, [H, W, 3] in 0..255."""
    side = draw.randint(CROP_SIDES[0], CROP_SIDES[1] + 1)
    left = draw.randint(photograph.width - side + 1)
    top = draw.randint(photograph.height - side + 1)
    square = photograph.resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    return np.asarray(square, dtype=np.float64) * DARKNESS


def _paste(
    scene: NDArray[np.float64],
    mask: NDArray[np.uint8],
    digit: NDArray[np.uint8],
    number: int,
    taken: list[list[float]],
    draw: np.random.RandomState,
) -> None:
    """Draw a digit into a scene and its mask, and append its row to those of other digits.

    Nothing is drawn where no place is found that is free enough.
    """
    side = draw.randint(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1)
    colour = draw.uniform(DARKEST_COLOUR, 1, 3) * 255
    resized = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    opacity = np.asarray(resized, dtype=np.float64) / 255
    visible = opacity > VISIBLE
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    for _ in range(MOST_TRIES):
        left, top = draw.randint(SIDE - side + 1, size=2)
        box = extent + np.array([left, top, left, top])
        if not any(_overlaps(box, other[boxes.X1 : boxes.Y2 + 1]) for other in taken):
            break
    else:
        return
    place = (slice(top, top + side), slice(left, left + side))
    scene[place] += opacity[..., None] * (colour - scene[place])
    mask[place][visible] = number + 1
    area = (box[2] - box[0]) * (box[3] - box[1])
    taken.append([float(value) for value in (number, *box, area, boxes.ORDINARY)])


def _overlaps(box: NDArray[np.int64], other: Sequence[float]) -> bool:
    """Return whether two boxes overlap by more than is allowed along both axes."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    return bool(across > MOST_OVERLAP and down > MOST_OVERLAP)

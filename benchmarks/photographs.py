"""Patches of photographs, by photograph: a second real data set, from what the packages ship.

    python -m benchmarks.photographs FOLDER

Eighteen photographs and micrographs of scikit-image and scikit-learn are the classes. Each is cut
into cells of at least 104x104 pixels that do not overlap; whole cells, drawn with a fixed seed, go
to training, validation or test, so that no pixel is in two splits. Patches of 96x96 pixels are cut
at random places of the cells, in their own scale. They are grey, and every patch has the same mean
and contrast, so that neither colour nor brightness tells the photograph; a place without contrast
(a night sky) is drawn again. What is left to learn are textures and objects, and a network that
knows its cells by heart fails on others of the same photograph.

Patches of one cell overlap: the test split has as many independent parts as it has cells, so an
interval over its patches is too narrow. Trust differences over seeds.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from workers.distill.config.job import Input
from workers.distill.data import dataset

SIDE = 96
CELL = 104
"""Least side of a cell: a patch has nine places along each axis at least."""
LEAST_CONTRAST = 6.0
"""Standard deviation, of 255, below which a place is drawn again."""
CONTRAST = 50.0
MIDDLE = 127.5
MOST_TRIES = 200
SEED = 7
PATCHES = {"train": 50, "validation": 10, "test": 20}
"""Of each photograph."""
CELL_SHARES = {"validation": 0.17, "test": 0.25}
PHOTOGRAPHS = (
    *(f"skimage/data/{name}.png" for name in ("astronaut", "brick", "camera", "cell", "chelsea")),
    *(f"skimage/data/{name}.png" for name in ("coffee", "coins", "grass", "text")),
    *(f"skimage/data/{name}.png" for name in ("gravel", "ihc", "moon", "motorcycle_left")),
    *(f"skimage/data/{name}.jpg" for name in ("hubble_deep_field", "retina", "rocket")),
    *(f"sklearn/datasets/images/{name}.jpg" for name in ("china", "flower")),
)
NOTES = [
    "grey patches of photographs that scikit-image and scikit-learn ship, by photograph",
    "training, validation and test patches are from cells that do not overlap",
]

Pixels = NDArray[np.uint8]


def main(arguments: Sequence[str]) -> int:
    """Write the data set in the engine's form into a folder."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m benchmarks.photographs FOLDER\n")
        return 2
    write(Path(arguments[0]))
    return 0


def write(folder: Path) -> dataset.DatasetRecord:
    """Write the patches as a prepared data set and return its record."""
    # RandomState, not Generator: NumPy promises that its stream never changes.
    draw = np.random.RandomState(SEED)
    found: dict[str, list[Pixels]] = {name: [] for name in PATCHES}
    for path in PHOTOGRAPHS:
        parts = divided(cells_of(read(path)), draw)
        for name, count in PATCHES.items():
            found[name] += [patch_of(parts[name], draw) for _ in range(count)]
    images = {name: np.stack(patches)[:, None] for name, patches in found.items()}
    mean, std = dataset.moments(images["train"])
    record = dataset.DatasetRecord(
        classes=[Path(path).stem for path in PHOTOGRAPHS],
        splits={
            "train": len(images["train"]),
            "validation": len(images["validation"]),
            "test": len(images["test"]),
        },
        input=Input(channels=1, height=SIDE, width=SIDE, mean=mean, std=std),
        # Of most of them nothing says which side is left.
        flip=True,
        notes=NOTES,
    )
    labels = {
        name: torch.arange(len(PHOTOGRAPHS)).repeat_interleave(count)
        for name, count in PATCHES.items()
    }
    tensors = {name: (torch.from_numpy(images[name]), labels[name]) for name in PATCHES}
    dataset.write(folder, record, tensors)
    return record


def read(path: str) -> Pixels:
    """Return a photograph as grey values [H, W], by a path that begins with its package."""
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the photographs of {package} are missing", name=package)
    with Image.open(Path(spec.submodule_search_locations[0]) / inside) as image:
        return np.asarray(image.convert("L"))


def cells_of(picture: Pixels) -> list[Pixels]:
    """Return the cells of a photograph: as many as fit, all of one size."""
    rows, columns = (max(1, side // CELL) for side in picture.shape)
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    return [
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(rows)
        for column in range(columns)
    ]


def divided(cells: list[Pixels], draw: np.random.RandomState) -> dict[str, list[Pixels]]:
    """Return which cells each split has, one at least; those with a flat middle are left out."""
    useful = [cell for cell in cells if middle_of(cell).std() >= LEAST_CONTRAST]
    order = [useful[place] for place in draw.permutation(len(useful))]
    test = max(1, round(CELL_SHARES["test"] * len(order)))
    validation = max(1, round(CELL_SHARES["validation"] * len(order)))
    return {
        "test": order[:test],
        "validation": order[test : test + validation],
        "train": order[test + validation :],
    }


def middle_of(cell: Pixels) -> Pixels:
    """Return the patch in the middle of a cell."""
    top, left = ((side - SIDE) // 2 for side in cell.shape)
    return cell[top : top + SIDE, left : left + SIDE]


def patch_of(cells: list[Pixels], draw: np.random.RandomState) -> Pixels:
    """Return a random patch [96, 96] of some cells, its mean and contrast made those of all."""
    for _ in range(MOST_TRIES):
        cell = cells[draw.randint(len(cells))]
        top = draw.randint(cell.shape[0] - SIDE + 1)
        left = draw.randint(cell.shape[1] - SIDE + 1)
        patch = cell[top : top + SIDE, left : left + SIDE].astype(np.float64)
        if patch.std() >= LEAST_CONTRAST:
            even = (patch - patch.mean()) / patch.std() * CONTRAST + MIDDLE
            # NumPy's stubs lose the type of what is rounded.
            rounded: Pixels = np.rint(even.clip(0, 255)).astype(np.uint8)
            return rounded
    raise ValueError(f"no place with contrast was found in {MOST_TRIES} draws")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The built-in data set `digits`: scikit-learn's handwritten digits.

1,797 grey images of 8x8 pixels. Values 0..16 are scaled to 0..255; the splits are fixed.
Source: Alpaydin and Kaynak, UCI "Optical Recognition of Handwritten Digits" (test part).
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.distill.config.job import Input
from workers.distill.data import dataset, splits

SIZES = (1257, 180, 360)
HIGHEST = 16


def installed_file(path: str) -> Path:
    """Return a plain file that a package ships, named from the package on.

    Finding a package does not import it, which takes longer than most uploads to inspect.

    Raises: ModuleNotFoundError where the package is missing.
    """
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is missing, and {path} with it", name=package)
    return Path(spec.submodule_search_locations[0]) / inside


def read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all digits uint8 [1797, 8, 8], scaled to 0..255, and their classes [1797]."""
    rows = np.loadtxt(installed_file("sklearn/datasets/data/digits.csv.gz"), delimiter=",")
    pixels = np.rint(rows[:, :-1] * (255 / HIGHEST)).astype(np.uint8)
    return pixels.reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def prepare() -> tuple[dataset.DatasetRecord, dict[str, tuple[Tensor, Tensor]]]:
    """Return the record, and for each split images uint8 [N, 1, 8, 8] and labels int64 [N]."""
    pixels, labels = read()
    scaled = pixels[:, None]
    indices = dict(zip(dataset.SPLITS, splits.stratified(labels, SIZES), strict=True))
    mean, std = dataset.moments(scaled[indices["train"]])
    record = dataset.DatasetRecord(
        classes=[str(digit) for digit in range(10)],
        splits={"train": SIZES[0], "validation": SIZES[1], "test": SIZES[2]},
        input=Input(channels=1, height=8, width=8, mean=mean, std=std),
        # A mirrored digit is not a digit.
        flip=False,
    )
    return record, {
        name: (torch.from_numpy(scaled[index]), torch.from_numpy(labels[index]))
        for name, index in indices.items()
    }


def write(folder: Path) -> dataset.DatasetRecord:
    """Write the digits as a prepared data set and return its record."""
    record, tensors = prepare()
    dataset.write(folder, record, tensors)
    return record


def describe() -> dataset.DatasetRecord:
    """Return the record without writing anything."""
    return prepare()[0]

"""The built-in data set `digits`: scikit-learn's handwritten digits.

1,797 grey images of 8x8 pixels. Values 0..16 are scaled to 0..255; the splits are fixed.
Source: Alpaydin and Kaynak, UCI "Optical Recognition of Handwritten Digits" (test part).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.distill.config.job import Input
from workers.distill.data import dataset, splits

SIZES = (1257, 180, 360)
HIGHEST = 16


def prepare() -> tuple[dataset.DatasetRecord, dict[str, tuple[Tensor, Tensor]]]:
    """Return the record, and for each split images uint8 [N, 1, 8, 8] and labels int64 [N]."""
    # Imported only now: scikit-learn takes longer to load than most uploads to inspect.
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    scaled = np.rint(pixels * (255 / HIGHEST)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
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

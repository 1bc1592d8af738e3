"""A built-in data set with few labelled training images, as an NPZ file to upload.

`python -m workers.distill.data.few_labels digits --labels 100 --output digits-100.npz` draws them
class by class with a fixed seed; validation and test images are those of the whole set. With
`--keep-unlabelled` the other training images are in the file as well, without their labels.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.distill.data import catalog, dataset, splits

_ARRAYS = {"train": "train", "validation": "val", "test": "test"}


def write(
    name: str, labels: int, output: Path, *, keep_unlabelled: bool = False
) -> dataset.DatasetRecord:
    """Write `labels` training images of a built-in data set, and return the whole set's record.

    The others are left out, or kept as `UNLABELLED`; then `labels` may be 0.

    Raises `ValueError` for an unknown data set, fewer labels than classes, or more than there are.
    """
    entry = catalog.DATASETS.get(name)
    if entry is None:
        known = ", ".join(catalog.DATASETS)
        raise ValueError(f"there is no built-in data set {name!r}; there are {known}")
    arrays: dict[str, Any] = {}  # NumPy's stub takes keywords for its own options
    with tempfile.TemporaryDirectory() as folder:
        record = entry.write(Path(folder))
        if record.task != "classification":
            raise ValueError(f"{name} is for {record.task}: its images have no single label")
        most = record.splits["train"]
        is_none = keep_unlabelled and labels == 0
        if not (is_none or len(record.classes) <= labels <= most):
            raise ValueError(f"labels must be {len(record.classes)} to {most}, got {labels}")
        stored = dataset.load(Path(folder))
        for split, suffix in _ARRAYS.items():
            content = stored.split(split)
            images, targets = content.images.numpy(), content.labels.numpy()
            if split == "train":
                (chosen,) = splits.stratified(targets, (labels,))
                if keep_unlabelled:
                    others = np.setdiff1d(np.arange(len(targets)), chosen)
                    targets = targets.copy()
                    targets[others] = dataset.UNLABELLED
                else:
                    images, targets = images[chosen], targets[chosen]
            arrays[f"x_{suffix}"], arrays[f"y_{suffix}"] = images.copy(), targets.copy()
    arrays["classes"] = np.array(record.classes)
    with output.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    return record


def main(arguments: Sequence[str]) -> int:
    """Write the file, print the record of the whole data set as JSON, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.distill.data.few_labels")
    parser.add_argument("name", help="a built-in data set, such as digits")
    parser.add_argument("--labels", type=int, default=100, help="labelled training images")
    parser.add_argument(
        "--keep-unlabelled", action="store_true", help="keep the others, without their labels"
    )
    parser.add_argument("--output", type=Path, required=True, help="the NPZ file to write")
    options = parser.parse_args(arguments)
    try:
        record = write(
            options.name, options.labels, options.output, keep_unlabelled=options.keep_unlabelled
        )
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(record.model_dump_json(exclude_none=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

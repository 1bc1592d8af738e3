"""The images of a data set as they are stored, or as they are augmented, for predictions elsewhere.

`python -m workers.distill.data.stored_images digits --output digits-images.npz` writes the arrays
`train`, `validation` and `test`: uint8 [N, C, H, W], in the order in which predictions of them are
uploaded. SOURCE is a built-in data set, an archive as it was uploaded, or a prepared folder.
With `--views 8 --seed 0 --augmentation standard`, `train` is [N, V, C, H, W]: the views that a job
with `training.teacher_cache.views` 8, that seed and that augmentation shows.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config.training import expand
from workers.distill.data import catalog, dataset
from workers.distill.data.formats import catalog as formats
from workers.distill.data.formats import conversion
from workers.distill.data.formats.upload import Upload
from workers.distill.data.loader import BatchLoader

BATCH = 256


def prepare(source: str, folder: Path, hints: conversion.InputHints) -> dataset.StoredDataset:
    """Return a data set in its stored form; one that is not yet so is written into `folder`.

    Raises `ValueError` for a source that does not exist, `UploadRefused` for an archive that cannot
    be read, `BadDataset` for a folder that is no data set.
    """
    path = Path(source)
    if path.is_dir():
        return dataset.load(path)
    if source in catalog.DATASETS:
        catalog.DATASETS[source].write(folder)
    elif path.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            upload = Upload(path, Path(scratch))
            chosen = formats.choose("auto", "classification", upload)
            chosen.convert(upload, folder, hints, "classification")
    else:
        raise ValueError(
            f"there is no file, folder or built-in data set {source!r}; built in are "
            + ", ".join(catalog.DATASETS)
        )
    return dataset.load(folder)


def views_of(
    stored: dataset.StoredDataset, *, views: int, seed: int, augmentation: str
) -> NDArray[np.uint8]:
    """Return the training images [N, V, C, H, W] as a teacher cache of so many views has them."""
    training = expand(
        {"seed": seed, "augmentation": augmentation, "teacher_cache": {"views": views}}
    )
    split = stored.open_split("train")
    loader = BatchLoader(
        split.images,
        split.labels,
        training=training,
        flip=stored.record.flip,
        device=torch.device("cpu"),
    )
    batches = [batch.images for batch in loader.views_in_order(BATCH)]
    every = torch.cat(batches).contiguous().numpy()
    shaped: NDArray[np.uint8] = every.reshape(len(split.images), views, *every.shape[1:])
    return shaped


def write(stored: dataset.StoredDataset, output: Path, train: NDArray[np.uint8] | None) -> None:
    """Write all splits as an NPZ file; `train` replaces the stored images of that split."""
    arrays: dict[str, Any] = {  # NumPy's stub takes keywords for its own options
        name: stored.open_split(name).images[:].contiguous().numpy() for name in dataset.SPLITS
    }
    if train is not None:
        arrays["train"] = train
    with output.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def main(arguments: Sequence[str]) -> int:
    """Write the file, print the data set's record as JSON, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.distill.data.stored_images")
    parser.add_argument("source", help="a built-in data set, an archive or a prepared folder")
    parser.add_argument("--input", default="{}", help="JSON: the input that it was uploaded with")
    parser.add_argument("--views", type=int, default=1, help="views of each training image")
    parser.add_argument("--seed", type=int, default=0, help="training.seed of the job")
    parser.add_argument("--augmentation", choices=["standard", "flip"], default="standard")
    parser.add_argument("--output", type=Path, required=True, help="the NPZ file to write")
    options = parser.parse_args(arguments)
    try:
        hints = conversion.InputHints.model_validate(json.loads(options.input))
        with tempfile.TemporaryDirectory() as folder:
            stored = prepare(options.source, Path(folder), hints)
            train = None
            if options.views > 1:
                train = views_of(
                    stored,
                    views=options.views,
                    seed=options.seed,
                    augmentation=options.augmentation,
                )
            write(stored, options.output, train)
    except (ValueError, errors.DistillError) as error:
        parser.error(str(error))
    sys.stdout.write(stored.record.model_dump_json(exclude_none=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

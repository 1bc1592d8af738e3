"""Write arrays of images as a prepared data set: missing splits, normalisation, notes.

Shared by the upload formats whose images fit in memory, and by synthetic data sets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config.job import Input, Task
from workers.distill.data import dataset, splits

ImagesAndLabels = tuple[NDArray[np.uint8], NDArray[np.int64] | NDArray[np.uint8]]
"""Images uint8 [N, C, H, W] with labels: int64 [N], or masks uint8 [N, H, W].

Pixels of a mask without a class are `dataset.IGNORE_INDEX`.
"""


class InputHints(pydantic.BaseModel):
    """What an uploader says about the images; what is absent is measured."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channels: int | None = pydantic.Field(None, ge=1, le=64)
    height: int | None = pydantic.Field(None, ge=1, le=4096)
    width: int | None = pydantic.Field(None, ge=1, le=4096)
    mean: list[float] | None = None
    std: list[Annotated[float, pydantic.Field(gt=0)]] | None = None

    def expect(self, channels: int, height: int, width: int) -> None:
        """Raise `UploadRefused` if the images have another size than the uploader said."""
        for name, expected, actual in (
            ("channels", self.channels, channels),
            ("height", self.height, height),
            ("width", self.width, width),
        ):
            if expected is not None and expected != actual:
                raise errors.UploadRefused(
                    "mixed_sizes",
                    f"input.{name} says {expected}, but the images have {actual}; leave it out, or "
                    "upload images of that size",
                )

    def normalisation(
        self, channels: int, measured: tuple[list[float], list[float]]
    ) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation by channel: the uploader's, else those measured."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise errors.UploadRefused(
                    "mixed_sizes",
                    f"input.{name} has {len(values)} numbers, but the images have {channels} "
                    "channels",
                )
        return self.mean or measured[0], self.std or measured[1]


def write_arrays(
    folder: Path,
    given: Mapping[str, ImagesAndLabels],
    *,
    classes: Sequence[str],
    flip: bool,
    hints: InputHints,
    notes: Sequence[str] = (),
    task: Task = "classification",
) -> dataset.DatasetRecord:
    """Write arrays as a prepared data set and return its record.

    `given` needs the split `train`; `validation` and `test` are taken from it where they are
    missing. `flip` says that mirrored images keep their labels. Raises `UploadRefused` for an empty
    split, too few images, or a size that contradicts `hints`.
    """
    images, labels = given["train"]
    channels, height, width = images.shape[1:]
    hints.expect(channels, height, width)
    division = splits.divide(labels, has_validation="validation" in given, has_test="test" in given)
    complete = dict(given)
    complete["train"] = (images[division.train], labels[division.train])
    for name, index in (("validation", division.validation), ("test", division.test)):
        if index is not None:
            complete[name] = (images[index], labels[index])
    for name, (content, _) in complete.items():
        if len(content) == 0:
            raise errors.UploadRefused("no_images", f"the {name} split has no images")
    mean, std = hints.normalisation(channels, dataset.moments(complete["train"][0]))
    record = dataset.DatasetRecord(
        task=task,
        classes=list(classes),
        splits={
            "train": len(complete["train"][1]),
            "validation": len(complete["validation"][1]),
            "test": len(complete["test"][1]),
        },
        input=Input(channels=channels, height=height, width=width, mean=mean, std=std),
        flip=flip,
        notes=[*notes, *division.notes, *_absent_classes(classes, complete["train"][1])],
    )
    dataset.write(
        folder,
        record,
        {
            name: (
                # Writable as well: torch has no tensors that are not.
                torch.from_numpy(np.require(complete[name][0], requirements=["C", "W"])),
                torch.from_numpy(np.require(complete[name][1], requirements=["C", "W"])),
            )
            for name in dataset.SPLITS
        },
    )
    return record


def _absent_classes(
    classes: Sequence[str], labels: NDArray[np.int64] | NDArray[np.uint8]
) -> list[str]:
    absent = sorted(set(range(len(classes))) - set(np.unique(labels).tolist()))
    if not absent:
        return []
    some = ", ".join(classes[label] for label in absent[:6])
    what = "pixels" if labels.ndim > 1 else "images"
    return [f"{len(absent)} classes have no training {what}: {some}"]

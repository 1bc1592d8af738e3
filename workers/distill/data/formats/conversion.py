"""Write images as a prepared data set: missing splits, normalisation, notes.

Whole arrays where the images of an upload fit in memory (`write_arrays`, for synthetic data sets as
well); pictures one at a time where they need not (`divide`, `store`, `finish`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config import formats as format_rules
from workers.distill.config.job import Input, Task
from workers.distill.data import dataset, splits
from workers.distill.files import tensorfile

LARGEST_STORED_BYTES = 64 << 30
LARGEST_SIDE = 4096
"""Of stored images in pixels."""
GREY_OR_RGB = (1, 3)
MOST_CLASSES = 100_000
LONGEST_NAME = 200
"""Of a class, in characters."""
PLAIN_CLASSES = 1000
CLASSES_PER_IMAGE = 10
"""More classes than this a picture, and than `PLAIN_CLASSES`, are a mistake in the numbers."""
MOST_NAMED = 6
"""Classes that a note names."""
ImagesAndLabels = tuple[NDArray[np.uint8], NDArray[np.int64] | NDArray[np.uint8]]
"""Images uint8 [N, C, H, W] with labels: int64 [N], or masks uint8 [N, H, W].

Pixels of a mask without a class are `dataset.IGNORE_INDEX`.
"""


class InputHints(pydantic.BaseModel):
    """What an uploader says about the images; what is absent is measured."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channels: int | None = pydantic.Field(None, ge=1, le=64)
    height: int | None = pydantic.Field(None, ge=1, le=LARGEST_SIDE)
    width: int | None = pydantic.Field(None, ge=1, le=LARGEST_SIDE)
    mean: list[float] | None = None
    std: list[Annotated[float, pydantic.Field(gt=0)]] | None = None
    max_value: int | None = pydantic.Field(None, ge=1, le=65_535)
    """White in pictures of more than 8 bits, such as 4095 for 12; measured where left out."""
    max_bad_share: float = pydantic.Field(0.01, ge=0, le=1)
    """Share of pictures that may be left out because they cannot be read."""
    storage: format_rules.Storage = "auto"
    decoded_bytes: int = pydantic.Field(format_rules.DECODED_BYTES, ge=0)
    """Above it `auto` stores pictures encoded; the service's setting, not the uploader's."""

    def stores_encoded(self, form: "StoredForm", images: int) -> bool:
        """Return whether so many images of a form are stored as the pictures that they are."""
        if self.storage != "auto":
            return self.storage == "encoded"
        return form.channels * form.height * form.width * images > self.decoded_bytes

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

    def size(self) -> tuple[int, int] | None:
        """Return the height and width that were given; one number alone means a square."""
        height, width = self.height or self.width, self.width or self.height
        return None if height is None or width is None else (height, width)

    def picture_channels(self, *, are_grey: bool) -> int:
        """Return the channels for pictures: the uploader's, else 1 if all are grey, else 3.

        Raises `UploadRefused` for a number that pictures cannot have.
        """
        channels = self.channels or (1 if are_grey else 3)
        if channels not in GREY_OR_RGB:
            raise errors.UploadRefused(
                "unsupported_format",
                f"pictures have 1 or 3 channels, input.channels says {channels}",
            )
        return channels

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


@dataclass(frozen=True)
class StoredForm:
    """Channels and size that all images of a data set get."""

    channels: int
    height: int
    width: int


P = TypeVar("P")
"""A picture of an upload: its file, with what its format says of it."""


def divide(
    given: Mapping[str, Sequence[P]], classes: NDArray[np.int64] | None = None
) -> tuple[dict[str, list[P]], tuple[str, ...]]:
    """Return the pictures of all three splits, and notes; missing ones are taken from training.

    `classes` are those of the training pictures [N]; without them pictures are drawn regardless.
    """
    train = given["train"]
    division = splits.divide(
        np.empty((len(train), 0), dtype=np.int64) if classes is None else classes,
        has_validation="validation" in given,
        has_test="test" in given,
    )
    complete = {name: list(content) for name, content in given.items()}
    complete["train"] = [train[index] for index in division.train]
    for name, chosen in (("validation", division.validation), ("test", division.test)):
        if chosen is not None:
            complete[name] = [train[index] for index in chosen]
    return complete, division.notes


def check_stored_bytes(form: StoredForm, images: int, label_bytes: int) -> None:
    """Raise `UploadRefused` where so many images, and labels of so many bytes each, are too much.

    Pictures unpack to far more than the archive that they came in.
    """
    if max(form.height, form.width) > LARGEST_SIDE:
        raise errors.UploadRefused(
            "too_large",
            f"the pictures are {form.height}x{form.width} (height x width), more than "
            f"{LARGEST_SIDE} along a side; give a smaller input.height and input.width",
        )
    bytes_each = form.channels * form.height * form.width + label_bytes
    if bytes_each * images > LARGEST_STORED_BYTES:
        raise errors.UploadRefused(
            "too_large",
            f"the decoded pictures take more than {LARGEST_STORED_BYTES} bytes; give a smaller "
            "input.height and input.width",
        )


def check_classes(classes: Sequence[str], images: int) -> None:
    """Raise `UploadRefused` for names too long to be shown, or far more classes than images.

    A few bytes can claim a hundred thousand classes, which every list would then carry.
    """
    for number, name in enumerate(classes):
        if len(name) > LONGEST_NAME:
            raise errors.UploadRefused(
                "bad_labels",
                f"class {number} has a name of {len(name)} characters ({name[:40]!r}...), more "
                f"than {LONGEST_NAME}",
            )
    most = min(MOST_CLASSES, max(PLAIN_CLASSES, CLASSES_PER_IMAGE * images))
    if len(classes) > most:
        raise errors.UploadRefused(
            "bad_labels",
            f"there are {len(classes)} classes for {images} images, more than {most}: number the "
            "classes from 0 without gaps",
        )


def store(
    folder: Path,
    name: str,
    pictures: Sequence[P],
    form: StoredForm,
    shapes: Mapping[str, tuple[str, Sequence[int]]],
    decode: Callable[[P], Mapping[str, Any] | None],  # Any: arrays, or numbers
) -> dict[str, NDArray[np.generic]]:
    """Decode a split, one picture at a time, into its file; return its tensors, mapped from it.

    `shapes` gives dtype and shape, for one image, of what is stored beside `images`; `decode`
    returns the values of one, or None for a picture that is left out. Raises `UploadRefused` where
    none is left.
    """
    if not pictures:
        raise errors.UploadRefused("no_images", f"the {name} split has no readable pictures")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    one = {"images": ("U8", (form.channels, form.height, form.width)), **shapes}
    arrays = _create(path, one, len(pictures))
    kept = 0
    for picture in pictures:
        values = decode(picture)
        if values is not None:
            for key, value in values.items():
                arrays[key][kept] = value
            kept += 1
    if not kept:
        raise errors.UploadRefused("no_images", f"the {name} split has no readable pictures")
    if kept < len(pictures):
        shorter = path.with_suffix(".shorter")
        fewer = _create(shorter, one, kept)
        for key, array in fewer.items():
            for row in range(kept):
                array[row] = arrays[key][row]
        shorter.replace(path)
        arrays = fewer
    for array in arrays.values():
        cast("np.memmap[Any, Any]", array).flush()
    return arrays


def _create(
    path: Path, one: Mapping[str, tuple[str, Sequence[int]]], count: int
) -> dict[str, NDArray[np.generic]]:
    """Create a file for so many images, of which `one` gives dtypes and shapes."""
    return tensorfile.create(
        path, {key: (dtype, (count, *shape)) for key, (dtype, shape) in one.items()}
    )


def finish(
    folder: Path,
    stored: Mapping[str, Mapping[str, NDArray[np.generic]]],
    form: StoredForm,
    *,
    classes: Sequence[str],
    flip: bool,
    hints: InputHints,
    notes: Sequence[str],
    task: Task,
    boxes: dict[str, list[int]] | None = None,
    encoded: dataset.EncodedPictures | None = None,
) -> dataset.DatasetRecord:
    """Write the record of a data set whose splits `store` has written, and return it.

    Of one that is stored encoded, `images` of the training split are a sample, from which mean and
    standard deviation are measured.
    """
    check_classes(classes, sum(len(split["labels"]) for split in stored.values()))
    images = cast(NDArray[np.uint8], stored["train"]["images"])
    mean, std = hints.normalisation(form.channels, dataset.moments(images))
    labelled = _labelled(task, {name: stored[name]["labels"] for name in dataset.SPLITS})
    record = dataset.DatasetRecord(
        task=task,
        classes=list(classes),
        splits={
            "train": len(stored["train"]["labels"]),
            "validation": len(stored["validation"]["labels"]),
            "test": len(stored["test"]["labels"]),
        },
        boxes=boxes,
        encoded=encoded,
        labelled=labelled,
        input=Input(
            channels=form.channels, height=form.height, width=form.width, mean=mean, std=std
        ),
        flip=flip,
        notes=[
            *notes,
            *_notes_of_unlabelled(
                labelled, {name: len(stored[name]["labels"]) for name in dataset.SPLITS}
            ),
        ],
    )
    dataset.write_record(folder, record)
    return record


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
    form = StoredForm(channels, height, width)
    count = sum(len(content) for content, _ in given.values())
    check_stored_bytes(form, count, labels.itemsize)
    check_classes(classes, count)
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
    labelled = _labelled(task, {name: complete[name][1] for name in dataset.SPLITS})
    record = dataset.DatasetRecord(
        task=task,
        classes=list(classes),
        splits={
            "train": len(complete["train"][1]),
            "validation": len(complete["validation"][1]),
            "test": len(complete["test"][1]),
        },
        labelled=labelled,
        input=Input(channels=channels, height=height, width=width, mean=mean, std=std),
        flip=flip,
        notes=[
            *notes,
            *division.notes,
            *_absent_classes(classes, complete["train"][1]),
            *_notes_of_unlabelled(
                labelled, {name: len(complete[name][1]) for name in dataset.SPLITS}
            ),
        ],
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


def _labelled(task: Task, labels: Mapping[str, NDArray[np.generic]]) -> dict[str, int] | None:
    return dataset.labelled_counts(labels) if task == "classification" else None


def _notes_of_unlabelled(
    labelled: Mapping[str, int] | None, splits: Mapping[str, int]
) -> list[str]:
    """Return a note about the images without a label, or nothing where all have one."""
    if labelled is None:
        return []
    counts = ", ".join(
        f"{count - labelled[name]} of {count} in {name}" for name, count in splits.items()
    )
    return [f"images without a label: {counts}"]


def _absent_classes(
    classes: Sequence[str], labels: NDArray[np.int64] | NDArray[np.uint8]
) -> list[str]:
    absent = sorted(set(range(len(classes))) - set(np.unique(labels).tolist()))
    what = "pixels" if labels.ndim > 1 else "images"
    return notes_of_absent([classes[label] for label in absent], what)


def notes_of_absent(names: Sequence[str], what: str, *, split: str = "training") -> list[str]:
    """Return a note about the classes that have no `what` (`images`) in a split, or nothing."""
    if not names:
        return []
    some = ", ".join(names[:MOST_NAMED])
    return [f"{len(names)} classes have no {split} {what}: {some}"]

"""IDX files of images and labels, as MNIST, Fashion-MNIST, KMNIST and EMNIST are published.

An archive holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k` or
`test`, each as it is or compressed by gzip. Source: LeCun, Cortes and Burges, the MNIST database:
its file format.
"""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, conversion, folders
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload

LAYOUT = (
    "an 'idx' archive has files such as train-images-idx3-ubyte and train-labels-idx1-ubyte, each "
    "of which may be compressed (.gz)"
)
_NAME = re.compile(
    r"(?:(?P<set>.*)-)?(?P<split>train|t10k|test|valid|val)-(?P<role>images|labels)[-.]idx[13]"
    r"(?:-ubyte)?(?:\.gz)?",
    re.IGNORECASE,
)
_UBYTE = 0x08
MOST_NAMED = 6


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of IDX files and write it as a prepared data set."""
    files = find(upload)
    notes = list(upload.notes)
    aside = sorted(file.name for file in folders.files(upload.root) if file not in files.values())
    if aside:
        notes.append(f"files that are not needed were left out: {', '.join(aside[:MOST_NAMED])}")
    given: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    for split in ("train", "validation", "test"):
        if (split, "images") not in files:
            continue
        if (split, "labels") not in files:
            raise errors.UploadRefused(
                "bad_labels", f"there are no labels for {files[split, 'images'].name}"
            )
        images, labels = (_read(files[split, role]) for role in ("images", "labels"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise errors.UploadRefused(
                "bad_labels",
                f"{files[split, 'images'].name} has shape {list(images.shape)} and "
                f"{files[split, 'labels'].name} {list(labels.shape)}; expected are images "
                "[N, H, W] and labels [N]",
            )
        given[split] = (images[:, None], labels.astype(np.int64))
    lowest = min(int(labels.min()) for _, labels in given.values() if len(labels))
    highest = max(int(labels.max()) for _, labels in given.values() if len(labels))
    if lowest == 1:
        notes.append(f"labels count from 1 to {highest}: label 1 is class 0, and so on")
        given = {split: (images, labels - 1) for split, (images, labels) in given.items()}
    if highest == min(lowest, 1):
        raise errors.UploadRefused("bad_labels", f"all labels are {highest}; it takes two classes")
    first = min(lowest, 1)
    return conversion.write_arrays(
        folder,
        given,
        classes=[str(label) for label in range(first, highest + 1)],
        flip=False,
        hints=hints,
        notes=[
            *notes,
            "pictures are not mirrored in training: the files do not say whether they may be",
        ],
        task=task,
    )


def find(upload: Upload) -> dict[tuple[str, str], Path]:
    """Return the files by split and role (`images`, `labels`).

    Raises `UploadRefused` without training images, and where there are several sets.
    """
    found: dict[tuple[str, str], Path] = {}
    for file in sorted(folders.files(upload.root)):
        matched = _NAME.fullmatch(file.name)
        if matched is None:
            continue
        split = matched["split"].lower()
        key = (
            "test" if split == "t10k" else folders.SPLIT_NAMES[split],
            matched["role"].lower(),
        )
        # Torchvision keeps the compressed file beside what it has unpacked.
        if key in found and file.name == f"{found[key].name}.gz":
            continue
        if key in found:
            raise errors.UploadRefused(
                "unsupported_format",
                f"the archive has {found[key].name} and {file.name}, which are the same part of "
                "two data sets: upload them one by one",
            )
        found[key] = file
    if ("train", "images") not in found:
        raise errors.UploadRefused("unsupported_format", LAYOUT)
    return found


def _read(file: Path) -> NDArray[np.uint8]:
    """Return the array of a file, after comparing its header with the number of its bytes."""
    limit = archives.Limits()
    size = file.stat().st_size
    allowed = max(limit.ratio_free_bytes, limit.ratio * size)
    with file.open("rb") as stream:
        is_packed = stream.read(2) == b"\x1f\x8b"
    try:
        if is_packed:
            with gzip.open(file) as unpacked:
                content = unpacked.read(allowed + 1)
        else:
            content = file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise errors.UploadRefused(
            "unreadable", f"{file.name} is damaged or cut short: {error}"
        ) from error
    if len(content) > max(allowed, size):
        raise errors.UploadRefused("too_large", f"{file.name} unpacks to more than {allowed} bytes")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE:
        raise errors.UploadRefused("unreadable", f"{file.name} is no IDX file of bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise errors.UploadRefused("unreadable", f"{file.name} is cut short")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if math.prod(shape) != len(content) - start:
        raise errors.UploadRefused(
            "unreadable",
            f"{file.name} is damaged: its header says {list(shape)}, it has {len(content) - start} "
            "bytes",
        )
    return np.frombuffer(bytearray(content[start:]), dtype=np.uint8).reshape(shape)


FORMAT = Format(
    name="idx",
    title="IDX files, as MNIST is published",
    description=(
        "An archive of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and `t10k-images` and "
        "`t10k-labels` (or `test`) if there is a test split, each as it is or compressed (`.gz`), "
        "as MNIST, Fashion-MNIST, KMNIST and EMNIST are published. Labels may count from 1."
    ),
    tasks=("classification",),
    suffixes=archives.SUFFIXES,
    recognise=find,
    convert=convert,
)

"""Store pictures as the files that were uploaded, each decoded once to prove that training can.

A file is kept byte for byte where the decoder of the training loop reads it as Pillow does; any
other picture (GIF, TIFF, HEIF, more than 8 bits, odd colours) is written anew as PNG, without loss.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.data import dataset, encoded_images, shards
from workers.distill.data.dataset import UNLABELLED
from workers.distill.data.formats import conversion, pictures
from workers.distill.data.formats.problems import Problems

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
PLAIN_MODES = ("L", "RGB")
AT_ONCE = 64
"""Pictures that are read at a time; memory holds no more."""
SAMPLE = 4096
"""Training images, at most, from which mean and standard deviation are measured."""
SAMPLE_BYTES = 512 * 2**20
"""What these take together, at most: of large images there are fewer."""


@dataclass(frozen=True)
class EncodedWriter:
    """Writes all splits of an upload."""

    folder: Path
    root: Path
    form: conversion.StoredForm
    headers: Mapping[Path, pictures.PictureHeader]
    white: int
    problems: Problems

    def write(
        self, splits: Mapping[str, Sequence[tuple[Path, int]]]
    ) -> tuple[dict[str, dict[str, NDArray[np.generic]]], dataset.EncodedPictures]:
        """Write files with their classes; return labels by split, and how they are stored.

        Beside the labels of the training split stand the `images` of its sample. Pictures that
        cannot be decoded are added to the problems. Raises `UploadRefused` where a split has none
        left, or all take too many bytes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kinds: dict[str, int] = {}
        sizes: list[tuple[int, int]] = []
        total, stored = 0, dict[str, dict[str, NDArray[np.generic]]]()
        for name, files in splits.items():
            writer = shards.ShardWriter(self.folder, name)
            labels: list[int] = []
            for label, picture in self._pictures(files):
                writer.add(picture, None if label == UNLABELLED else label)
                labels.append(label)
                kinds[picture.suffix] = kinds.get(picture.suffix, 0) + 1
                sizes.append((picture.height, picture.width))
                if total + writer.encoded_bytes > conversion.LARGEST_STORED_BYTES:
                    raise errors.UploadRefused(
                        "too_large",
                        f"the pictures take more than {conversion.LARGEST_STORED_BYTES} bytes",
                    )
            if not labels:
                self.problems.refuse()
                raise errors.UploadRefused(
                    "no_images", f"the {name} split has no readable pictures"
                )
            writer.close(torch.tensor(labels))
            total += writer.encoded_bytes
            stored[name] = {"labels": np.array(labels, dtype=np.int64)}
        sample = self._sample()
        stored["train"]["images"] = sample
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        return stored, dataset.EncodedPictures(
            kinds=dict(sorted(kinds.items())),
            size_bytes=total,
            smallest=list(by_area[0]),
            largest=list(by_area[-1]),
            moments_of=len(sample),
        )

    def _pictures(
        self, files: Sequence[tuple[Path, int]]
    ) -> Iterator[tuple[int, shards.EncodedPicture]]:
        for first in range(0, len(files), AT_ONCE):
            some = files[first : first + AT_ONCE]
            read = encoded_images.in_threads(self._try, [file for file, _ in some])
            for (file, label), outcome in zip(some, read, strict=True):
                if isinstance(outcome, errors.UploadRefused):
                    self.problems.add_unreadable(file, outcome)
                else:
                    yield label, outcome

    def _try(self, file: Path) -> shards.EncodedPicture | errors.UploadRefused:
        try:
            return self._read(file)
        except errors.UploadRefused as refusal:
            return refusal

    def _read(self, file: Path) -> shards.EncodedPicture:
        """Return a picture as it is stored; raises `UploadRefused` for one that is damaged."""
        header = self.headers[file]
        suffix = SUFFIXES.get(header.kind)
        size = (header.height, header.width)
        if suffix is not None and not header.is_deep and not header.is_several:
            kept = shards.EncodedPicture(file.read_bytes(), suffix, *size, header.orientation)
            if self._is_read_alike(file, kept, header):
                return kept
        image = pictures.decode(file, self.root, self.form.channels, white=self.white)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return shards.EncodedPicture(stream.getvalue(), "png", image.height, image.width)

    def _is_read_alike(
        self, file: Path, kept: shards.EncodedPicture, header: pictures.PictureHeader
    ) -> bool:
        try:
            pixels = encoded_images.decode(kept, self.form.channels)
        except RuntimeError:
            # Pillow decides, and names the reason.
            return False
        if tuple(pixels.shape[1:]) != (kept.height, kept.width):
            return False
        same_channels = header.mode == ("L" if self.form.channels == 1 else "RGB")
        if header.kind == "JPEG" and header.mode in PLAIN_MODES and same_channels:
            # Both read it by the same library, to the same values.
            return True
        image = pictures.decode(file, self.root, self.form.channels, white=self.white)
        return bool(np.array_equal(pixels.numpy(), pictures.to_array(image)))

    def _sample(self) -> NDArray[np.uint8]:
        """Return some training images, evenly spread, as they are shown."""
        reader = shards.ShardReader.of(self.folder, "train")
        size = (self.form.channels, self.form.height, self.form.width)
        images = encoded_images.EncodedImages(reader, size)
        count = min(SAMPLE, len(images), max(1, SAMPLE_BYTES // math.prod(size)))
        rows = torch.linspace(0, len(images) - 1, count).round().long()
        sample = np.empty((count, *size), dtype=np.uint8)
        for first in range(0, count, AT_ONCE):
            some = images[rows[first : first + AT_ONCE]]
            sample[first : first + len(some)] = some.numpy()
        return sample


def notes_of(encoded: dataset.EncodedPictures, hints: conversion.InputHints) -> list[str]:
    """Return notes about how the pictures are stored, and why so."""
    count = sum(encoded.kinds.values())
    why = (
        "as input.storage asks"
        if hints.storage == "encoded"
        else f"because they take more than {hints.decoded_bytes} bytes when they are decoded"
    )
    small, large = ("x".join(map(str, size)) for size in (encoded.smallest, encoded.largest))
    kinds = ", ".join(f"{number} {kind}" for kind, number in encoded.kinds.items())
    return [
        f"{count} pictures ({kinds}) are stored encoded, {why}: {small} to {large} pixels (height "
        "x width); training decodes them, and resizes them to the input's size",
        f"mean and standard deviation are measured on {encoded.moments_of} training images",
    ]

"""Images of a split that is stored encoded: decoded, cut and resized in threads, when needed.

Decoders and resizing release the interpreter's lock, so threads use as many cores as there are,
and a batch is written into its memory without a copy between processes. Nothing is kept: memory
holds the batches that were begun. A picture's pixels are a function of its bytes and its crop
alone, so it does not matter which thread makes it, or when.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode

from workers.distill import errors
from workers.distill.data import crop_writing
from workers.distill.data.lazy_images import LazyImages, centre_view
from workers.distill.data.shards import EncodedPicture, ShardReader
from workers.distill.data.types import AnyCrops, CropRow, ResizedCropRow

MOST_THREADS = 16
AHEAD = 2
"""Batches that are begun before the one that is used."""
LUMA = (19595, 38470, 7471)
"""Shares of red, green and blue in grey, in 65,536ths, as Pillow has them."""

T = TypeVar("T")
R = TypeVar("R")
Pixels = UInt8[Tensor, "c h w"]


_processes = 1


def share_cores(processes: int) -> None:
    """Let this process decode with its part of the cores, which so many processes use alike."""
    global _processes
    _processes = processes


def threads() -> int:
    """Return how many threads decode: one for each core of this process, from 1 to 16.

    Its cores are those that it may use, divided by the processes of `share_cores`.
    """
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // _processes))


def _pool() -> ThreadPoolExecutor:
    return _pool_of(threads())


@functools.cache
def _pool_of(count: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "decode", initializer=torch.set_num_threads, initargs=(1,))
    # Torch's own threads would only compete with these. Part of that number belongs to the
    # process, so all threads start now, and then the caller gets its own back.
    together = threading.Barrier(count)
    for started in [pool.submit(together.wait) for _ in range(count)]:
        started.result()
    torch.set_num_threads(before)
    return pool


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return what `work` makes of each item, in the threads that decode; in order."""
    return list(_pool().map(work, items))


def decode(picture: EncodedPicture, channels: int) -> Pixels:
    """Return a picture's pixels, upright, as grey (1 channel) or RGB (3).

    The same as `formats.pictures.decode` returns. Raises RuntimeError for a damaged one.
    """
    raw = torch.frombuffer(bytearray(picture.content), dtype=torch.uint8)
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.UNCHANGED
    # The function around this operator is deprecated in favour of TorchCodec (decision 40).
    pixels: Tensor = torch.ops.image.decode_image(raw, mode.value, False)
    if pixels.dtype != torch.uint8:
        raise RuntimeError(f"its values are {pixels.dtype}, not of 8 bits")
    if channels == 1 and len(pixels) > 1:
        pixels = _grey(pixels)
    return turned(pixels, picture.orientation)


def _grey(pixels: Pixels) -> UInt8[Tensor, "1 h w"]:
    if len(pixels) < 3:  # grey and alpha
        return pixels[:1]
    red, green, blue = (plane.int() * share for plane, share in zip(pixels[:3], LUMA, strict=True))
    grey: Tensor = (red + green + blue + 0x8000) >> 16
    return grey.to(torch.uint8)[None]


def turned(pixels: Pixels, orientation: int) -> UInt8[Tensor, "c H W"]:
    """Return pixels upright, by EXIF's orientation (1 to 8)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels.flip(1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels.flip(2)
    return pixels


class EncodedImages(LazyImages):
    """Pictures of a split as images [N, c, h, w] of one size, as `centre_view` makes them.

    `source` cuts crops of them: resized crops are cut from a picture as it was uploaded.
    """

    ahead = AHEAD

    def __init__(self, reader: ShardReader, size: tuple[int, int, int]) -> None:
        super().__init__(len(reader), size)
        self._reader = reader
        self._ratio = 1.0

    def at_ratio(self, crop_ratio: float) -> "EncodedImages":
        """Return the same images, of whose shorter side this share is shown."""
        other = self.subset(slice(None))
        other._ratio = crop_ratio
        return other

    def source(self, device: torch.device) -> "EncodedCrops":
        """Return the source of crops for a device."""
        return EncodedCrops(self, device)

    def picture(self, row: int) -> Pixels:
        """Return the pixels of one picture at its own size; raises `BadDataset` if damaged."""
        picture = self._reader.read(row)
        try:
            pixels = decode(picture, self._size[0])
        except RuntimeError as error:
            raise errors.BadDataset(f"picture {row} cannot be decoded: {error}") from error
        if pixels.shape[1:] != (picture.height, picture.width):
            raise errors.BadDataset(
                f"picture {row} is {list(pixels.shape[1:])}, and its index says "
                f"{[picture.height, picture.width]}"
            )
        return pixels

    def view(self, row: int) -> Pixels:
        """Return one picture as it is shown."""
        return centre_view(self.picture(row)[None], self._size[1:], self._ratio)[0]

    def sizes(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Return heights and widths of some pictures."""
        return self._reader.sizes(self._rows[index])

    def rows_of(self, index: Int[Tensor, " n"]) -> list[int]:
        """Return the rows of the index of the split at which some of the images are."""
        rows: list[int] = self._rows[index].tolist()
        return rows

    def fill(
        self, rows: Sequence[int], write: Sequence[Callable[[NDArray[np.uint8]], None]]
    ) -> "PendingBatch":
        """Begin a batch, each image [c, h, w] of which one of `write` writes, in the threads."""
        channels, height, width = self._size
        pin = self.device.type == "cuda"
        batch = torch.zeros(len(rows), height, width, channels, dtype=torch.uint8, pin_memory=pin)
        targets = batch.numpy().transpose(0, 3, 1, 2)
        pool = _pool()
        begun = [pool.submit(one, target) for one, target in zip(write, targets, strict=True)]
        return PendingBatch(batch.permute(0, 3, 1, 2), begun, self.device)

    def _make(self, index: Int[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        def write(row: int, target: NDArray[np.uint8]) -> None:
            target[:] = self.view(row).numpy()

        rows: list[int] = index.tolist()
        return self.fill(rows, [functools.partial(write, row) for row in rows]).result()


class EncodedCrops:
    """Crops of encoded images; `crop_writing.CropSource` says what each method returns."""

    ahead = AHEAD
    device = torch.device("cpu")

    def __init__(self, images: EncodedImages, device: torch.device) -> None:
        self._images = images.to(device)

    def sizes(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Return heights and widths of the pictures, from which resized crops are cut."""
        return self._images.sizes(index)

    def begin(self, index: Int[Tensor, " n"], crops: AnyCrops) -> "PendingBatch":
        """Begin to decode pictures and to cut their crops, in the threads."""
        rows = self._images.rows_of(index)
        cuts: Sequence[CropRow | ResizedCropRow] = crops.rows()
        write = [
            functools.partial(self._write, row, cut) for row, cut in zip(rows, cuts, strict=True)
        ]
        return self._images.fill(rows, write)

    def _write(self, row: int, cut: CropRow | ResizedCropRow, target: NDArray[np.uint8]) -> None:
        is_part = isinstance(cut, ResizedCropRow)
        image = self._images.picture(row) if is_part else self._images.view(row)
        crop_writing.cut_one(image.numpy(), cut, target)


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose images are being written by the threads."""

    images: UInt8[Tensor, "n c h w"]
    begun: list["Future[None]"]
    device: torch.device

    def result(self) -> UInt8[Tensor, "n c h w"]:
        """Return the images on the device; raises what a picture's decoder raised."""
        for one in self.begun:
            one.result()
        return self.images.to(self.device, non_blocking=True)

    def cancel(self) -> None:
        """Leave out what no thread has begun."""
        for one in self.begun:
            one.cancel()

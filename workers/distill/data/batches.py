"""Small labelled sets on the device: which images make a step, and how a network sees them.

An epoch is a pure function of seed and epoch number, so a resumed run needs no state to see the
same images in the same order with the same crops. Images stay uint8 until a network's own `View`
normalises them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.method import Batch
from workers.distill.recipe import Input

CROP_SHARE = 8
"""Zero padding of the random crop is this share of the side: 4 pixels at 32."""


class View:
    """How one network sees stored images: its size, its channels, its normalisation."""

    def __init__(self, role: str, expected: Input, stored: Input, device: torch.device) -> None:
        if expected.channels != stored.channels and (stored.channels, expected.channels) != (1, 3):
            raise errors.IncompatibleNetworks(
                f"the {role} expects {expected.channels} channels and the data set has "
                f"{stored.channels}; only 1 to 3 can be adapted, so choose another network or "
                "data set",
                expected_channels=expected.channels,
                dataset_channels=stored.channels,
            )
        self._size = (expected.height, expected.width)
        self._channels = expected.channels
        mean = torch.tensor(expected.mean, dtype=torch.float32, device=device)
        std = torch.tensor(expected.std, dtype=torch.float32, device=device)
        self._scale = (1 / (255 * std))[:, None, None]
        self._shift = (-mean / std)[:, None, None]

    def __call__(self, images: UInt8[Tensor, "N c h w"]) -> Float[Tensor, "N C H W"]:
        """Return the images as this network expects them, channels last."""
        seen = images.float()
        if seen.shape[2:] != self._size:
            seen = F.interpolate(
                seen, size=self._size, mode="bilinear", antialias=True, align_corners=False
            )
        if seen.shape[1] != self._channels:
            seen = seen.expand(-1, self._channels, -1, -1)
        seen = torch.addcmul(self._shift, seen, self._scale)
        return seen.contiguous(memory_format=torch.channels_last)


class Batches:
    """The training split of a small set, held on the device and augmented there in batches."""

    def __init__(
        self,
        images: UInt8[Tensor, "N c h w"],
        labels: Int[Tensor, " N"],
        *,
        batch_size: int,
        seed: int,
        augment: bool,
        flip: bool,
        device: torch.device,
    ) -> None:
        self.count, self._channels, self._height, self._width = images.shape
        self._seed = seed
        self._bounds = bounds(self.count, batch_size)
        self._augment = augment
        self._flip = augment and flip
        self._pad_y = max(1, round(self._height / CROP_SHARE)) if augment else 0
        self._pad_x = max(1, round(self._width / CROP_SHARE)) if augment else 0
        padded = F.pad(images, (self._pad_x, self._pad_x, self._pad_y, self._pad_y))
        # One row per pixel, channels together: a crop is then a plain look-up of rows, and what
        # comes out is channels-last without a copy.
        pixels = padded.permute(0, 2, 3, 1).reshape(-1, self._channels)
        self._pixels = pixels.contiguous().to(device)
        self._labels = labels.to(device)
        self._device = device

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._bounds)

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 1), leaving out those before `first`."""
        generator = torch.Generator().manual_seed(mix(self._seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        top, left, mirrored = self._draw(generator)
        order, top, left, mirrored = (
            drawn.to(self._device, non_blocking=True) for drawn in (order, top, left, mirrored)
        )
        for start, end in self._bounds[first:]:
            index = order[start:end]
            images = self._cut(index, top[start:end], left[start:end], mirrored[start:end])
            yield Batch(images=images, labels=self._labels[index], index=index)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images once, unaugmented, in stored order."""
        for start in range(0, self.count, batch_size):
            index = torch.arange(start, min(start + batch_size, self.count), device=self._device)
            top = torch.full_like(index, self._pad_y)
            left = torch.full_like(index, self._pad_x)
            images = self._cut(index, top, left, torch.zeros_like(index, dtype=torch.bool))
            yield Batch(images=images, labels=self._labels[index], index=index)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        def whole(high: int) -> Tensor:
            return torch.randint(high, (self.count,), generator=generator)

        if not self._augment:
            nothing = torch.zeros(self.count, dtype=torch.int64)
            return nothing, nothing, nothing.bool()
        top, left = whole(2 * self._pad_y + 1), whole(2 * self._pad_x + 1)
        mirrored = whole(2).bool() if self._flip else torch.zeros(self.count, dtype=torch.bool)
        return top, left, mirrored

    def _cut(self, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        wide = self._width + 2 * self._pad_x
        tall = self._height + 2 * self._pad_y
        columns = torch.arange(self._width, device=self._device)
        columns = torch.where(mirrored[:, None], self._width - 1 - columns, columns)
        columns = columns + left[:, None]
        rows = torch.arange(self._height, device=self._device) + top[:, None]
        rows = (index[:, None] * tall + rows) * wide
        places = rows[:, :, None] + columns[:, None, :]
        cut = self._pixels.index_select(0, places.reshape(-1))
        shape = (len(index), self._height, self._width, self._channels)
        return cut.view(shape).permute(0, 3, 1, 2)


def bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Return where each batch of an epoch starts and ends.

    The last batch may be smaller. If a single image would be left, it joins the batch before it:
    batch norm has no variance to learn from one image.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def mix(*numbers: int) -> int:
    """Return a seed made of several numbers, far from the seeds of their neighbours."""
    mixed = 0
    for number in numbers:  # the finaliser of SplitMix64, chained
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63

"""Mixtures of two images of a batch: mixup blends them, CutMix pastes a box of one into the other.

Sources: Zhang et al., arXiv 1710.09412 (mixup); Yun et al., arXiv 1905.04899 (CutMix). Differs:
each image has its own share, where the authors draw one per batch; blends are rounded to whole
pixel values, as batches are uint8.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workers.distill.config.training import CutMix, Mixup
from workers.distill.data.types import Batch, Mixed


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Parameters of mixing, one row per image; on the CPU."""

    mixing: Mixup | CutMix
    share: Float[Tensor, " N"]
    """What the first image keeps, as it was drawn."""
    place: Float[Tensor, " N"]
    """The order of these numbers says which images of a batch meet."""
    down: Float[Tensor, " N"]
    across: Float[Tensor, " N"]

    def part(self, start: int, end: int) -> "Mixture":
        """Return the mixing parameters of one batch."""
        columns = (self.share, self.place, self.down, self.across)
        return Mixture(self.mixing, *(column[start:end] for column in columns))

    def mix(self, batch: Batch) -> Batch:
        """Return the batch with each image mixed with another one of it."""
        device = batch.images.device
        partner = self.place.argsort().to(device, non_blocking=True)
        others = batch.images[partner]
        if isinstance(self.mixing, Mixup):
            share = self.share.float().to(device, non_blocking=True)
            images = _blend(batch.images, others, share)
        else:
            inside = _boxes(self.share, self.down, self.across, batch.images.shape[2:])
            share = (~inside).float().mean((1, 2)).to(device, non_blocking=True)
            box = inside.to(device, non_blocking=True)[:, None]
            images = torch.where(box, others, batch.images)
        images = images.contiguous(memory_format=torch.channels_last)
        mixed = Mixed(batch.labels[partner], share)
        return dataclasses.replace(batch, images=images, mixed=mixed)


def draw(mixing: Mixup | CutMix, count: int, seed: int) -> Mixture:
    """Draw the mixing parameters of an epoch's images."""
    generator = np.random.default_rng(seed)
    share = generator.beta(mixing.alpha, mixing.alpha, count)
    columns = (share, *generator.random((3, count)))
    return Mixture(mixing, *(torch.from_numpy(column) for column in columns))


def _blend(first: Tensor, second: Tensor, share: Float[Tensor, " N"]) -> Tensor:
    mixed = torch.lerp(second.float(), first.float(), share[:, None, None, None])
    return mixed.round().to(torch.uint8)


def _boxes(share: Tensor, down: Tensor, across: Tensor, size: torch.Size) -> Bool[Tensor, "N h w"]:
    """Return which pixels are pasted: a box around a place, cut off at the border."""
    inside = torch.ones(1, 1, 1, dtype=torch.bool)
    side = (1 - share).sqrt()
    for axis, (length, centre) in enumerate(zip(size, (down, across), strict=True)):
        half = (length * side / 2).floor()[:, None, None]
        middle = (length * centre).floor()[:, None, None]
        places = torch.arange(length).unsqueeze(1 - axis)
        inside = inside & (places >= middle - half) & (places < middle + half)
    return inside

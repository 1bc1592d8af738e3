"""Mixtures of two images of a batch: mixup blends them, CutMix pastes a box of one into the other.

Sources: Zhang et al., arXiv 1710.09412 (mixup); Yun et al., arXiv 1905.04899 (CutMix). Differs:
each image has its own share and, where both are in use, its own kind, where the authors draw one
per batch; blends are rounded to whole pixel values, as batches are uint8.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workers.distill.config.training import Mixing, Mixup, MixupOrCutMix
from workers.distill.data.types import Batch, Mixed


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Parameters of mixing, one row per image; on the CPU."""

    mixing: Mixing
    share: Float[Tensor, " N"]
    """What the first image keeps, as it was drawn."""
    place: Float[Tensor, " N"]
    """The order of these numbers says which images of a batch meet."""
    down: Float[Tensor, " N"]
    across: Float[Tensor, " N"]
    is_cut: Bool[Tensor, " N"] | None = None
    """Where both are in use, which images are mixed by CutMix; None where one is."""

    def part(self, start: int, end: int) -> "Mixture":
        """Return the mixing parameters of one batch."""
        columns = (self.share, self.place, self.down, self.across)
        is_cut = None if self.is_cut is None else self.is_cut[start:end]
        share, place, down, across = (column[start:end] for column in columns)
        return Mixture(self.mixing, share, place, down, across, is_cut)

    def mix(self, batch: Batch) -> Batch:
        """Return the batch with each image mixed with another one of it."""
        device = batch.images.device
        partner = self.place.argsort().to(device, non_blocking=True)
        others = batch.images[partner]
        if self.is_cut is not None:
            is_cut = self.is_cut.to(device, non_blocking=True)
            blended, kept = self._blended(batch.images, others)
            pasted, left = self._pasted(batch.images, others)
            images = torch.where(is_cut[:, None, None, None], pasted, blended)
            share = torch.where(is_cut, left, kept)
        elif isinstance(self.mixing, Mixup):
            images, share = self._blended(batch.images, others)
        else:
            images, share = self._pasted(batch.images, others)
        images = images.contiguous(memory_format=torch.channels_last)
        mixed = Mixed(batch.labels[partner], share)
        return dataclasses.replace(batch, images=images, mixed=mixed)

    def _blended(self, images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        share = self.share.float().to(images.device, non_blocking=True)
        return _blend(images, others, share), share

    def _pasted(self, images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        inside = _boxes(self.share, self.down, self.across, images.shape[2:])
        share = (~inside).float().mean((1, 2)).to(images.device, non_blocking=True)
        box = inside.to(images.device, non_blocking=True)[:, None]
        return torch.where(box, others, images), share


def draw(mixing: Mixing, count: int, seed: int) -> Mixture:
    """Draw the mixing parameters of an epoch's images."""
    generator = np.random.default_rng(seed)
    if isinstance(mixing, MixupOrCutMix):
        is_cut = generator.random(count) < mixing.cutmix_share
        alpha = np.where(is_cut, mixing.cutmix_alpha, mixing.mixup_alpha)
        share = generator.beta(alpha, alpha)
    else:
        is_cut, share = None, generator.beta(mixing.alpha, mixing.alpha, count)
    columns = (share, *generator.random((3, count)))
    shares, place, down, across = (torch.from_numpy(column) for column in columns)
    kinds = None if is_cut is None else torch.from_numpy(is_cut)
    return Mixture(mixing, shares, place, down, across, kinds)


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

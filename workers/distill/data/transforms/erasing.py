"""Random erasing: a rectangle of some images, overwritten with random pixels.

Source: Zhong et al., AAAI 2020, arXiv 1708.04896 (RE-R), with the ten tries of torchvision.
Differs: pixels come from one table of random bytes, which each image enters at a place of its own,
so that an image's pixels are a function of its own random stream.
"""

import functools
import math

import torch
from jaxtyping import UInt8
from torch import Tensor

from workers.distill.config.training import RandomErasing
from workers.distill.data.stateless_rng import StatelessRNG

TRIES = 10
NOISE_BYTES = (1 << 20) + 7
"""Of the table; a prime, so that rows of no image fall on each other."""


def erase(
    images: UInt8[Tensor, "N c h w"], settings: RandomErasing, stream: StatelessRNG
) -> UInt8[Tensor, "N c h w"]:
    """Return the images, of some of which a rectangle is overwritten; channels last."""
    channels, height, width = images.shape[1:]
    is_erased = stream.shares() < settings.probability
    smallest, largest = settings.scale
    low, high = (math.log(ratio) for ratio in settings.ratio)
    tall = wide = torch.zeros(len(images), dtype=torch.int64)
    for _ in range(TRIES):
        area = height * width * (smallest + stream.shares() * (largest - smallest))
        ratio = (low + stream.shares() * (high - low)).exp()
        down, across = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (down < height) & (across < width) & (tall == 0)
        tall, wide = torch.where(fits, down, tall), torch.where(fits, across, wide)
    top = (stream.shares() * (height - tall + 1)).long()
    left = (stream.shares() * (width - wide + 1)).long()
    begin = stream.whole(NOISE_BYTES)
    rows = is_erased.nonzero().flatten()
    if not len(rows):
        return images
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left, tall, wide = (value[rows, None, None] for value in (top, left, tall, wide))
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    device = images.device
    places = (torch.arange(height * width * channels) + begin[rows, None]) % NOISE_BYTES
    noise = _noise()[places].view(-1, height, width, channels).permute(0, 3, 1, 2).to(device)
    chosen = rows.to(device)
    changed = images.clone(memory_format=torch.channels_last)
    changed[chosen] = torch.where(inside[:, None].to(device), noise, images[chosen])
    return changed


@functools.cache
def _noise() -> Tensor:
    generator = torch.Generator().manual_seed(1708_04896)
    return torch.randint(0, 256, (NOISE_BYTES,), generator=generator, dtype=torch.uint8)

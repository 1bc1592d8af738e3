"""Random resized crops: a part of an image, drawn by area and proportions, resized to one size.

Source: Szegedy et al., CVPR 2015, arXiv 1409.4842, section 6, as torchvision states it (ten tries,
then the largest part at the centre that has allowed proportions).
Checked against: pytorch/vision, transforms/v2 (`RandomResizedCrop`), and torch's `interpolate`.
Differs: numbers come from the image's own random stream.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from workers.distill.config.training import RandomResizedCrop
from workers.distill.data.stateless_rng import StatelessRNG
from workers.distill.data.types import ResizedCrops

TRIES = 10
BATCH = 64
"""Images that are resized on a device at a time: their weights take as much memory as they do."""


def draw(
    stream: StatelessRNG,
    settings: RandomResizedCrop,
    *,
    heights: Int[Tensor, " N"],
    widths: Int[Tensor, " N"],
    flip: bool,
) -> ResizedCrops:
    """Draw what is cut from each image of these sizes in pixels, and whether it is mirrored."""
    area = (heights * widths).double()
    smallest, largest = settings.scale
    low, high = (math.log(ratio) for ratio in settings.ratio)
    tall, wide = _fallback(heights, widths, settings.ratio)
    is_drawn = torch.zeros(len(heights), dtype=torch.bool)
    for _ in range(TRIES):
        target = area * (smallest + stream.shares() * (largest - smallest))
        ratio = (low + stream.shares() * (high - low)).exp()
        across = (target * ratio).sqrt().round().long()
        down = (target / ratio).sqrt().round().long()
        fits = (across > 0) & (across <= widths) & (down > 0) & (down <= heights) & ~is_drawn
        tall, wide = torch.where(fits, down, tall), torch.where(fits, across, wide)
        is_drawn = is_drawn | fits
    # A part that was not drawn lies at the centre.
    top = torch.where(is_drawn, stream.shares() * (heights - tall + 1), (heights - tall) / 2)
    left = torch.where(is_drawn, stream.shares() * (widths - wide + 1), (widths - wide) / 2)
    mirrored = stream.coins() & flip
    return ResizedCrops(top.long(), left.long(), tall, wide, mirrored, settings.interpolation)


def _fallback(heights: Tensor, widths: Tensor, ratio: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return height and width of the largest parts that have an allowed ratio."""
    low, high = ratio
    own = widths.double() / heights
    tall = torch.where(own < low, (widths / low).round().long(), heights)
    wide = torch.where(own > high, (heights * high).round().long(), widths)
    return tall.clamp(min=1), wide.clamp(min=1)


def resize_part(
    image: UInt8[Tensor, "c h w"],
    part: tuple[int, int, int, int],
    size: tuple[int, int],
    interpolation: str,
) -> UInt8[Tensor, "c H W"]:
    """Return a part (top, left, height, width) of an image on the CPU, resized to a size.

    What is made smaller is averaged, as Pillow does it.
    """
    top, left, tall, wide = part
    cut = image[None, :, top : top + tall, left : left + wide]
    if (tall, wide) == size:
        return cut[0]
    # Both layouts round alike only where there is one: results must not depend on the storage.
    cut = cut.contiguous(memory_format=torch.channels_last)
    return F.interpolate(cut, size=size, mode=interpolation, antialias=True, align_corners=False)[0]


def resize_parts(
    images: UInt8[Tensor, "n c h w"], crops: ResizedCrops, size: tuple[int, int]
) -> UInt8[Tensor, "n c H W"]:
    """Return the parts of images of one size, resized on their device; channels last.

    A resized row is a weighted sum of rows, so both axes are matrix products. Differs from
    `resize_part` by rounding.
    """
    done = []
    for start in range(0, len(images), BATCH):
        some, part = images[start : start + BATCH].float(), crops.part(start, start + BATCH)
        down = _weights(part.top, part.tall, size[0], some.shape[2], part.interpolation)
        across = _weights(part.left, part.wide, size[1], some.shape[3], part.interpolation)
        across = torch.where(part.mirrored[:, None, None], across.flip(1), across)
        # Whole pixel values between both passes too, as in Pillow.
        rows = (some @ across.transpose(1, 2)[:, None]).round_().clamp_(0, 255)
        resized = (down[:, None] @ rows).round_().clamp_(0, 255)
        done.append(resized.to(torch.uint8))
    return torch.cat(done).contiguous(memory_format=torch.channels_last)


def _weights(
    first: Int[Tensor, " n"],
    length: Int[Tensor, " n"],
    size: int,
    side: int,
    interpolation: str,
) -> Float[Tensor, "n S s"]:
    """Return what each of `side` pixels counts for each of `size` resized ones, along one axis."""
    scale = (length.float() / size)[:, None, None]
    wider = scale.clamp(min=1)
    centres = (torch.arange(size, device=first.device) + 0.5)[:, None] * scale
    places = torch.arange(side, device=first.device) - first[:, None, None]
    distance = ((places + 0.5) - centres) / wider
    weights = _bilinear(distance) if interpolation == "bilinear" else _bicubic(distance)
    inside = (places >= 0) & (places < length[:, None, None])
    weights = weights * inside
    return weights / weights.sum(2, keepdim=True)


def _bilinear(distance: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "*n"]:
    return (1 - distance.abs()).clamp(min=0)


def _bicubic(distance: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "*n"]:
    """Return Keys' kernel with a = -0.5, as Pillow and torch have it where they average."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

"""Operations on whole batches of images, with one strength per image.

Images are sorted by operation and each operation is done once, so a batch costs as many calls as
there are operations, not images. Empty positions are black, and pixels are sampled without
interpolation, as torchvision's transforms do.

Checked against: pytorch/vision, transforms/v2/functional.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class Operation(enum.IntEnum):
    """Operations on an image; those of one kind are adjacent."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTOCONTRAST = 12
    EQUALIZE = 13
    INVERT = 14


_O = Operation


@dataclass(frozen=True)
class DrawnOperations:
    """Drawn operations and strengths of each image, in order; on the CPU."""

    operations: Int[Tensor, "k N"]
    amounts: Float[Tensor, "k N"]
    """Shear as a slope, translation in sides, rotation in degrees, change of a factor of 1, bits
    that posterizing leaves, threshold of solarizing."""

    def part(self, start: int, end: int) -> "DrawnOperations":
        """Return the drawn operations of some of the images."""
        return DrawnOperations(self.operations[:, start:end], self.amounts[:, start:end])


def apply(images: UInt8[Tensor, "N c h w"], drawn: DrawnOperations) -> UInt8[Tensor, "N c h w"]:
    """Return the images after all of their operations."""
    for operations, amounts in zip(drawn.operations, drawn.amounts, strict=True):
        images = _apply_one(images, operations, amounts)
    return images


def _apply_one(images: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    device = images.device
    kinds = _KINDS[operations]
    order = kinds.argsort(stable=True)
    counts = kinds.bincount(minlength=len(_CARRIERS)).tolist()
    spread = order.argsort().to(device, non_blocking=True)
    matrices = _matrices(operations[order], amounts[order], images.shape[2], images.shape[3])
    given = {False: amounts[order].to(device), True: matrices.to(device)}
    parts = torch.split(images[order.to(device, non_blocking=True)], counts)
    done, start = [], 0
    for carry, part, count in zip(_CARRIERS, parts, counts, strict=True):
        if count:
            mine = given[carry is _move][start : start + count]
            done.append(carry(part, mine))
            start += count
    return torch.cat(done)[spread]


def _matrices(operations: Tensor, amounts: Tensor, height: int, width: int) -> Tensor:
    """Return where each pixel comes from: x' = a x + b y + c, in pixels from the centre.

    Shears keep the upper left corner, as torchvision's do.
    """
    matrices = torch.zeros(len(operations), 2, 3, dtype=torch.float64)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1
    zero = torch.zeros_like(amounts)
    angle = torch.where(operations == _O.ROTATE, amounts * math.pi / 180, zero)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angle.cos()
    slope_x = torch.where(operations == _O.SHEAR_X, amounts, zero)
    slope_y = torch.where(operations == _O.SHEAR_Y, amounts, zero)
    matrices[:, 0, 1] = slope_x - angle.sin()
    matrices[:, 1, 0] = slope_y + angle.sin()
    across = torch.where(operations == _O.TRANSLATE_X, (amounts * width).trunc(), zero)
    down = torch.where(operations == _O.TRANSLATE_Y, (amounts * height).trunc(), zero)
    matrices[:, 0, 2] = slope_x * height / 2 - across
    matrices[:, 1, 2] = slope_y * width / 2 - down
    return matrices.float()


def _keep(images: Tensor, _: Tensor) -> Tensor:
    return images


def _move(images: Tensor, matrices: Tensor) -> Tensor:
    height, width = images.shape[2:]
    half = torch.tensor([width / 2, height / 2], device=images.device)
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)
    places = torch.stack(
        [
            x.expand(height, width),
            y[:, None].expand(height, width),
            torch.ones_like(x[None] * y[:, None]),
        ],
        2,
    )
    grid = places.view(1, -1, 3) @ (matrices.transpose(1, 2) / half)
    moved = F.grid_sample(
        images.float(), grid.view(-1, height, width, 2), mode="nearest", align_corners=False
    )
    return moved.to(torch.uint8)


def _brighten(images: Tensor, amounts: Tensor) -> Tensor:
    return _blend(images.float(), torch.zeros((), device=images.device), amounts)


def _colour(images: Tensor, amounts: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images.float(), _grey(images), amounts)


def _contrast(images: Tensor, amounts: Tensor) -> Tensor:
    return _blend(images.float(), _grey(images).mean((1, 2, 3), keepdim=True), amounts)


def _sharpen(images: Tensor, amounts: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    floats = images.float()
    inner = floats[:, :, 1:-1, 1:-1]
    # A blur with a centre weight of 5 / 13; the border has too few neighbours and is unchanged.
    blurred = ((F.avg_pool2d(floats, 3, 1) * 9 + inner * 4) / 13).round()
    floats[:, :, 1:-1, 1:-1] = torch.lerp(blurred, inner, _each(1 + amounts).float())
    return floats.clamp(0, 255).to(torch.uint8)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    return images & _each(256 - 2 ** (8 - bits)).to(torch.uint8)


def _solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    return torch.where(images >= _each(thresholds), 255 - images, images)


def _stretch(images: Tensor, _: Tensor) -> Tensor:
    floats = images.float()
    low, high = floats.amin((2, 3), keepdim=True), floats.amax((2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return ((floats - torch.where(flat, 0.0, low)) / scale).clamp(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Return the images with all values about equally often in each channel, as PIL does it."""
    values = images.flatten(2).long()
    often = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    often.scatter_add_(2, values, torch.ones_like(values))
    step = (values.shape[2] - often.gather(2, values.amax(2, keepdim=True))) // 255
    below = often.cumsum(2) - often
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, values).to(torch.uint8).view(images.shape)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    """Return the brightness of each pixel in whole steps; a plain mean where it is not RGB."""
    if images.shape[1] == 3:
        red, green, blue = images.float().unbind(1)
        return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()[:, None]
    return images.float().mean(1, keepdim=True).floor()


def _blend(images: Tensor, other: Tensor, amounts: Tensor) -> Tensor:
    factor = _each(1 + amounts)
    mixed = images * factor.float() + other * (1 - factor).float()
    return mixed.clamp(0, 255).to(torch.uint8)


_CARRIERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _keep,
    _move,
    _brighten,
    _colour,
    _contrast,
    _sharpen,
    _posterize,
    _solarize,
    _stretch,
    _equalize,
    _invert,
)
_KINDS = torch.tensor([0, 1, 1, 1, 1, 1, *range(2, 11)])
"""Which of the carriers does an operation: all that move pixels are one look-up."""

"""Differentiable random crops, rolls and flips of images.

Every draw is made by torch's global generator on the CPU, so it is the same on every device, and is
restored with that generator's state from a checkpoint.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Real
from torch import Tensor

ATTEMPTS = 10
"""Sizes that a resized crop draws before it takes the largest part that its aspects allow."""
ASPECTS = (3 / 4, 4 / 3)
"""Narrowest and widest part of a resized crop, as width over height in pixels."""


def crop(
    images: Real[Tensor, "N c h w"], *, pad_y: int, pad_x: int, flip: bool
) -> Real[Tensor, "N c h w"]:
    """Return a random crop of each zero-padded image, of the same size; channels last.

    With `flip`, each is mirrored with probability 1/2. Pixels are not interpolated.
    """
    count = len(images)
    down = torch.randint(-pad_y, pad_y + 1, (count,))
    across = torch.randint(-pad_x, pad_x + 1, (count,))
    mirrored = torch.randint(2, (count,)) if flip else torch.zeros(count, dtype=torch.int64)
    moves = torch.stack([down, across, mirrored]).to(images.device, non_blocking=True)
    moved: Tensor = _Shift.apply(images, moves, pad_y, pad_x)
    return moved


def roll(images: Real[Tensor, "N c h w"], *, shift: int, flip: bool) -> Real[Tensor, "N c h w"]:
    """Return the batch rolled around by up to `shift` pixels on each axis, all images alike.

    With `flip`, the whole batch is mirrored with probability 1/2.
    Source: Yin et al., CVPR 2020, arXiv 1912.08795 (DeepInversion).
    """
    down, across = torch.randint(-shift, shift + 1, (2,)).tolist()
    rolled = images.roll((down, across), (2, 3))
    return rolled.flip(3) if flip and torch.randint(2, ()).item() else rolled


def resized_crop(
    images: Float[Tensor, "N c h w"], *, smallest: float, flip: bool
) -> Float[Tensor, "N c h w"]:
    """Return a random part of each image, bilinearly resized to the size of the whole.

    The part's share of the area is uniform in [smallest, 1], its aspect log-uniform in 3/4..4/3 and
    its place uniform. With `flip`, each is mirrored with probability 1/2.
    Source: Szegedy et al., CVPR 2015, arXiv 1409.4842, section 6. Checked against: pytorch/vision,
    transforms/transforms.py (RandomResizedCrop), which resizes after cutting, so that no pixel
    outside of the part is used.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"smallest is a share of the area in (0, 1], not {smallest}")
    count, _, height, width = images.shape
    tall, wide = _sizes(count, height, width, smallest)
    rows = _interpolation(tall, height, torch.zeros(count, dtype=torch.bool))
    mirrored = torch.randint(2, (count,)).bool() & flip
    columns = _interpolation(wide, width, mirrored)
    rows, columns = (
        weights.to(images.device, images.dtype, non_blocking=True) for weights in (rows, columns)
    )
    # By matrix products and not by `grid_sample`, whose gradient on CUDA differs between runs.
    return rows[:, None] @ images @ columns[:, None].mT


class _Shift(torch.autograd.Function):
    """Shifts pixels by (down, across), mirrored or not; its gradient is the inverse shift.

    Autograd's own gradient of indexing adds row after row, which is many times slower.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        images: Tensor,
        moves: Tensor,
        pad_y: int,
        pad_x: int,
    ) -> Tensor:
        ctx.save_for_backward(moves)
        ctx.pads = (pad_y, pad_x)  # type: ignore[attr-defined]  # the context is for this
        return _shifted(images, moves, pad_y, pad_x)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (moves,) = ctx.saved_tensors
        down, across, mirrored = moves
        # What came from `across` further right is, in a mirror, that much further left.
        back = torch.stack([-down, across * (2 * mirrored - 1), mirrored])
        moved: Tensor = _Shift.apply(gradient, back, *ctx.pads)  # type: ignore[attr-defined]  # torch's stub
        return moved, None, None, None


def _shifted(images: Tensor, moves: Tensor, pad_y: int, pad_x: int) -> Tensor:
    count, channels, height, width = images.shape
    down, across, mirrored = moves
    # One row per pixel, channels together: a crop is an index of rows.
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, pad_x, pad_x, pad_y, pad_y))
    tall, wide = height + 2 * pad_y, width + 2 * pad_x
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored.bool()[:, None], width - 1 - columns, columns)
    columns = columns + (across + pad_x)[:, None]
    rows = torch.arange(height, device=images.device) + (down + pad_y)[:, None]
    rows = (torch.arange(count, device=images.device)[:, None] * tall + rows) * wide
    places = rows[:, :, None] + columns[:, None, :]
    cut = padded.reshape(-1, channels).index_select(0, places.reshape(-1))
    return cut.view(count, height, width, channels).permute(0, 3, 1, 2)


def _sizes(count: int, height: int, width: int, smallest: float) -> tuple[Tensor, Tensor]:
    """Return height and width in pixels of the first part of each image that fits into it."""
    narrow, broad = ASPECTS
    area = torch.empty(count, ATTEMPTS).uniform_(smallest, 1) * (height * width)
    aspect = torch.empty(count, ATTEMPTS).uniform_(math.log(narrow), math.log(broad)).exp()
    tall = torch.cat([(area / aspect).sqrt().round(), torch.full((count, 1), height)], 1)
    wide = torch.cat([(area * aspect).sqrt().round(), torch.full((count, 1), width)], 1)
    # The last resort is the whole image, or as much of a long one as the aspects allow.
    tall[:, -1].clamp_(max=max(1, round(width / narrow)))
    wide[:, -1].clamp_(max=max(1, round(height * broad)))
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = fits.int().argmax(1, keepdim=True)
    return tall.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)


def _interpolation(length: Tensor, side: int, mirrored: Tensor) -> Tensor:
    """Return the interpolation weights of a part's pixels for each new pixel, per image.

    The part's start is drawn uniformly among those where it fits.
    """
    start = (torch.rand(len(length)) * (side - length + 1)).floor()
    centres = (torch.arange(side) + 0.5) / side * length[:, None] - 0.5
    # Half a pixel at the border lies outside of the part and takes the border's value.
    centres = centres.clamp(min=0).minimum(length[:, None] - 1) + start[:, None]
    weights = (1 - (centres[:, :, None] - torch.arange(side)).abs()).clamp(min=0)
    return torch.where(mirrored[:, None, None], weights.flip(1), weights)

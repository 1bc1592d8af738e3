"""Feature maps cut into patches, and losses between the patches of two maps.

A map [N, c, h, w] becomes one matrix for each channel, [c, P, N * side * side]: a row is a patch at
one place of all images together. Patches replace images as samples, so that dense tasks have enough
of them with a few images a batch.

Source: Zhou et al., IJCAI 2024, arXiv:2401.11824. The authors cut older losses in the same way and
average them over channels; here they are `softened`, `standardized` and `attention`, and
`relations.correlation_gaps` of the matrices for DIST.
"""

import math
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Bool, Float
from torch import Tensor

from workers.distill.functional import divergences, kernels, maps, standardization

Axis: TypeAlias = Literal["channel", "batch", "position"]

PUBLISHED_SIDE = 16
ENOUGH_PATCHES = 16
"""Fewer patches have similar kernels whatever the features are, so nothing is learned from them."""
ORDERS: dict[Axis, tuple[int, ...]] = {
    "channel": (1, 2, 4, 0, 3, 5),
    "batch": (0, 2, 4, 1, 3, 5),
    "position": (3, 5, 2, 4, 0, 1),
}
"""Order of the axes [image, channel, patch row, row, patch column, column] that puts the axis whose
kernels are averaged first, then patches, then the features of a patch."""
LARGE = 1 << 20
"""Numbers in maps from which turning them to channels first takes longer than deciding how."""


def patch_rows(
    features: Float[Tensor, "N c h w"], *, side: int, axis: Axis = "channel"
) -> Float[Tensor, "sets P D"]:
    """Return a matrix of patches for each channel, image or position in a patch.

    `side` divides both sides of the maps.
    """
    images, channels, height, width = features.shape
    if axis == "channel" and _is_slow_to_turn(features):
        turned: Tensor = _Cut.apply(features, side)
        return turned
    rows, columns = height // side, width // side
    cut = features.reshape(images, channels, rows, side, columns, side).permute(ORDERS[axis])
    sets = {"channel": channels, "batch": images, "position": side**2}[axis]
    return cut.reshape(sets, rows * columns, -1)


def pair_rows(
    student: Float[Tensor, "N c h w"],
    teacher: Float[Tensor, "N c i j"],
    *,
    side: int,
    axis: Axis = "channel",
) -> tuple[Float[Tensor, "sets P D"], Float[Tensor, "sets P D"]]:
    """Return the patches of both maps, brought to the same multiples of `side`.

    Each side becomes the larger one of both, rounded up to a multiple (bilinear interpolation).
    """
    size = padded_size(
        max(student.shape[2], teacher.shape[2]), max(student.shape[3], teacher.shape[3]), side=side
    )
    one, other = (
        patch_rows(maps.resize(each, size), side=side, axis=axis) for each in (student, teacher)
    )
    return one, other


def padded_size(height: int, width: int, *, side: int) -> maps.Size:
    """Return both sides of a map, rounded up to multiples of a patch's side."""
    return math.ceil(height / side) * side, math.ceil(width / side) * side


def fitting_side(height: int, width: int) -> int:
    """Return the side of a patch: as published (16), or less so that there are 16 patches.

    Maps with a side of less than 4 pixels have fewer.
    """
    return min(max(min(height, width) // math.isqrt(ENOUGH_PATCHES), 1), PUBLISHED_SIDE)


def alignment_gap(
    student_rows: Float[Tensor, "sets P D"],
    teacher_rows: Float[Tensor, "sets P D"],
    *,
    centered: bool,
) -> Float[Tensor, ""]:
    """Return 1 - CKA of patches, averaged over sets; 0 without a gradient of too few patches."""
    if centered or student_rows.shape[-2] < 2:
        return kernels.cka_gap(student_rows, teacher_rows, centered=centered).mean()
    grams = kernels.gram(student_rows), kernels.gram(teacher_rows)
    return (1 - kernels.gram_cosine(*grams)).mean()


def transposed_gap(
    student_rows: Float[Tensor, "sets P D"],
    teacher_rows: Float[Tensor, "sets P D"],
    *,
    centered: bool,
) -> Float[Tensor, ""]:
    """Return 1 - CKA of the features of patches, averaged over sets.

    It is computed from the kernels of patches: those of features would be as large as the number of
    pixels in a batch, squared.
    """
    if centered:
        alignment = kernels.cka_by_columns(student_rows.mT, teacher_rows.mT, centered=True)
        return (1 - alignment).mean()
    grams = kernels.gram(student_rows), kernels.gram(teacher_rows)
    return (1 - kernels.cross_cosine(*grams, student_rows @ teacher_rows.mT)).mean()


def softened(
    student_rows: Float[Tensor, "sets P D"],
    teacher_rows: Float[Tensor, "sets P D"],
    *,
    temperature: float,
    counted: Bool[Tensor, "#sets P D"] | None = None,
    set_weights: Float[Tensor, " sets"] | None = None,
) -> Float[Tensor, ""]:
    """Return temperature^2 * KL(teacher || student) of a patch's values, averaged over patches.

    Only values that are `counted` have a share in a patch's distribution; None counts all. Patches
    without any are left out. `set_weights` is what the patches of each set count; None: all alike.
    """
    one, other = student_rows, teacher_rows
    shares = one.new_ones(one.shape[:2])
    if counted is not None:
        known = counted.expand_as(one)
        smallest = torch.finfo(one.dtype).min / 4
        one, other = (torch.where(known, rows, smallest) for rows in (one, other))
        shares = known.any(2).to(one.dtype)
    if set_weights is not None:
        shares = shares * set_weights[:, None]
    apart = divergences.softened_kl(one.flatten(0, 1), other.flatten(0, 1), temperature=temperature)
    return temperature**2 * divergences.mean_of(apart, shares)


def standardized(
    student_rows: Float[Tensor, "sets P D"], teacher_rows: Float[Tensor, "sets P D"]
) -> Float[Tensor, ""]:
    """Return half the mean squared difference of the z-scores of each patch's values (PKD)."""
    return standardization.z_score_gap(student_rows.flatten(0, 1), teacher_rows.flatten(0, 1))


def attention(
    features: Float[Tensor, "N c h w"], *, side: int, power: float
) -> Float[Tensor, "P D"]:
    """Return attention maps as `maps.attention` does, but with unit norm within each patch.

    Maps are resized up to multiples of `side`; a row is a patch at one place of all images.
    Differs: the authors' code sums values over channels, not their powers.
    """
    height, width = features.shape[2:]
    resized = maps.resize(features, padded_size(height, width, side=side))
    (rows,) = patch_rows(maps.strength(resized, power=power), side=side)
    return F.normalize(rows, dim=1)


def _is_slow_to_turn(features: Float[Tensor, "N c h w"]) -> bool:
    """Whether maps are large and channels-last on the CPU, where torch copies them value by value.

    As matrices of pixels and channels it turns them in blocks, which fit into the cache.
    """
    return (
        features.device.type == "cpu"
        and features.numel() >= LARGE
        and not features.is_contiguous()
        and features.is_contiguous(memory_format=torch.channels_last)
    )


class _Cut(torch.autograd.Function):
    """`patch_rows` by channel of channels-last maps, a row of patches at a time."""

    @staticmethod
    def forward(features: Tensor, side: int) -> Tensor:
        images, channels, height, width = features.shape
        pixels = features.permute(0, 2, 3, 1)
        rows = features.new_empty(channels, height // side, width // side, images, side, side)
        turned = features.new_empty(channels, side * width)
        for image in range(images):
            for row in range(height // side):
                band = pixels[image, row * side : (row + 1) * side].reshape(-1, channels)
                turned.copy_(band.T)
                cut = turned.view(channels, side, width // side, side).transpose(1, 2)
                rows[:, row, :, image].copy_(cut)
        return rows.view(channels, -1, images * side**2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], _output: Tensor) -> None:
        features, ctx.side = inputs
        ctx.size = features.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Joined.apply(gradient, ctx.size, ctx.side), None


class _Joined(torch.autograd.Function):
    """Channels-last maps of a size from what `_Cut` made of them."""

    @staticmethod
    def forward(rows: Tensor, size: tuple[int, int, int, int], side: int) -> Tensor:
        images, channels, height, width = size
        cut = rows.reshape(channels, height // side, width // side, images, side, side)
        pixels = rows.new_empty(images, height, width, channels)
        turned = rows.new_empty(channels, side, width // side, side)
        for image in range(images):
            for row in range(height // side):
                turned.copy_(cut[:, row, :, image].transpose(1, 2))
                band = pixels[image, row * side : (row + 1) * side].view(-1, channels)
                band.copy_(turned.view(channels, -1).T)
        return pixels.permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        ctx.side = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return patch_rows(gradient, side=ctx.side), None, None

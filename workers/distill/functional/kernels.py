"""Alignment of two sets of rows by their kernel matrices, and distance of distributions.

Rows (images, classes, patches) are on the last axis but one; axes before it are batch dimensions.
Centred kernel alignment (CKA): Kornblith et al., ICML 2019, arXiv:1905.00414; maximum mean
discrepancy (MMD): Gretton et al., JMLR 2012.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill.functional import relations

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Returns the kernel of all rows of one set with all rows of another."""

SMALLEST = 1e-12
"""A kernel matrix of no larger norm has no direction."""
SMALLEST_BANDWIDTH = 1e-6


def gram(rows: Float[Tensor, "*sets N D"], *, row_norm: bool = False) -> Float[Tensor, "*sets N N"]:
    """Return all inner products of rows; with `row_norm`, row i divided by the norm of row i."""
    if row_norm:
        return relations.unit_vectors(rows) @ rows.mT
    kernel: Tensor = _Gram.apply(rows)
    return kernel


def center(kernel: Float[Tensor, "*sets N N"]) -> Float[Tensor, "*sets N N"]:
    """Return HKH: the kernel as if the mean of all rows had been subtracted from each."""
    centred = kernel - kernel.mean(-1, keepdim=True)
    return centred - centred.mean(-2, keepdim=True)


def hsic(
    one: Float[Tensor, "*sets N N"], other: Float[Tensor, "*sets N N"]
) -> Float[Tensor, "*sets"]:
    """Return the biased estimate of the Hilbert-Schmidt independence criterion of two kernels.

    It is 0 for one row.
    """
    # H is idempotent, so centring one of the two is enough.
    return (center(one) * other).sum((-2, -1)) / max(one.shape[-1] - 1, 1) ** 2


def cka(
    one: Float[Tensor, "*sets N D"],
    other: Float[Tensor, "*sets N E"],
    *,
    centered: bool,
    row_norm: bool = False,
) -> Float[Tensor, "*sets"]:
    """Return the cosine of both sets' linear kernels, each flattened to one vector.

    With `row_norm` row i of a kernel is divided by the norm of row i of its set; with `centered`
    too, that comes first, and the divided kernel is centred: H K H, whose rows and columns sum to
    0. 0 without a gradient where one set has no kernel: equal rows if centred, rows of zeros if
    not.
    """
    kernel, size = _kernel(one, centered=centered, row_norm=row_norm)
    other_kernel, other_size = _kernel(other, centered=centered, row_norm=row_norm)
    length = _length(kernel, size)
    # One by one: the product of a length and infinity has no gradient that is a number.
    return (kernel * other_kernel).sum((-2, -1)) / length / _length(other_kernel, other_size)


def cka_by_columns(
    one: Float[Tensor, "*sets N D"], other: Float[Tensor, "*sets N E"], *, centered: bool
) -> Float[Tensor, "*sets"]:
    """Return the same as `cka` from matrices of columns: cheaper for more rows than columns."""
    (one, one_size), (other, other_size) = _scaled(one, centered), _scaled(other, centered)
    length = _length(one.mT @ one, one_size**2)
    squares = (other.mT @ one).square().sum((-2, -1))
    return squares / length / _length(other.mT @ other, other_size**2)


def gram_cosine(
    one: Float[Tensor, "*sets N N"], other: Float[Tensor, "*sets N N"]
) -> Float[Tensor, "*sets"]:
    """Return the same as uncentred `cka` from the kernels of both sets, for less memory traffic.

    Kernels are scaled, not the rows, so rows must be small enough for their squares: in float32
    below about 1e17.
    """
    (one, one_size), (other, other_size) = _divided(one), _divided(other)
    length, other_length = _length(one, one_size), _length(other, other_size)
    return (one * other).sum((-2, -1)) / length / other_length


def cross_cosine(
    one: Float[Tensor, "*sets N N"],
    other: Float[Tensor, "*sets N N"],
    cross: Float[Tensor, "*sets N N"],
) -> Float[Tensor, "*sets"]:
    """Return uncentred `cka` of the columns of two sets from the kernels of their rows.

    `cross` are the inner products of the rows of both. Rows are as small as `gram_cosine` asks for.
    """
    (one, one_size), (other, other_size) = _divided(one), _divided(other)
    both = (one_size.sqrt() * other_size.sqrt())[..., None, None]
    squares = (cross / torch.where(both > 0, both, 1)).square().sum((-2, -1))
    return squares / _length(one, one_size) / _length(other, other_size)


def cka_gap(
    one: Float[Tensor, "*sets N D"],
    other: Float[Tensor, "*sets N E"],
    *,
    centered: bool,
    row_norm: bool = False,
) -> Float[Tensor, "*sets"]:
    """Return 1 - CKA, or 0 without a gradient where there are too few rows.

    All centred kernels of two rows are proportional, and all kernels of one row.
    """
    if one.shape[-2] < (3 if centered else 2):
        return ((one * 0).sum(-1) + (other * 0).sum(-1)).sum(-1)
    return 1 - cka(one, other, centered=centered, row_norm=row_norm)


def mmd(
    one: Float[Tensor, "N D"], other: Float[Tensor, "M D"], kernel: Kernel
) -> Float[Tensor, ""]:
    """Return the biased estimate of the squared maximum mean discrepancy of two sets of rows."""
    return kernel(one, one).mean() + kernel(other, other).mean() - 2 * kernel(one, other).mean()


def polynomial(
    one: Float[Tensor, "N D"], other: Float[Tensor, "M D"], *, degree: int, offset: float
) -> Float[Tensor, "N M"]:
    """Return (a . b + offset) ** degree of all pairs; degree 1 and offset 0 is linear."""
    return (one @ other.mT + offset) ** degree


def gaussian(
    one: Float[Tensor, "N D"],
    other: Float[Tensor, "M D"],
    *,
    bandwidth: float | Float[Tensor, ""],
) -> Float[Tensor, "N M"]:
    """Return exp(-|a - b|^2 / (2 bandwidth^2)) of all pairs."""
    squares = one.square().sum(1)[:, None] + other.square().sum(1)
    # Rounding may give negative values for equal rows.
    distances = (squares - 2 * one @ other.mT).clamp_min(0)
    return (-distances / (2 * bandwidth**2)).exp()


def median_bandwidth(one: Float[Tensor, "N D"], other: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """Return the median distance between all rows of both sets, without a gradient."""
    distances = torch.nn.functional.pdist(torch.cat([one.detach(), other.detach()]))
    return distances.median().clamp_min(SMALLEST_BANDWIDTH)


def _kernel(
    rows: Float[Tensor, "*sets N D"], *, centered: bool, row_norm: bool
) -> tuple[Float[Tensor, "*sets N N"], Float[Tensor, "*sets"]]:
    """Return the kernel of scaled rows, and the factor by which that of the rows is larger."""
    if not row_norm:
        rows, size = _scaled(rows, centered)
        return gram(rows), size**2
    rows, size = _scaled(rows, centered=False)
    if not centered:
        return gram(rows, row_norm=True), size
    # H (U X^T) H = (H U) (H X)^T: from centred factors, so that a large mean costs no digits.
    return _less_mean(relations.unit_vectors(rows)) @ _less_mean(rows).mT, size


def _less_mean(rows: Float[Tensor, "*sets N D"]) -> Float[Tensor, "*sets N D"]:
    return rows - rows.mean(-2, keepdim=True)


def _scaled(
    rows: Float[Tensor, "*sets N D"], centered: bool
) -> tuple[Float[Tensor, "*sets N D"], Float[Tensor, "*sets"]]:
    """Return rows with a largest entry of 1, less their mean if asked, and that entry.

    Alignment ignores scale, so the scale needs no gradient; without it, squares of squares of large
    features would overflow.
    """
    if centered:
        rows = _less_mean(rows)
    return _divided(rows)


def _divided(
    matrices: Float[Tensor, "*sets N M"],
) -> tuple[Float[Tensor, "*sets N M"], Float[Tensor, "*sets"]]:
    """Return matrices divided by their largest entry, and that entry, without its gradient."""
    size = matrices.detach().abs().amax((-2, -1))
    return matrices / torch.where(size > 0, size, 1)[..., None, None], size


def _length(
    kernel: Float[Tensor, "*sets N M"], scale: Float[Tensor, "*sets"]
) -> Float[Tensor, "*sets"]:
    length = torch.linalg.vector_norm(kernel, dim=(-2, -1))
    # Divided by infinity, rows of zeros count as orthogonal and get no gradient.
    guarded: Tensor = length.masked_fill(length.detach() * scale < SMALLEST, math.inf)
    return guarded


class _Gram(torch.autograd.Function):
    """Inner products of rows, with one product of matrices in the gradient where autograd has two.

    The kernel is symmetric: G X + G' X is (G + G') X.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows @ rows.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], _output: Tensor) -> None:  # Any: torch's own
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        product: Tensor = (gradient + gradient.mT).to(rows.dtype) @ rows
        return product

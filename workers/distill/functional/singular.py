"""Leading singular vectors of small batches of matrices, with a gradient that stays finite."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx


def right_vectors(
    matrices: Float[Tensor, "N r c"], count: int
) -> tuple[Float[Tensor, "N c k"], Float[Tensor, "N k"]]:
    """Return the first `count` right singular vectors as columns, and their singular values.

    Signs are arbitrary. Only the vectors have a gradient. Where singular values are equal up to
    rounding their rotation is arbitrary, so it is left out of the gradient, which would be
    infinite. Entries that are not finite count as zeros.
    """
    vectors, values = _RightVectors.apply(matrices, count)
    return vectors, values


class _RightVectors(torch.autograd.Function):
    """Eigenvectors of the Gram matrix of the columns, which is small where matrices are tall."""

    @staticmethod
    def forward(ctx: FunctionCtx, matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return vectors and values, largest first."""
        matrices = matrices.nan_to_num(0.0, 0.0, 0.0)
        squares, vectors = torch.linalg.eigh(matrices.mT @ matrices)
        squares, vectors = squares.flip(-1), vectors.flip(-1)
        ctx.save_for_backward(matrices, squares, vectors)
        values = squares[:, :count].clamp(min=0).sqrt()
        ctx.mark_non_differentiable(values)
        return vectors[..., :count].clone(), values

    @staticmethod
    # Any: torch's stub types the context of a backward pass so; values have no gradient.
    def backward(ctx: Any, grad_vectors: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the matrices."""
        matrices, squares, vectors = ctx.saved_tensors
        count = grad_vectors.shape[-1]
        gaps = squares[:, None, :count] - squares[:, :, None]
        rounding = torch.finfo(squares.dtype).eps * squares.shape[1] * squares[:, :1, None]
        turns = torch.where(gaps.abs() > rounding, 1 / gaps, 0)
        grad_gram = vectors @ (turns * (vectors.mT @ grad_vectors)) @ vectors[..., :count].mT
        return matrices @ (grad_gram + grad_gram.mT), None

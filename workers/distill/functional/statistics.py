"""Image priors: distance to a batch norm's stored moments, and total variation.

Moments are taken over images and positions, the variance is the biased one, and distances are plain
Euclidean norms, whose gradient at 0 is 0.

Source: Yin et al., CVPR 2020, arXiv 1912.08795 (DeepInversion); Fang et al., AAAI 2022, arXiv
2112.06253 (Fast-DFKD), for the memory of moments.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.distill.functional.maps import at_least_float


@runtime_checkable
class Received(Protocol):
    """The part of `networks.interface.NormInput` that is used here, without importing it."""

    @property
    def name(self) -> str:
        """Name of the layer."""

    @property
    def received(self) -> Float[Tensor, "N C h w"]:
        """Input of the layer."""

    @property
    def mean(self) -> Float[Tensor, " C"]:
        """Running mean of the layer."""

    @property
    def variance(self) -> Float[Tensor, " C"]:
        """Running variance of the layer."""


def batch_moments(
    received: Float[Tensor, "N C h w"],
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Return mean and biased variance of each channel over images and positions.

    They can be differentiated once.
    """
    moments: tuple[Tensor, Tensor] = _Moments.apply(at_least_float(received))
    return moments


class _Moments(torch.autograd.Function):
    """Mean and biased variance, with a gradient in the memory layout of the input.

    It equals autograd's result to the bit with several passes over the maps fewer, none of them in
    another memory layout. `torch.var_mean` with its gradient takes up to three times as long on a
    CPU.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, received: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean = received.mean((0, 2, 3))
        centred = received - mean[:, None, None]
        ctx.save_for_backward(centred)
        return mean, centred.square().mean((0, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.BackwardCFunction, by_mean: Tensor, by_variance: Tensor
    ) -> Tensor:
        (centred,) = ctx.saved_tensors
        count = centred.numel() // centred.shape[1]
        gradient: Tensor = centred * (2 * (by_variance / count))[:, None, None]
        # Zero but for rounding, added in autograd's order: the variance's way through the mean.
        rest = by_mean - gradient.contiguous().sum((0, 2, 3))
        return gradient.add_((rest / count)[:, None, None])


def moment_distance(norms: Sequence[Received]) -> Float[Tensor, ""]:
    """Return the sum over layers of |mean - stored mean| + |variance - stored variance|."""
    return _total([_gap(norm, *batch_moments(norm.received)) for norm in norms])


class MomentMemory(nn.Module):
    """Running moments of each batch norm's inputs over synthesis calls.

    The moments to compare are `rate` * stored + (1 - `rate`) * new; a layer without stored moments
    compares its new ones.
    """

    filled: Tensor

    def __init__(self, norms: Mapping[str, nn.BatchNorm2d], *, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._places = {name: place for place, name in enumerate(norms)}
        device = None
        for name, norm in norms.items():
            if norm.running_mean is None or norm.running_var is None:
                raise ValueError(f"batch norm {name} keeps no running moments")
            place, device = self._places[name], norm.running_mean.device
            # By place, as a layer's name has dots, which a buffer's name must not have.
            self.register_buffer(f"mean_{place}", torch.zeros_like(norm.running_mean))
            self.register_buffer(f"variance_{place}", torch.zeros_like(norm.running_var))
        self.register_buffer("filled", torch.zeros(len(norms), dtype=torch.bool, device=device))

    def distance(self, norms: Sequence[Received]) -> Float[Tensor, ""]:
        """Return the sum over layers of both distances; raise KeyError for an unknown layer."""
        return _total([_gap(norm, *self._smoothed(norm)) for norm in norms])

    @torch.no_grad()
    def remember(self, norms: Sequence[Received]) -> None:
        """Store the smoothed moments; layers that are absent keep theirs."""
        for norm in norms:
            mean, variance = self._smoothed(norm)
            place = self._places[norm.name]
            self.get_buffer(f"mean_{place}").copy_(mean)
            self.get_buffer(f"variance_{place}").copy_(variance)
            self.filled[place] = True

    def _smoothed(self, norm: Received) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        place = self._places[norm.name]
        mean, variance = batch_moments(norm.received)
        if self.rate == 0:
            return mean, variance
        # A share of 0 while nothing is stored: an `if` here would wait for the GPU.
        share = self.filled[place].to(mean.dtype) * self.rate
        return (
            share * self.get_buffer(f"mean_{place}") + (1 - share) * mean,
            share * self.get_buffer(f"variance_{place}") + (1 - share) * variance,
        )


def total_variation_l1(images: Float[Tensor, "N c h w"]) -> Float[Tensor, ""]:
    """Return the mean difference of neighbours, summed over four directions.

    The directions are along rows, along columns and along both diagonals.
    """
    means = [each.abs().sum() / max(each.numel(), 1) for each in _neighbour_differences(images)]
    return torch.stack(means).sum()


def total_variation_l2(images: Float[Tensor, "N c h w"]) -> Float[Tensor, ""]:
    """Return the norm of all differences of neighbours, summed over the same directions."""
    norms = [torch.linalg.vector_norm(each) for each in _neighbour_differences(images)]
    return torch.stack(norms).sum()


def mean_norm(images: Float[Tensor, "N c h w"]) -> Float[Tensor, ""]:
    """Return the Euclidean norm of an image, averaged over images."""
    norms: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return norms.mean()


def spatial_means(norms: Sequence[Received]) -> Float[Tensor, "N D"]:
    """Return the means over positions of each layer's input, layer after layer."""
    return torch.cat([at_least_float(norm.received).mean((2, 3)) for norm in norms], dim=1)


def _gap(
    norm: Received, mean: Float[Tensor, " C"], variance: Float[Tensor, " C"]
) -> Float[Tensor, ""]:
    # `vector_norm` has gradient 0 where the norm is 0; the root of a sum of squares has NaN.
    gaps = (norm.mean - mean, norm.variance - variance)
    return torch.stack([torch.linalg.vector_norm(each) for each in gaps]).sum()


def _total(gaps: Sequence[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    if not gaps:
        raise ValueError("no batch norm received anything, so there is nothing to compare")
    return torch.stack(list(gaps)).sum()


def _neighbour_differences(images: Float[Tensor, "N c h w"]) -> tuple[Tensor, ...]:
    return (
        images[:, :, :, 1:] - images[:, :, :, :-1],
        images[:, :, 1:] - images[:, :, :-1],
        images[:, :, 1:, 1:] - images[:, :, :-1, :-1],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    )

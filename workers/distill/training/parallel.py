"""How one step is shared by several ranks: slices of the batch, gathered outputs, batch norms."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.distill.config.descriptions import MAPS
from workers.distill.data import stateless_rng
from workers.distill.data.types import Batch, Mixed
from workers.distill.methods.base import Method, Terms
from workers.distill.networks.interface import Features
from workers.distill.runtime.device import generators
from workers.distill.runtime.ranks import ALONE, Ranks

RANK_DRAWS = 8
"""What random numbers are for; beside those of `data.loader`."""


@dataclass(frozen=True)
class Parallel:
    """How a step is shared by its ranks; nothing is shared by default."""

    ranks: Ranks = ALONE
    gathers: bool = False
    """Whether the loss is that of the whole batch, from gathered outputs; else that of a slice."""
    with_maps: bool = False
    """Whether feature maps are gathered as well."""
    seed: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether there are several ranks."""
        return self.ranks.count > 1

    @contextlib.contextmanager
    def own_draws(self, step: int, device: torch.device) -> Iterator[None]:
        """Let networks draw random numbers of this rank alone; outside all ranks draw the same.

        They depend on seed, step and rank, so a checkpoint needs not hold them.
        """
        if not self.is_shared:
            yield
            return
        seed = stateless_rng.mix(self.seed, step, self.ranks.share.rank, RANK_DRAWS)
        with torch.random.fork_rng(devices=generators(device)):
            torch.manual_seed(seed)
            yield

    def gather_features(self, own: Features, rows: int) -> Features:
        """Return the features of the whole batch, with gradient; those without rows stay so."""
        if not (len(own.logits) or len(own.pooled)):
            return own
        if not self.with_maps:
            own = Features(own.logits, own.pooled, strong=own.strong)

        def gather(value: Shaped[Tensor, "n *S"]) -> Shaped[Tensor, "N *S"]:
            return self.ranks.gather_rows(value, rows)

        def gather_any(value: Tensor | None) -> Tensor | None:
            return None if value is None else gather(value)

        return Features(
            logits=gather(own.logits),
            pooled=gather(own.pooled),
            stem=gather_any(own.stem),
            stages=tuple(map(gather, own.stages)),
            pre_activations=tuple(map(gather, own.pre_activations)),
            final=gather_any(own.final),
            strong=None if own.strong is None else self.gather_features(own.strong, rows),
            coarse_logits=gather_any(own.coarse_logits),
        )

    def gather_batch(self, own: Batch) -> Batch:
        """Return the whole batch as the loss reads it: labels, places and weights, no pixels."""
        rows = own.rows

        def gather(value: Tensor) -> Tensor:
            return self.ranks.gather_rows(value, rows)

        def gather_any(value: Tensor | None) -> Tensor | None:
            return None if value is None else gather(value)

        mixed = own.mixed
        return dataclasses.replace(
            own,
            images=own.images.new_empty(rows, *own.images.shape[1:2], 0, 0),
            labels=gather(own.labels),
            index=gather(own.index),
            view=gather_any(own.view),
            mixed=None if mixed is None else Mixed(gather(mixed.labels), gather(mixed.share)),
            strong=None,
            weights=gather_any(own.weights),
            rows_of_all=None,
        )

    def weigh(self, terms: Terms, own: Batch) -> Terms:
        """Return the terms of a slice, so weighted that their mean over ranks is the batch's."""
        share = len(own.labels) * self.ranks.count / own.rows
        return {name: share * term for name, term in terms.items()}


def gathers_maps(method: Method) -> bool:
    """Whether a method reads feature maps of either network."""
    return bool(MAPS & {*method.student_features, *method.teacher_features})


class SharedNorms:
    """The batch norms of networks that are trained on slices of a batch.

    Synchronised, they normalise by the mean and the variance of the whole batch, as on one device:
    each rank's are gathered and combined. The module of PyTorch for that runs on graphics cards
    alone. Otherwise each rank normalises by its own slice. The running statistics are the means
    over the ranks, either way equal on all of them.
    """

    def __init__(self, modules: Iterable[nn.Module], ranks: Ranks, *, synchronise: bool) -> None:
        """Take over the batch norms of `modules` until `release`."""
        self._ranks = ranks
        found: dict[int, _BatchNorm] = {}
        if ranks.count > 1:
            for module in modules:
                for part in module.modules():
                    if isinstance(part, _BatchNorm):
                        found[id(part)] = part
        self._norms = list(found.values())
        self._synchronised = synchronise
        if synchronise:
            for norm in self._norms:
                # In the instance, which nothing else of the network has to know of.
                norm.forward = _synchronised(norm, ranks)  # type: ignore[method-assign,assignment]

    def average(self) -> None:
        """Average the running statistics after a step."""
        if not self._synchronised:
            moments = [
                moment
                for norm in self._norms
                for moment in (norm.running_mean, norm.running_var)
                if moment is not None
            ]
            self._ranks.average(moments)

    def release(self) -> None:
        """Leave the networks as they are on one device."""
        for norm in self._norms:
            norm.__dict__.pop("forward", None)


def _synchronised(norm: _BatchNorm, ranks: Ranks) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of a batch norm that has the statistics of the whole batch."""

    def forward(received: Tensor) -> Tensor:
        if not norm.training:
            return type(norm).forward(norm, received)
        axes = [axis for axis in range(received.dim()) if axis != 1]
        values = received.float() if received.dtype != torch.float64 else received
        width, count = values.shape[1], values.numel() // values.shape[1]
        own = torch.cat(
            [
                values.mean(axes),
                values.var(axes, correction=0),
                values.new_full((1,), count),
            ]
        )
        every = ranks.gather_statistics(own)
        counts = every[:, -1:].detach()
        total = counts.sum()
        means, variances = every[:, :width], every[:, width : 2 * width]
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        _move_running(norm, mean.detach(), variance.detach() * total / (total - 1))
        shape = [1, width] + [1] * (values.dim() - 2)
        scale = torch.rsqrt(variance + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        result = (values - mean.view(shape)) * scale.view(shape)
        if norm.affine:
            result = result + norm.bias.view(shape)
        return result.to(received.dtype)

    return forward


@torch.no_grad()
def _move_running(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    factor = norm.momentum
    if factor is None:
        factor = 1.0 / float(norm.num_batches_tracked or 1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), factor)

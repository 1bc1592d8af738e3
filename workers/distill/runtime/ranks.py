"""What the processes that train one job on several devices exchange, with and without gradient.

Each process has a rank, from 0. Tensors travel by NCCL between graphics cards and by gloo between
processors, objects always by gloo. All ranks must make the same calls in the same order. A process
that trains alone has `ALONE`, for which every call is free.

The loss of a job is the mean of the losses of its ranks, and so is its gradient
(`average`). Where all ranks compute the same loss from gathered rows, the gradient of a
gathered row thus counts once for each rank: `gather_rows` multiplies it by their number, and needs
no exchange backwards.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from workers.distill import errors
from workers.distill.config.devices import WHOLE, Share

TIMEOUT = datetime.timedelta(hours=12)
"""How long a rank waits for the others: they wait while the first one validates. A rank that has
ended is found by the process that started it, at once."""
_BUCKET_ELEMENTS = 1 << 25
"""Gradients are exchanged in buckets of at most so many numbers, which are copied once."""

Value = TypeVar("Value")


class Ranks:
    """This process among those that train one job; see the module for what each call promises."""

    def __init__(self, share: Share = WHOLE) -> None:
        """Take part as `share` says; `join` has connected the processes, if there are several."""
        self.share = share

    @property
    def count(self) -> int:
        """Return the number of ranks."""
        return self.share.ranks

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that reports, validates and writes."""
        return self.share.rank == 0

    def gather_rows(self, own: Shaped[Tensor, "n *S"], rows: int) -> Shaped[Tensor, "N *S"]:
        """Return the rows of all ranks in the order of the batch, `rows` in all, with gradient.

        The gradient is right where every rank computes the same loss from the result.
        """
        if self.count == 1:
            return own
        if not own.requires_grad:
            return self._collect(own, rows)
        return cast(Tensor, _GatherRows.apply(own, self, rows))

    def gather_statistics(self, own: Float[Tensor, " K"]) -> Float[Tensor, "R K"]:
        """Return one row a rank, with gradient, for losses that differ between the ranks."""
        return cast(Tensor, _GatherStatistics.apply(own, self))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace floating-point tensors by their means over the ranks, in place, in few calls."""
        if self.count == 1 or not tensors:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._sum(flat)
            flat /= self.count
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sums(self, values: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return the sums of values over the ranks."""
        total = values.clone()
        if self.count > 1:
            self._sum(total)
        return total

    def from_first(self, value: Value) -> Value:
        """Return the first rank's value; that of the others is not used."""
        if self.count == 1:
            return value
        shared: list[Any] = [value if self.is_first else None]
        with _loss_of_peers():
            dist.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        return cast(Value, shared[0])

    def from_all(self, holds: bool) -> bool:
        """Return whether something holds on every rank; waits for all of them."""
        return bool(self.sums(torch.tensor([float(holds)])) == self.count)

    def _sum(self, values: Tensor) -> None:
        with _loss_of_peers():
            dist.all_reduce(values)

    def _collect(self, own: Tensor, rows: int) -> Tensor:
        """Return the rows of all ranks, without gradient, in the memory format of the own ones."""
        if own.shape[1:].numel() == 0:
            return own.new_empty((rows, *own.shape[1:]))
        is_channels_last = own.dim() == 4 and not own.is_contiguous()
        plain = own.detach().permute(0, 2, 3, 1) if is_channels_last else own.detach()
        sizes = self.share.sizes(rows)
        most = max(sizes)
        # As bytes: gloo does not know every type.
        content = plain.contiguous().reshape(len(own), -1).view(torch.uint8)
        if len(own) < most:
            content = torch.cat([content, content.new_zeros(most - len(own), content.shape[1])])
        gathered = content.new_empty(most * self.count, content.shape[1])
        with _loss_of_peers():
            dist.all_gather_into_tensor(gathered, content)
        if min(sizes) < most:
            parts = torch.split(gathered, most)
            gathered = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        result = gathered.view(own.dtype).view(rows, *plain.shape[1:])
        return result.permute(0, 3, 1, 2) if is_channels_last else result


ALONE = Ranks()
"""A process that trains alone."""


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; backwards the own rows, times the number of ranks."""

    @staticmethod
    def forward(context: Any, own: Tensor, ranks: Ranks, rows: int) -> Tensor:
        context.ranks, context.rows = ranks, rows
        return ranks._collect(own, rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        start, end = context.ranks.share.bounds(0, context.rows)
        return gradients[0][start:end] * context.ranks.count, None, None


class _GatherStatistics(torch.autograd.Function):
    """One row a rank; backwards the sum of what all ranks say of the own row."""

    @staticmethod
    def forward(context: Any, own: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return ranks._collect(own[None], ranks.count)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        context.ranks._sum(total)
        return total[context.ranks.share.rank], None


def join(share: Share, meeting: Path, device: torch.device) -> Ranks:
    """Connect this rank with the others, and return it; waits until all of them are there.

    They find each other through the file `meeting`, and talk over the loopback interface alone.
    Raises `RankLost`.
    """
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = loopback
    # NCCL would look for other ways to other machines, which the isolation of engines refuses.
    os.environ["NCCL_IB_DISABLE"] = "1"
    with _loss_of_peers():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo",
            store=dist.FileStore(  # type: ignore[attr-defined]  # not in torch's own list
                str(meeting), share.ranks
            ),
            rank=share.rank,
            world_size=share.ranks,
            timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    return Ranks(share)


@contextlib.contextmanager
def _loss_of_peers() -> Iterator[None]:
    """Raise `RankLost` for whatever an exchange fails with."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise errors.RankLost(
            f"an exchange between the processes of the job failed: {str(error)[:500]}"
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type together, at most so many numbers at once, in a fixed order."""
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        elements = 0
        for tensor in tensors:
            if tensor.dtype != kind:
                continue
            if bucket and elements + tensor.numel() > _BUCKET_ELEMENTS:
                yield bucket
                bucket, elements = [], 0
            bucket.append(tensor)
            elements += tensor.numel()
        yield bucket

"""Networks on the meta device: sizes alone, without memory or computing."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workers.distill.networks import interface

PROBE_SIDE = 512
"""Side at which strides are measured: a power of two that all of them divide."""

# Where there are no values, torch draws them in Python, which takes longer than to draw real ones.
_DRAWS = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_),
        *(nn.init.normal_, nn.init.trunc_normal_, nn.init.uniform_),
        *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
        *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
    }
)


class WithoutDraws(TorchFunctionMode):
    """Within it, no initial weights are drawn: for networks on the meta device, which have none."""

    def __torch_function__(
        self,
        func: Callable[..., Any],  # Any: whatever torch is called with
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return what a call gives; a draw gives its tensor as it is."""
        given = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def maps(backbone: nn.Module, channels: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return a backbone's maps by name, for an image of this height and width."""
    state = {
        name: tensor.detach().to("meta")
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    image = torch.zeros(1, channels, *size, device="meta")
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            found: dict[str, Tensor] = torch.func.functional_call(backbone, state, (image,))
    finally:
        backbone.train(was_training)
    return found


def stage(found: Tensor, height: int) -> interface.StageInfo:
    """Return channels and stride of a map; the stride is the nearest power of two."""
    return interface.StageInfo(found.shape[1], int(2 ** round(math.log2(height / found.shape[2]))))

"""Maps of a backbone measured on the meta device: their sizes alone, without computing them."""

import math

import torch
from torch import Tensor, nn

from workers.distill.networks import interface

PROBE_SIDE = 512
"""Side at which strides are measured: a power of two that all of them divide."""


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

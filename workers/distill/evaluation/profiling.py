"""How much arithmetic one image costs a network, and how long it takes."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workers.distill.networks.interface import Network
from workers.distill.runtime import device


def flops(network: Network, example: Tensor) -> int:
    """Return the floating-point operations of one forward pass of one image."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(example[:1])
    return int(counter.get_total_flops())


def latency_ms(network: Network, example: Tensor) -> float:
    """Return the median time from one image to its logits, in milliseconds."""
    one = example[:1].contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            network(one)

    return 1000 * device.median_seconds(forward, one.device)

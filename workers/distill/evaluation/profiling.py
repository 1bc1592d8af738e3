"""How much arithmetic one image costs a network, and how long it takes."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workers.distill.config.result import Latency
from workers.distill.networks.interface import Network
from workers.distill.runtime import device


def flops(network: Network, example: Tensor) -> int | None:
    """Return the floating-point operations of one forward pass of one image; None if unknown."""
    form = network.torch_form()
    if form is None:
        return None
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        form(example[:1])
    return int(counter.get_total_flops())


def latency(network: Network, example: Tensor) -> Latency:
    """Return the time from one image to the network's answer, with one thread and with all.

    On a card the threads of the processor do not matter, so only one time is measured there.
    """
    one = example[:1].contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            network(one)

    threads = torch.get_num_threads()
    if one.device.type != "cpu":
        return Latency(
            one_thread=None,
            all_threads=device.timing(
                device.call_seconds(forward, one.device, device.MEASURE_SECONDS), threads
            ),
        )
    found = {}
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            seconds = device.MEASURE_SECONDS / len({1, threads})
            found[count] = device.timing(device.call_seconds(forward, one.device, seconds), count)
    finally:
        torch.set_num_threads(threads)
    return Latency(one_thread=found[1], all_threads=found[threads])

"""How much arithmetic one image costs a network, and how long it takes."""

import math
import statistics

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workers.distill.config.result import Latency, Timing
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
            all_threads=timing(
                device.call_seconds(forward, one.device, device.MEASURE_SECONDS), threads
            ),
        )
    found = {}
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            seconds = device.MEASURE_SECONDS / len({1, threads})
            found[count] = timing(device.call_seconds(forward, one.device, seconds), count)
    finally:
        torch.set_num_threads(threads)
    return Latency(one_thread=found[1], all_threads=found[threads])


def timing(seconds: list[float], threads: int) -> Timing:
    """Return median and 99th percentile (nearest rank) of the seconds of some calls."""
    ordered = sorted(seconds)
    return Timing(
        p50_ms=round(1000 * statistics.median(ordered), 4),
        p99_ms=round(1000 * ordered[math.ceil(0.99 * len(ordered)) - 1], 4),
        threads=threads,
        calls=len(ordered),
    )

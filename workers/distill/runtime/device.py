"""What the engine asks of a device: to wait, to be exact, to be timed; and of the allocator."""

import ctypes
import math
import statistics
import time
from collections.abc import Callable

import torch

from workers.distill.config.result import Timing

MEASURE_SECONDS = 0.5
# Numbers of <malloc.h>; glibc takes no larger threshold than 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_THRESHOLD = -1, -3, 32 << 20


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def generators(device: torch.device) -> list[torch.device]:
    """Return the devices whose random numbers `fork_rng` keeps, besides the CPU."""
    return [device] if device.type == "cuda" else []


def median_seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the median of the seconds that the work takes, over half a second or one call."""
    return statistics.median(call_seconds(work, device, MEASURE_SECONDS))


def call_seconds(work: Callable[[], None], device: torch.device, limit: float) -> list[float]:
    """Return the seconds of each call of the work, for so many seconds or 200 calls, at least one.

    Two calls before them, which warm up, do not count.
    """
    times: list[float] = []
    for _ in range(2):
        work()
    wait_for(device)
    end = time.monotonic() + limit
    while not times or (time.monotonic() < end and len(times) < 200):
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return times


def timing(seconds: list[float], threads: int) -> Timing:
    """Return median and 99th percentile (nearest rank) of the seconds of some calls."""
    ordered = sorted(seconds)
    return Timing(
        p50_ms=round(1000 * statistics.median(ordered), 4),
        p99_ms=round(1000 * ordered[math.ceil(0.99 * len(ordered)) - 1], 4),
        threads=threads,
        calls=len(ordered),
    )


def keep_memory() -> None:
    """Let the process keep freed memory for its next step, instead of asking for fresh pages.

    A step allocates and frees the same large maps again and again; the kernel would have to clear
    each page anew, which takes 6 % of a step on the CPU. Only glibc is asked; others are left as
    they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

"""Answers how fast a network is, and how fast it could be.

The floor is the arithmetic alone: teacher forward, student forward and backward, on a batch that is
already there. What a run spends beyond it is overhead.
"""

import copy
import ctypes
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision

MEASURE_SECONDS = 0.5
EXAMPLES = 4
"""Images on which a folded network is compared with the plain one."""
# Numbers of <malloc.h>; glibc takes no larger threshold than 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_THRESHOLD = -1, -3, 32 << 20


def folded(network: Network, example: Tensor) -> Network:
    """Return a copy in evaluation mode whose batch norms are part of their convolutions.

    A pair is folded when one forward pass shows the norm reading that convolution's output. If any
    feature then differs, a plain copy is returned: some networks read a convolution's output, or a
    norm's statistics, in more than one place.
    """
    plain = copy.deepcopy(network).eval()
    plain.requires_grad_(False)
    changed = copy.deepcopy(plain)
    # Rounded to TF32, as CUDA convolutions are, equal networks would look different.
    exact = without_tf32() if example.is_cuda else nullcontext()
    # Not in inference mode: weights made there could never be loaded or compiled.
    with torch.no_grad(), exact:
        expected = plain.observe(example)
        for conv_name, norm_name in _pairs(changed, example):
            conv, norm = changed.get_submodule(conv_name), changed.get_submodule(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                changed.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
                changed.set_submodule(norm_name, nn.Identity())
        try:
            same = _close(changed.observe(example), expected)
        except (AttributeError, TypeError, RuntimeError):  # it looked inside a norm that is gone
            same = False
    return changed if same else plain


def without_tf32() -> AbstractContextManager[None]:
    """Return a context in which CUDA's convolutions keep all bits of float32."""
    cudnn = torch.backends.cudnn
    # What is not named would be switched off, cuDNN itself first of all.
    context: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
    return context


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

    return 1000 * _median_seconds(forward, one.device)


def forward(network: Network, images: Tensor, precision: Precision) -> Callable[[], object]:
    """Return a forward pass as it runs beside a student."""

    def run() -> object:
        with torch.inference_mode(), precision.autocast():
            return network.observe(images)

    return run


class Floor:
    """A student's arithmetic of one step, forward and backward, on a copy that learns nothing."""

    def __init__(self, student: Network, precision: Precision) -> None:
        self._student = copy.deepcopy(student).train()  # its running statistics move
        self._parameters = [
            parameter for parameter in self._student.parameters() if parameter.requires_grad
        ]
        self._precision = precision

    def __call__(self, images: Tensor) -> None:
        """Compute a step's gradient, uncompiled."""
        with self._precision.autocast():
            logits = self._student(images)
        torch.autograd.grad(logits.float().sum(), self._parameters, allow_unused=True)


def floor_seconds(
    student: Network,
    images: Tensor,
    teacher: Callable[[], object] | None,
    precision: Precision,
) -> float:
    """Return the seconds that the arithmetic of one step takes, uncompiled."""
    floor = Floor(student, precision)

    def step() -> None:
        if teacher is not None:
            teacher()
        floor(images)

    return _median_seconds(step, images.device)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def generators(device: torch.device) -> list[torch.device]:
    """Return the devices whose random numbers `fork_rng` keeps, besides the CPU."""
    return [device] if device.type == "cuda" else []


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


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    times: list[float] = []
    for _ in range(2):
        work()
    wait_for(device)
    end = time.monotonic() + MEASURE_SECONDS
    while not times or (time.monotonic() < end and len(times) < 200):
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _pairs(network: Network, example: Tensor) -> list[tuple[str, str]]:
    """Return names of convolutions and of the norms that read their very output."""
    # Exact types: a subclass may do more than its name says, such as an activation.
    convolutions = [name for name, module in network.named_modules() if type(module) is nn.Conv2d]
    norms = [
        name
        for name, module in network.named_modules()
        if type(module) is nn.BatchNorm2d and module.track_running_stats
    ]
    with interface.Tap(network, convolutions, inputs=norms) as tap:
        network.observe(example)
    made_by = {id(output): name for name, output in tap.outputs.items()}
    return [(made_by[id(seen)], norm) for norm, seen in tap.inputs.items() if id(seen) in made_by]


def _close(found: Features, expected: Features) -> bool:
    def tensors(features: Features) -> list[Tensor]:
        stem = [] if features.stem is None else [features.stem]
        maps = [*features.stages, *features.pre_activations]
        return [features.logits, features.pooled, *stem, *maps]

    def same(one: Tensor, other: Tensor) -> bool:
        # Relative to the largest entry: a rounding error of a sum follows the size of its parts.
        size = float(other.abs().max()) if other.numel() else 0.0
        return one.shape == other.shape and bool(
            torch.allclose(one, other, rtol=1e-3, atol=1e-4 * max(size, 1e-6))
        )

    pairs = zip(tensors(found), tensors(expected), strict=True)
    return all(same(one, other) for one, other in pairs)

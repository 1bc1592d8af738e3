"""Answers how fast a network is, and how fast it could be.

The floor is the arithmetic alone: teacher forward, student forward and backward, on a batch that is
already there. What a run spends beyond it is overhead.
"""

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from workers.distill import optimizers
from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network

MEASURE_SECONDS = 0.5
EXAMPLES = 4
"""Images on which a folded network is compared with the plain one."""


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
    exact = torch.backends.cudnn.flags(allow_tf32=False) if example.is_cuda else nullcontext()
    with torch.inference_mode(), exact:
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


def forward(
    network: Network, images: Tensor, precision: optimizers.Precision
) -> Callable[[], object]:
    """Return a forward pass as it runs beside a student."""

    def run() -> object:
        with torch.inference_mode(), precision.autocast():
            return network.observe(images)

    return run


def floor_seconds(
    student: Network,
    images: Tensor,
    teacher: Callable[[], object] | None,
    precision: optimizers.Precision,
) -> float:
    """Return the seconds that the arithmetic of one step takes, uncompiled."""
    trained = copy.deepcopy(student).train()  # its running statistics move
    parameters = optimizers.learned([trained])

    def step() -> None:
        if teacher is not None:
            teacher()
        with precision.autocast():
            logits = trained(images)
        torch.autograd.grad(logits.float().sum(), parameters, allow_unused=True)

    return _median_seconds(step, images.device)


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: list[float] = []
    for _ in range(2):
        work()
    wait()
    end = time.monotonic() + MEASURE_SECONDS
    while not times or (time.monotonic() < end and len(times) < 200):
        start = time.perf_counter()
        work()
        wait()
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

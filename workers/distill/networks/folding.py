"""Networks whose batch norms are part of their convolutions: the same outputs in less time."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from workers.distill.networks import interface
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.pointwise import SubsampledConv2d

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
    exact = _without_tf32() if example.is_cuda else nullcontext()
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


def _without_tf32() -> AbstractContextManager[None]:
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


def _pairs(network: Network, example: Tensor) -> list[tuple[str, str]]:
    """Return names of convolutions and of the norms that read their very output."""
    # Exact types: a subclass may do more than its name says, such as an activation.
    convolutions = [
        name
        for name, module in network.named_modules()
        if type(module) in {nn.Conv2d, SubsampledConv2d}
    ]
    norms = [
        name
        for name, module in network.named_modules()
        if type(module) is nn.BatchNorm2d and module.track_running_stats
    ]
    with interface.Tap(network, convolutions, inputs=norms) as tap:
        network.observe(example)
    made_by = {id(output): name for name, output in tap.outputs.items()}
    return [
        (made_by[id(tensor)], norm) for norm, tensor in tap.inputs.items() if id(tensor) in made_by
    ]


def _close(actual: Features, expected: Features) -> bool:
    def tensors(features: Features) -> list[Tensor]:
        stem = [] if features.stem is None else [features.stem]
        maps = [*features.stages, *features.pre_activations]
        return [features.logits, features.pooled, *stem, *maps, *boxes(features)]

    def boxes(features: Features) -> list[Tensor]:
        found = features.detector
        if not isinstance(found, interface.DenseDetectorOutput):
            return []
        return [found.box_deltas, *([] if found.centerness is None else [found.centerness])]

    def same(one: Tensor, other: Tensor) -> bool:
        # Relative to the largest entry: a rounding error of a sum follows the size of its parts.
        size = float(other.abs().max()) if other.numel() else 0.0
        return one.shape == other.shape and bool(
            torch.allclose(one, other, rtol=1e-3, atol=1e-4 * max(size, 1e-6))
        )

    pairs = zip(tensors(actual), tensors(expected), strict=True)
    return all(same(one, other) for one, other in pairs)

"""Convolutions of 1x1 pixels with a stride, computed on the pixels that the stride leaves.

oneDNN, which computes torch's convolutions on the CPU, writes past its workspace in the gradient
of such weights, where maps are channels-last and have fewer channels than its block
(github.com/uxlfoundation/oneDNN/issues/6035): the process dies, or the gradient is wrong. Seen with
torch 2.15 (oneDNN 3.13.3) on a processor with AVX-512; whether it shows depends on the sizes.
"""

from torch import Tensor, nn
from torch.nn import functional

BLOCK = 16
"""Channels of oneDNN's block with AVX-512; with AVX2 it has 8."""


class SubsampledConv2d(nn.Conv2d):
    """A strided convolution of 1x1: the same outputs, weights and names, without a stride."""

    def forward(self, input: Tensor) -> Tensor:
        """Return maps of shape [batch, channels out, ceil(height / stride), ceil(width / stride)].

        `input` has the shape [batch, channels in, height, width].
        """
        down, across = self.stride
        return functional.conv2d(input[..., ::down, ::across], self.weight, self.bias)


def subsample(network: nn.Module) -> None:
    """Make every convolution of a network that oneDNN may get wrong a `SubsampledConv2d`."""
    for module in network.modules():
        # Exact types: a subclass may do more than its name says, such as padding.
        if type(module) is nn.Conv2d and _is_affected(module):
            module.__class__ = SubsampledConv2d


def _is_affected(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (1, 1)
        and max(convolution.stride) > 1
        and convolution.padding in {(0, 0), "valid"}
        and convolution.groups == 1
        and convolution.in_channels < BLOCK
    )

"""ShuffleNetV2 for small images: each block works on half of the channels, then all are shuffled.

Parameter names and shapes equal those of the checkpoints that RepDistiller and MDistiller publish.
Source: Ma et al., ECCV 2018, arXiv:1807.11164, table 5, size 1.
Differs: a 1x1 stem that keeps the size, as in those repositories; pooling adapts to the size of the
last map. The pre-activations of a stage are shuffled like the stage, so that their channels
correspond; there they are not.
"""

from collections.abc import Sequence
from typing import Annotated

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

STEM = 24
BLOCKS = (4, 8, 4)
STRIDES = (2, 4, 8)


class HalfBlock(nn.Module):
    """Three convolutions of the second half of the channels; the first half passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def before_activation(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        """Return the shuffled output before its last activation."""
        kept, changed = maps.chunk(2, dim=1)
        hidden = functional.relu(self.bn1(self.conv1(changed)))
        made = self.bn3(self.conv3(self.bn2(self.conv2(hidden))))
        return functional.channel_shuffle(torch.cat([kept, made], dim=1), 2)

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        """Return the block's output."""
        # What passed unchanged is not negative, so activating all channels changes only the rest.
        return functional.relu(self.before_activation(maps))


class DownBlock(nn.Module):
    """Two branches over all channels, each halving the map and making half of the output."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(
            channels_in, channels_in, 3, 2, padding=1, groups=channels_in, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(maps))))
        hidden = functional.relu(self.bn3(self.conv3(maps)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(hidden))))
        return functional.channel_shuffle(functional.relu(torch.cat([left, right], dim=1)), 2)


class ShuffleV2(convolutional.ConvolutionalNetwork):
    """Stem, three stages that each halve the map, a 1x1 convolution, a linear classifier."""

    classifier_name = "linear"

    def __init__(self, *, widths: Sequence[int], last_width: int, sizes: interface.Sizes) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(sizes.channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, widths[0], BLOCKS[0])
        self.layer2 = _stage(widths[0], widths[1], BLOCKS[1])
        self.layer3 = _stage(widths[1], widths[2], BLOCKS[2])
        self.conv2 = nn.Conv2d(widths[2], last_width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last_width)
        self.linear = nn.Linear(last_width, sizes.classes)
        self.pooled_width = last_width
        self.stages_info = convolutional.stages_info(widths, STRIDES)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and pre-activations."""
        stem = functional.relu(self.bn1(self.conv1(images)))
        maps, stages, pre_activations = stem, [], []
        for stage in (self.layer1, self.layer2, self.layer3):
            *blocks, last = stage
            for block in blocks:
                maps = block(maps)
            before = last.before_activation(maps)  # type: ignore[operator]  # a Sequential hides the names of `HalfBlock`
            maps = functional.relu(before)
            pre_activations.append(before)
            stages.append(maps)
        final = functional.relu(self.bn2(self.conv2(maps)))
        return self.features(final, stem=stem, stages=stages, pre_activations=pre_activations)


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    widths: list[Annotated[int, pydantic.Field(ge=2, le=4096, multiple_of=2)]] = pydantic.Field(
        [116, 232, 464],
        min_length=3,
        max_length=3,
        description="Channels of the three stages, even numbers.",
    )
    last_width: arguments.Channels = pydantic.Field(
        1024, description="Channels of the last convolution."
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> ShuffleV2:
    """Build a network with fresh weights."""
    return ShuffleV2(widths=accepted.widths, last_width=accepted.last_width, sizes=sizes)


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    first = DownBlock(channels_in, channels)
    return nn.Sequential(first, *(HalfBlock(channels) for _ in range(blocks - 1)))

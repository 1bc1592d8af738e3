"""ShuffleNet for small images: grouped 1x1 convolutions whose channels are mixed by shuffling.

Parameter names and shapes equal those of the checkpoints that RepDistiller and MDistiller publish.
Source: Zhang et al., CVPR 2018, arXiv:1707.01083, section 3, three groups.
Differs: a 1x1 stem that keeps the size, as in those repositories; pooling adapts to the size of the
last map.
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
GROUPS = 3
BLOCKS = (4, 8, 4)
STRIDES = (2, 4, 8)


class Block(nn.Module):
    """A grouped bottleneck; where it halves the map, its pooled input is appended to the output."""

    def __init__(self, channels_in: int, channels: int, *, halves: bool) -> None:
        super().__init__()
        made = channels - channels_in if halves else channels
        hidden = made // 4
        self.halves = halves
        # The stem's few channels are not grouped.
        self.groups = 1 if channels_in == STEM else GROUPS
        self.conv1 = nn.Conv2d(channels_in, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        stride = 2 if halves else 1
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, made, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def before_activation(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output before its last activation."""
        hidden = functional.relu(self.bn1(self.conv1(maps)))
        hidden = functional.channel_shuffle(hidden, self.groups)
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        made: Tensor = self.bn3(self.conv3(hidden))
        if self.halves:
            return torch.cat([made, functional.avg_pool2d(maps, 3, 2, 1)], dim=1)
        return made + maps

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        return functional.relu(self.before_activation(maps))


class ShuffleV1(convolutional.ConvolutionalNetwork):
    """Stem, three stages that each halve the map, average pooling, linear classifier."""

    classifier_name = "linear"

    def __init__(self, *, widths: Sequence[int], sizes: interface.Sizes) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(sizes.channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, widths[0], BLOCKS[0])
        self.layer2 = _stage(widths[0], widths[1], BLOCKS[1])
        self.layer3 = _stage(widths[1], widths[2], BLOCKS[2])
        self.linear = nn.Linear(widths[2], sizes.classes)
        self.pooled_width = widths[2]
        self.stages_info = convolutional.stages_info(widths, STRIDES)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and pre-activations."""
        stem = functional.relu(self.bn1(self.conv1(images)))
        maps, stages, pre_activations = stem, [], []
        for stage in (self.layer1, self.layer2, self.layer3):
            before = maps
            for block in stage:
                # Sequential hides the type `Block` from the type checker.
                before = block.before_activation(maps)  # type: ignore[operator]
                maps = functional.relu(before)
            pre_activations.append(before)
            stages.append(maps)
        return self.features(maps, stem=stem, stages=stages, pre_activations=pre_activations)


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    widths: list[Annotated[int, pydantic.Field(ge=36, le=4092, multiple_of=12)]] = pydantic.Field(
        [240, 480, 960],
        min_length=3,
        max_length=3,
        description="Channels of the three stages: multiples of 12, each more than the one before.",
    )

    @pydantic.field_validator("widths")
    @classmethod
    def _grow(cls, widths: list[int]) -> list[int]:
        if sorted(set(widths)) != widths:
            raise ValueError("each stage must have more channels than the one before")
        return widths


def build(accepted: Arguments, sizes: interface.Sizes) -> ShuffleV1:
    """Build a network with fresh weights."""
    return ShuffleV1(widths=accepted.widths, sizes=sizes)


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    first = Block(channels_in, channels, halves=True)
    return nn.Sequential(
        first, *(Block(channels, channels, halves=False) for _ in range(blocks - 1))
    )

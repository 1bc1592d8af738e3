"""The small MobileNetV2 for 32x32 images that RepDistiller calls `mobile_half`.

Its stages end in linear bottlenecks, so there are no pre-activations. Parameter names and shapes
equal those of the checkpoints that RepDistiller and MDistiller publish.
Source: Sandler et al., CVPR 2018, arXiv:1801.04381, table 2, with half the width.
Differs: the stem and the second block keep the strides of those repositories (2 and 1), which suit
small images; no dropout; pooling adapts to the size of the last map.
"""

from collections.abc import Sequence

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

STEM = 32
LAST = 1280
ROWS = (
    (16, 1, 1),
    (24, 2, 1),
    (32, 3, 2),
    (64, 4, 2),
    (96, 3, 1),
    (160, 3, 2),
    (320, 1, 1),
)
"""Channels at full width, number of blocks and first stride of each group of blocks."""

STAGE_ENDS = (1, 2, 4, 6)
STRIDES = (2, 4, 8, 16)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation; a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.adds = stride == 1 and channels_in == channels
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        projected: Tensor = self.conv(maps)
        return maps + projected if self.adds else projected


class MobileNetV2(convolutional.ConvolutionalNetwork):
    """Stem, seven groups of inverted residuals in four stages, a 1x1 convolution, a classifier."""

    classifier_name = "classifier.0"

    def __init__(self, *, width_multiplier: float, expansion: int, sizes: interface.Sizes) -> None:
        super().__init__()
        stem, *widths = (_scaled(width, width_multiplier) for width in (STEM, *_widths()))
        last = _scaled(LAST, max(width_multiplier, 1.0))
        self.conv1 = _conv_norm(sizes.channels, stem, 3, 2)
        incoming = (stem, *widths)
        self.blocks = nn.ModuleList(
            # The first group does not expand.
            _group(incoming[index], width, count, stride, expansion if index else 1)
            for index, (width, (_, count, stride)) in enumerate(zip(widths, ROWS, strict=True))
        )
        self.conv2 = _conv_norm(widths[-1], last, 1, 1)
        classifier = nn.Linear(last, sizes.classes)
        self.classifier = nn.Sequential(classifier)
        self.pooled_width = last
        self.stages_info = convolutional.stages_info((widths[end] for end in STAGE_ENDS), STRIDES)
        convolutional.initialise_convolutions(self)
        nn.init.normal_(classifier.weight, 0, 0.01)
        nn.init.zeros_(classifier.bias)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and the map that is pooled."""
        stem = self.conv1(images)
        maps, stages = stem, []
        for index, group in enumerate(self.blocks):
            maps = group(maps)
            if index in STAGE_ENDS:
                stages.append(maps)
        final = self.conv2(maps)
        return self.features(final, stem=stem, stages=stages)


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    width_multiplier: float = pydantic.Field(
        0.5, gt=0, le=8, description="Factor of all channels but those of the last convolution."
    )
    expansion: int = pydantic.Field(
        6, ge=1, le=16, description="Factor by which a block widens its input."
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> MobileNetV2:
    """Build a network with fresh weights."""
    return MobileNetV2(
        width_multiplier=accepted.width_multiplier, expansion=accepted.expansion, sizes=sizes
    )


def _widths() -> Sequence[int]:
    return tuple(width for width, _, _ in ROWS)


def _scaled(width: int, factor: float) -> int:
    return max(1, int(width * factor))


def _conv_norm(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def _group(
    channels_in: int, channels: int, count: int, stride: int, expansion: int
) -> nn.Sequential:
    first = InvertedResidual(channels_in, channels, stride, expansion)
    rest = (InvertedResidual(channels, channels, 1, expansion) for _ in range(count - 1))
    return nn.Sequential(first, *rest)

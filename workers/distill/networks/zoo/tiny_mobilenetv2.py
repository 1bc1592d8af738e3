"""The MobileNetV2 for 64x64 images that MDistiller uses on Tiny-ImageNet.

Parameter names equal those of the checkpoints that MDistiller writes. Source: Sandler et al., CVPR
2018, arXiv:1801.04381.
Differs: a 1x1 stem with a border of one pixel, biases in convolutions and the strides of that
repository. Its classifier, there a 1x1 convolution of the pooled map, is a linear layer here, so
that methods can apply it to an embedding: the same numbers in another shape, which are accepted in
either when a file is loaded.
"""

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

STRIDES = (2, 4, 8, 8)


class LinearBottleneck(nn.Module):
    """Expand, filter each channel, project without activation; a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.adds = stride == 1 and channels_in == channels
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the block's output."""
        projected: Tensor = self.residual(maps)
        return maps + projected if self.adds else projected


class TinyMobileNetV2(convolutional.ConvolutionalNetwork):
    """Stem, seven groups of linear bottlenecks, a 1x1 convolution, a linear classifier."""

    classifier_name = "conv2"

    def __init__(self, *, width_multiplier: float, sizes: interface.Sizes) -> None:
        super().__init__()
        stem, *widths = (
            max(1, int(width * width_multiplier)) for width in (32, 16, 24, 32, 64, 96, 160, 320)
        )
        last = int(1280 * max(width_multiplier, 1.0))
        self.pre = nn.Sequential(
            nn.Conv2d(sizes.channels, stem, 1, padding=1),
            nn.BatchNorm2d(stem),
            nn.ReLU6(inplace=True),
        )
        self.stage1 = LinearBottleneck(stem, widths[0], 1, 1)
        self.stage2 = _group(widths[0], widths[1], 2, 2)
        self.stage3 = _group(widths[1], widths[2], 3, 2)
        self.stage4 = _group(widths[2], widths[3], 4, 2)
        self.stage5 = _group(widths[3], widths[4], 3, 1)
        self.stage6 = _group(widths[4], widths[5], 3, 1)
        self.stage7 = LinearBottleneck(widths[5], widths[6], 1, 6)
        self.conv1 = nn.Sequential(
            nn.Conv2d(widths[6], last, 1), nn.BatchNorm2d(last), nn.ReLU6(inplace=True)
        )
        self.conv2 = nn.Linear(last, sizes.classes)
        self.pooled_width = last
        self.stages_info = convolutional.stages_info((*widths[1:4], last), STRIDES)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem and stages; the last convolution is a stage too."""
        stem = self.pre(images)
        first = self.stage2(self.stage1(stem))
        second = self.stage3(first)
        third = self.stage4(second)
        final = self.conv1(self.stage7(self.stage6(self.stage5(third))))
        return self.features(final, stem=stem, stages=(first, second, third, final))


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    width_multiplier: float = pydantic.Field(
        1.0, gt=0, le=8, description="Factor of all channels but those of the last convolution."
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> TinyMobileNetV2:
    """Build a network with fresh weights."""
    return TinyMobileNetV2(width_multiplier=accepted.width_multiplier, sizes=sizes)


def _group(channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
    first = LinearBottleneck(channels_in, channels, stride, 6)
    return nn.Sequential(
        first, *(LinearBottleneck(channels, channels, 1, 6) for _ in range(count - 1))
    )

"""MobileNetV1 for large images, the usual small student on ImageNet.

Parameter names and shapes equal those of the checkpoints that MDistiller publishes.
Source: Howard et al., 2017, arXiv:1704.04861, table 1.
Differs: pooling adapts to the size of the last map. MDistiller counts the first stage as its stem,
so methods that skip the stem skip that stage; here the first convolution is the stem.
"""

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

STEM = 32
ROWS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
"""Channels at full width and stride of each block."""

STAGE_ENDS = (3, 5, 11, 13)
STRIDES = (4, 8, 16, 32)


class MobileNetV1(convolutional.ConvolutionalNetwork):
    """Stem and thirteen depthwise separable convolutions in four stages; linear classifier."""

    def __init__(self, *, width_multiplier: float, sizes: interface.Sizes) -> None:
        super().__init__()
        stem, *widths = (
            max(1, int(width * width_multiplier)) for width in (STEM, *(row[0] for row in ROWS))
        )
        incoming = (stem, *widths)
        first = nn.Sequential(
            nn.Conv2d(sizes.channels, stem, 3, 2, padding=1, bias=False), nn.BatchNorm2d(stem)
        )
        rest = (
            _separable(incoming[index], width, stride)
            for index, (width, (_, stride)) in enumerate(zip(widths, ROWS, strict=True))
        )
        self.model = nn.Sequential(first, *rest)
        self.fc = nn.Linear(widths[-1], sizes.classes)
        self.pooled_width = widths[-1]
        self.stages_info = convolutional.stages_info((incoming[end] for end in STAGE_ENDS), STRIDES)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and pre-activations."""
        first, *rest = self.model
        stem = functional.relu(first(images))
        maps, stages, pre_activations = stem, [], []
        for index, block in enumerate(rest, start=1):
            before = block(maps)
            maps = functional.relu(before)
            if index in STAGE_ENDS:
                pre_activations.append(before)
                stages.append(maps)
        return self.features(maps, stem=stem, stages=stages, pre_activations=pre_activations)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the last norm of each stage."""
        return tuple(self.model[end][-1] for end in STAGE_ENDS)  # type: ignore[index]  # a Sequential hides the kind of its layers


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    width_multiplier: float = pydantic.Field(1.0, gt=0, le=8, description="Factor of all channels.")


def build(accepted: Arguments, sizes: interface.Sizes) -> MobileNetV1:
    """Build a network with fresh weights."""
    return MobileNetV1(width_multiplier=accepted.width_multiplier, sizes=sizes)


def _separable(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Return a block up to its last norm; the network applies the activation after it."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )

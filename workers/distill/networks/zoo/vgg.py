"""Plain convolutional networks with batch norm for small images, named `vgg<depth>`.

Parameter names and shapes equal those of the checkpoints that RepDistiller and MDistiller publish.
Source: Simonyan, Zisserman, ICLR 2015, arXiv:1409.1556, table 1; `vgg8` is RepDistiller's.
Differs: batch norm, average pooling and one linear layer after the convolutions, as in those
repositories. Before the last stage they pool only images of 64x64; here images from 64x64 on.
"""

from collections.abc import Sequence

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional

LAYERS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of the five stages, by depth."""

LARGE_SIDE = 64
"""From this side on the map is halved before the last stage as well."""


class VGG(convolutional.ConvolutionalNetwork):
    """Five stages of 3x3 convolutions, the first of which counts as the stem."""

    classifier_name = "classifier"

    def __init__(
        self,
        *,
        layers: Sequence[int],
        widths: Sequence[int],
        classes: int,
        channels: int,
        pools_last: bool,
    ) -> None:
        super().__init__()
        incoming = (channels, *widths)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _stage(incoming[index], width, count)
            for index, (width, count) in enumerate(zip(widths, layers, strict=True))
        )
        self.classifier = nn.Linear(widths[-1], classes)
        self.pools = (True, True, True, pools_last)
        self.pooled_width = widths[-1]
        strides = (2, 4, 8, 16 if pools_last else 8)
        self.stages_info = convolutional.stages_info(widths[1:], strides)
        convolutional.initialise_convolutions(self)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stem, stages and pre-activations."""
        stem = functional.relu(self.block0(images))
        maps, stages, pre_activations = stem, [], []
        for stage, pools in zip(self._stages(), self.pools, strict=True):
            before = stage(functional.max_pool2d(maps, 2) if pools else maps)
            maps = functional.relu(before)
            pre_activations.append(before)
            stages.append(maps)
        return self.features(maps, stem=stem, stages=stages, pre_activations=pre_activations)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the last norm of each stage."""
        return tuple(stage[-1] for stage in self._stages())  # type: ignore[misc]  # a Sequential hides the kind of its last layer

    def _stages(self) -> tuple[nn.Sequential, ...]:
        return (self.block1, self.block2, self.block3, self.block4)


class Arguments(arguments.Arguments):
    """Arguments of these networks."""

    widths: list[arguments.Channels] = pydantic.Field(
        [64, 128, 256, 512, 512],
        min_length=5,
        max_length=5,
        description="Channels of the stem and of the four stages.",
    )


def build(depth: int, accepted: Arguments, sizes: interface.Sizes) -> VGG:
    """Build a network with fresh weights."""
    return VGG(
        layers=LAYERS[depth],
        widths=accepted.widths,
        classes=sizes.classes,
        channels=sizes.channels,
        pools_last=min(sizes.height, sizes.width) >= LARGE_SIDE,
    )


def _stage(channels_in: int, channels: int, count: int) -> nn.Sequential:
    """Return convolutions and norms; the network applies the activation after the last."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [
            nn.Conv2d(channels if index else channels_in, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers[:-1])

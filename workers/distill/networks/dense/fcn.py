"""Fully convolutional network for small images: a class for each pixel, at full resolution.

3x3 convolutions, each with batch norm and a rectifier, and a 1x1 convolution that classifies.
Source: Long, Shelhamer, Darrell, CVPR 2015, arXiv:1411.4038, section 3.
Differs: nothing is pooled, so nothing is upsampled; the receptive field has 2n + 1 pixels a side
after n layers.
"""

from collections.abc import Sequence

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments


class FCN(interface.Network):
    """Layers of one resolution, each of which counts as a stage."""

    task = "segmentation"

    def __init__(self, *, widths: Sequence[int], sizes: interface.Sizes) -> None:
        super().__init__()
        incoming = (sizes.channels, *widths[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
            )
            for channels_in, width in zip(incoming, widths, strict=True)
        )
        self.classifier = nn.Conv2d(widths[-1], sizes.classes, 1)
        self.pooled_width = widths[-1]
        self.stages_info = tuple(interface.StageInfo(width, 1) for width in widths)
        _initialise(self)

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C h w"]:
        """Return the logits of every pixel."""
        return self.observe(images).logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stages and pre-activations."""
        maps, stages, pre_activations = images, [], []
        for layer in self.layers:
            before = layer(maps)
            maps = functional.relu(before)
            pre_activations.append(before)
            stages.append(maps)
        return interface.Features(
            logits=self.classifier(maps),
            pooled=maps.mean(dim=(2, 3)),
            stages=tuple(stages),
            pre_activations=tuple(pre_activations),
            final=maps,
        )

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norm of each layer."""
        return tuple(layer[-1] for layer in self.layers)  # type: ignore[index]  # a ModuleList hides what it holds


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    widths: list[arguments.Channels] = pydantic.Field(
        [32, 32, 64],
        min_length=1,
        max_length=16,
        description="Channels of the layers, of which there are as many as numbers.",
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> FCN:
    """Build a network with fresh weights."""
    return FCN(widths=accepted.widths, sizes=sizes)


def _initialise(network: FCN) -> None:
    for module in network.layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(network.classifier.weight, 0, 0.01)
    if network.classifier.bias is not None:
        nn.init.zeros_(network.classifier.bias)

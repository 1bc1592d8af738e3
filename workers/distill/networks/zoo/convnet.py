"""A plain convolutional network for the smallest images: one layer per stage, by `widths`.

It trains on digits of 8x8 in seconds, so the data-free figures use it.
"""

from collections.abc import Sequence

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments, convolutional


class ConvNet(convolutional.ConvolutionalNetwork):
    """3x3 convolutions with batch norm; the map is halved before every stage but the first two."""

    def __init__(self, *, widths: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        incoming = (channels, *widths)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            for before, width in zip(incoming, widths, strict=False)
        )
        self.fc = nn.Linear(widths[-1], classes)
        self.pooled_width = widths[-1]
        self.stages_info = tuple(
            interface.StageInfo(width, 2 ** max(0, place - 1)) for place, width in enumerate(widths)
        )

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits, embedding, stages and pre-activations."""
        maps, stages, pre_activations = images, [], []
        for place, stage in enumerate(self.stages):
            before = stage(functional.max_pool2d(maps, 2) if place > 1 else maps)
            maps = functional.relu(before)
            pre_activations.append(before)
            stages.append(maps)
        return self.features(maps, stages=stages, pre_activations=pre_activations)

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the norm of each stage."""
        return tuple(stage[1] for stage in self.stages)  # type: ignore[index]  # a ModuleList hides the kind of its parts


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    widths: list[arguments.Channels] = pydantic.Field(
        [16, 32, 64], min_length=2, max_length=5, description="Channels of each stage."
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> ConvNet:
    """Build a network with fresh weights."""
    return ConvNet(widths=accepted.widths, classes=sizes.classes, channels=sizes.channels)

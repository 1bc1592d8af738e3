"""A perceptron for tiny images: linear layers, the last of them an embedding without activation.

It has no batch norm, so that many clients of a federation can be trained at once, and it trains on
digits of 8x8 in seconds.
"""

from collections.abc import Sequence

import pydantic
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments


class MLP(interface.Network):
    """Linear layers with ReLU between them, and a linear classifier on the last one's output."""

    def __init__(self, *, pixels: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        incoming = (pixels, *widths)
        self.layers = nn.ModuleList(
            nn.Linear(before, width) for before, width in zip(incoming, widths, strict=False)
        )
        self.fc = nn.Linear(widths[-1], classes)
        self.pooled_width = widths[-1]

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the logits."""
        return self.observe(images).logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return logits and embedding."""
        hidden = images.flatten(1)
        for place, layer in enumerate(self.layers):
            hidden = layer(functional.relu(hidden) if place else hidden)
        return interface.Features(logits=self.fc(hidden), pooled=hidden)

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the last layer, or None where it was taken out."""
        return self.fc if isinstance(self.fc, nn.Linear) else None


class Arguments(arguments.Arguments):
    """Arguments of this network."""

    widths: list[arguments.Channels] = pydantic.Field(
        [64, 32],
        min_length=1,
        max_length=8,
        description="Units of each layer; the last ones are the embedding, without activation.",
    )


def build(accepted: Arguments, sizes: interface.Sizes) -> MLP:
    """Build a network with fresh weights."""
    pixels = sizes.channels * sizes.height * sizes.width
    return MLP(pixels=pixels, widths=accepted.widths, classes=sizes.classes)

"""A backbone with another network's classifier on its last map: the student of SimKD.

A projector brings the backbone's last map to the width of the network that the classifier was
trained with. The backbone keeps its own classifier, so that it is the network that its reference
names, but it is not used. Source: Chen et al., CVPR 2022, arXiv:2203.14001, section 3.2.
"""

from collections.abc import Collection
from typing import Any

import pydantic
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.networks import interface, shapes
from workers.distill.networks.zoo import arguments

REFERENCE = "retort/reused_classifier"
MOST_CHANNELS = 16_384
LARGEST_SIDE = 4_096


class Projector(nn.Module):
    """Average a map to at most a size, then three convolutions, each with batch norm and ReLU."""

    def __init__(self, channels: int, wanted: int, *, factor: int, size: tuple[int, int]) -> None:
        super().__init__()
        middle = max(1, wanted // factor)
        self.size = size
        self.layers = nn.Sequential(
            *_convolution(channels, middle, 1),
            *_convolution(middle, middle, 3),
            *_convolution(middle, wanted, 1),
        )

    def forward(self, maps: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        """Return the projected maps."""
        height, width = maps.shape[2:]
        size = (min(height, self.size[0]), min(width, self.size[1]))
        if size != (height, width):
            maps = F.adaptive_avg_pool2d(maps, size)
        projected: Tensor = self.layers(maps)
        return projected


class ReusedClassifier(interface.Network):
    """A backbone, a projector and another network's classifier."""

    def __init__(
        self, backbone: interface.Network, projector: Projector, classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.classifier = classifier
        self.stages_info = backbone.stages_info
        self.pooled_width = classifier.in_features

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the logits."""
        return self.observe(images).logits

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return the backbone's features, with the projected last map and its logits."""
        features = self.backbone.observe(images)
        if features.final is None:
            raise ValueError(f"the backbone {self.backbone.reference} shows no last map")
        final = self.projector(features.final)
        pooled = final.mean(dim=(2, 3))
        return interface.Features(
            logits=self.classifier(pooled),
            pooled=pooled,
            stem=features.stem,
            stages=features.stages,
            pre_activations=features.pre_activations,
            final=final,
        )

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the reused classifier, not the backbone's own; None where it was taken out."""
        return self.classifier if isinstance(self.classifier, nn.Linear) else None

    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """Return the backbone's norms."""
        return self.backbone.stage_norms()

    def enable_features(self, wanted: Collection[str]) -> None:
        """Enable features of the backbone."""
        self.backbone.enable_features(wanted)


class Backbone(arguments.Arguments):
    """Which network the maps come from."""

    network: str = pydantic.Field(
        "retort/resnet8x4", min_length=1, max_length=200, description="Reference of a network."
    )
    arguments: dict[str, Any] = pydantic.Field(  # Any: checked by the backbone's own schema
        {}, description="Keyword arguments of that network."
    )


class Arguments(arguments.Arguments):
    """Arguments of the network; as they stand, those of the paper's resnet32x4 -> resnet8x4."""

    backbone: Backbone = pydantic.Field(
        Backbone(), description="The network whose last map is projected."
    )
    channels: int = pydantic.Field(
        256, ge=1, le=MOST_CHANNELS, description="Width that the classifier was trained with."
    )
    factor: int = pydantic.Field(
        2, ge=1, le=64, description="By how much the projector is narrower in the middle."
    )
    height: int = pydantic.Field(
        8, ge=1, le=LARGEST_SIDE, description="Largest height of the projected map, in pixels."
    )
    width: int = pydantic.Field(
        8, ge=1, le=LARGEST_SIDE, description="Largest width of the projected map, in pixels."
    )


def build(accepted: Arguments, backbone: interface.Network) -> ReusedClassifier:
    """Build the network around a backbone, with fresh weights.

    Raises `UnknownNetwork` where the backbone has no last map, or is such a network itself.
    """
    final = None if isinstance(backbone, ReusedClassifier) else shapes.measure(backbone).final
    if final is None:
        raise errors.UnknownNetwork(
            f"{REFERENCE} cannot project the last map of {backbone.reference}: it shows none of "
            "its own; choose another backbone",
            network=REFERENCE,
            argument="backbone",
        )
    projector = Projector(
        final[0],
        accepted.channels,
        factor=accepted.factor,
        size=(accepted.height, accepted.width),
    )
    return ReusedClassifier(backbone, projector, nn.Linear(accepted.channels, backbone.classes))


def join(
    backbone: interface.Network,
    projector: Projector,
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
    *,
    factor: int,
) -> ReusedClassifier:
    """Return the network of trained parts; it shares their weights."""
    classes, channels = weight.shape
    classifier = nn.Linear(channels, classes, device="meta")
    classifier.weight = nn.Parameter(weight, requires_grad=False)
    classifier.bias = nn.Parameter(bias, requires_grad=False)
    joined = ReusedClassifier(backbone, projector, classifier)
    joined.reference = REFERENCE
    joined.arguments = {
        "backbone": {"network": backbone.reference, "arguments": dict(backbone.arguments)},
        "channels": channels,
        "factor": factor,
        "height": projector.size[0],
        "width": projector.size[1],
    }
    joined.classes, joined.image_shape = classes, backbone.image_shape
    return joined


def _convolution(channels: int, wanted: int, kernel: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, wanted, kernel, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(wanted), nn.ReLU()

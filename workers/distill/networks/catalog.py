"""Which networks exist, and how one is built from a reference such as `retort/resnet20`.

Own networks stand in one explicit table. `timm/<name>` and `torchvision/<name>` are looked up in
those libraries, which are imported only when asked for.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic
import torch

from workers.distill import errors
from workers.distill.networks import foreign as foreign_networks
from workers.distill.networks import interface, resnet

Accepted = TypeVar("Accepted", bound=pydantic.BaseModel)

MOST_PARAMETERS = 2_000_000_000
SMALLEST_SIDE = 8
"""Below this side the last stage of our networks would be a single pixel."""


@dataclass(frozen=True)
class ResNetEntry:
    """One line of the table: a depth, its size at 100 classes and 3 channels, its arguments."""

    depth: int
    parameters_100: int
    arguments: type[resnet.Arguments] = resnet.Arguments

    @property
    def blocks(self) -> int:
        """Return the number of blocks in a stage: depth is six times that, plus two."""
        return (self.depth - 2) // 6


NETWORKS: dict[str, ResNetEntry] = {
    "retort/resnet8": ResNetEntry(8, 83_892),
    "retort/resnet14": ResNetEntry(14, 181_108),
    "retort/resnet20": ResNetEntry(20, 278_324),
    "retort/resnet32": ResNetEntry(32, 472_756),
    "retort/resnet44": ResNetEntry(44, 667_188),
    "retort/resnet56": ResNetEntry(56, 861_620),
    "retort/resnet110": ResNetEntry(110, 1_736_564),
    "retort/resnet8x4": ResNetEntry(8, 1_233_540, resnet.WideArguments),
    "retort/resnet32x4": ResNetEntry(32, 7_433_860, resnet.WideArguments),
}


def build(
    reference: str,
    *,
    classes: int,
    channels: int,
    height: int,
    width: int,
    arguments: Mapping[str, Any],  # Any: JSON values, checked against the network's schema
) -> interface.Network:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises `UnknownNetwork` when the name is unknown, an argument is not accepted, or the network
    cannot be built for this size of image.
    """
    network = _built(
        reference,
        classes=classes,
        channels=channels,
        height=height,
        width=width,
        arguments=arguments,
    )
    network.reference, network.arguments = reference, dict(arguments)
    network.classes, network.image_shape = classes, (channels, height, width)
    return network


def _built(
    reference: str,
    *,
    classes: int,
    channels: int,
    height: int,
    width: int,
    arguments: Mapping[str, Any],  # Any: as in `build`
) -> interface.Network:
    family, _, name = reference.partition("/")
    if min(classes, channels, height, width) < 1:
        raise errors.UnknownNetwork(
            f"classes, channels, height and width must be positive, got {classes}, {channels}, "
            f"{height}, {width}",
            network=reference,
        )
    if family in foreign_networks.LIBRARIES and name:
        return foreign_networks.build(
            family,
            name,
            classes=classes,
            channels=channels,
            height=height,
            width=width,
            arguments=_checked(reference, arguments, foreign_networks.Arguments),
        )
    entry = NETWORKS.get(reference)
    if entry is None:
        raise _unknown(reference)
    if min(height, width) < SMALLEST_SIDE:
        raise errors.UnknownNetwork(
            f"{reference} needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, "
            f"got {height}x{width}",
            network=reference,
        )
    accepted = _checked(reference, arguments, entry.arguments)
    if arguments:
        # Counted without memory: a few digits in an argument can ask for all that a machine has.
        with torch.device("meta"):
            _check_size(reference, _resnet(entry, accepted, classes, channels))
    return _resnet(entry, accepted, classes, channels)


def describe() -> list[dict[str, Any]]:  # Any: JSON for the catalog
    """Return the table of our own networks as the catalog publishes it."""
    return [
        {
            "name": name,
            "family": "resnet",
            "parameters_100": entry.parameters_100,
            "arguments_schema": entry.arguments.model_json_schema(),
            "description": f"Residual network for small images: {entry.depth} layers, "
            f"stem and stages of {', '.join(map(str, entry.arguments().widths))} channels.",
        }
        for name, entry in NETWORKS.items()
    ]


def foreign() -> dict[str, list[str]]:
    """Return the classifiers that timm and torchvision offer, sorted by name."""
    return {library: foreign_networks.names(library) for library in foreign_networks.LIBRARIES}


def _resnet(
    entry: ResNetEntry, arguments: resnet.Arguments, classes: int, channels: int
) -> resnet.ResNet:
    return resnet.ResNet(
        blocks=entry.blocks, widths=arguments.widths, classes=classes, channels=channels
    )


def _check_size(reference: str, network: interface.Network) -> None:
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > MOST_PARAMETERS:
        raise errors.UnknownNetwork(
            f"{reference} with these arguments has {count} parameters, more than {MOST_PARAMETERS}",
            network=reference,
        )


def _unknown(reference: str) -> errors.UnknownNetwork:
    candidates = [*NETWORKS, *(name.partition("/")[2] for name in NETWORKS)]
    close = difflib.get_close_matches(reference, candidates, n=1, cutoff=0.5)
    if close:
        nearest = close[0] if "/" in close[0] else f"retort/{close[0]}"
        advice = f"did you mean {nearest!r}?"
    else:
        advice = "names start with 'retort/', 'timm/' or 'torchvision/'"
    return errors.UnknownNetwork(f"there is no network {reference!r}; {advice}", network=reference)


def _checked(reference: str, arguments: Mapping[str, Any], accepted: type[Accepted]) -> Accepted:
    """Return the arguments, or name the first that the network does not accept."""
    try:
        return accepted.model_validate(dict(arguments))
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "extra_forbidden":
            reason = f"has no argument {name!r}; it accepts {', '.join(accepted.model_fields)}"
        else:
            reason = f"does not accept argument {name!r}: {fault['msg']}"
        raise errors.UnknownNetwork(
            f"{reference} {reason}", network=reference, argument=name
        ) from error

"""Shapes of a network's features, measured by one forward pass of a blank image.

Methods build their adapters from them at the start of a job, so that networks that do not fit are
refused by name, not by a size mismatch in the first step.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.distill.networks import interface
from workers.distill.networks.interface import Network

Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


@dataclass(frozen=True)
class Locations:
    """Where a dense head classifies: sizes of its levels, finest first, and boxes per location."""

    level_sizes: tuple[tuple[int, int], ...]
    boxes_per_location: tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """Shapes of all features of a network, without the batch dimension."""

    pooled: int
    stem: Shape | None
    stages: tuple[Shape, ...]
    pre_activations: tuple[Shape, ...]
    final: Shape | None
    locations: Locations | None = None
    has_proposals: bool = False
    """Of detectors: the one or the other."""
    distances: int | None = None
    """How many distances a dense head has a distribution over; None: it has none."""
    head_convs: int | None = None
    """Convolutions of each branch of a dense head before its last layer; None: no such branches."""


@torch.no_grad()
def measure(network: Network) -> Shapes:
    """Run a blank image in evaluation mode; the network's mode is restored."""
    if not network.can_run:
        return Shapes(pooled=0, stem=None, stages=(), pre_activations=(), final=None)
    place = next(itertools.chain(network.parameters(), network.buffers())).device
    images = torch.zeros((1, *network.image_shape), device=place)
    was_training = network.training
    network.eval()
    try:
        features = network.observe(images)
    finally:
        network.train(was_training)
    detector, locations, distances, head_convs = features.detector, None, None, None
    if isinstance(detector, interface.DenseDetectorOutput):
        locations = Locations(detector.level_sizes, detector.boxes_per_location)
        if detector.box_distributions is not None:
            distances = detector.box_distributions.shape[3]
    if isinstance(detector, interface.BranchedDetectorOutput):
        head_convs = detector.head_convs
    return Shapes(
        pooled=features.pooled.shape[1],
        stem=_shape(features.stem),
        stages=tuple(_map_shape(stage) for stage in features.stages),
        pre_activations=tuple(_map_shape(stage) for stage in features.pre_activations),
        final=_shape(features.final),
        locations=locations,
        has_proposals=isinstance(detector, interface.TwoStageDetectorOutput),
        distances=distances,
        head_convs=head_convs,
    )


def _shape(output: Tensor | None) -> Shape | None:
    return None if output is None else _map_shape(output)


def _map_shape(output: Tensor) -> Shape:
    return (output.shape[1], output.shape[2], output.shape[3])

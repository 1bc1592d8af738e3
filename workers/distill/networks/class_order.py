"""Puts a network's logits in another order of its classes, in its weights.

So the network itself answers in the new order, wherever it is used: in losses, in caches, when it
synthesizes or is evaluated. Which of its tensors have a side for classes is seen by building it
once more with another number of them; whether the result is right, by running it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.networks import catalog, interface
from workers.distill.networks.external import observation

TOLERANCE = 1e-4
"""Two ways to add the same numbers in float32 agree so far, relative to the largest."""
PER_CLASS = "bbox_pred"
"""Layers of detectors with a box for each class: their numbers lie class by class."""


@torch.no_grad()
def reorder(network: interface.Network, order: Sequence[int]) -> None:
    """Make a network's logit i what was its logit `order[i]`, in place.

    Raises `IncompatibleNetworks` where its weights do not tell how.
    """
    if isinstance(network, interface.FileNetwork):
        network.reorder_classes(order)
        return
    was_training = network.training
    network.eval()
    images = observation.picture(*network.image_shape)
    before = _answers(network, images)
    expected = [_reordered(answer, order) for answer in before]
    sizes = _class_sides(network)
    for key, tensor in network.state_dict().items():
        for side, (per_class, extra) in sizes.get(key, {}).items():
            places = _places(key, order, per_class, extra)
            index = torch.tensor(places, device=tensor.device)
            tensor.copy_(tensor.index_select(side, index))
    after = _answers(network, images)
    network.train(was_training)
    if not all(_is_close(*pair) for pair in zip(after, expected, strict=True)):
        raise errors.IncompatibleNetworks(
            f"the logits of {network.reference} cannot be put in another order of the classes; "
            "register the teacher with its classes in the order of the data set",
            network=network.reference,
        )


def _class_sides(network: interface.Network) -> dict[str, dict[int, tuple[int, int]]]:
    """Return for each tensor the sides that count classes: how many per class, and how many more.

    A classifier's weight [K, D] has (1, 0) at side 0, that of a detector with A anchors and a
    background (A, A).
    """
    channels, height, width = network.image_shape
    larger = catalog.build(
        network.reference,
        classes=network.classes + 1,
        channels=channels,
        height=height,
        width=width,
        arguments=network.arguments,
    ).state_dict()
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for key, tensor in network.state_dict().items():
        sides = zip(tensor.shape, larger[key].shape, strict=True)
        for side, (own, other) in enumerate(sides):
            if own != other:
                per_class = other - own
                extra = own - per_class * network.classes
                found.setdefault(key, {})[side] = (per_class, extra)
    return found


def _places(key: str, order: Sequence[int], per_class: int, extra: int) -> list[int]:
    """Return from where each number along a side comes.

    A background, where there is one, is counted first, as torchvision does.
    """
    background = extra // per_class
    classes = [*range(background), *(background + place for place in order)]
    if PER_CLASS in key:
        return [place * per_class + part for place in classes for part in range(per_class)]
    count = len(classes)
    return [anchor * count + place for anchor in range(per_class) for place in classes]


def _answers(network: interface.Network, images: Tensor) -> list[Tensor]:
    """Return what a network says of images, with its classes along side 1.

    Of a detector that classifies proposals that is what it says of some fixed ones.
    """
    features = network.observe(images)
    detector = features.detector
    if not isinstance(detector, interface.TwoStageDetectorOutput):
        return [features.logits.clone()]
    height, width = detector.image_size
    boxes = torch.tensor(
        [[0.0, 0.0, width / 2, height / 2], [width / 4, height / 4, width, height]],
        device=images.device,
    )
    labels = torch.zeros(len(boxes), dtype=torch.int64, device=images.device)
    proposals = interface.Proposals((boxes,), labels, (height, width))
    return [detector.roi_logits(proposals).clone()]


def _reordered(answer: Tensor, order: Sequence[int]) -> Tensor:
    rest = range(len(order), answer.shape[1])  # a background, last
    return answer.index_select(1, torch.tensor([*order, *rest], device=answer.device))


def _is_close(answer: Tensor, expected: Tensor) -> bool:
    largest = float(expected.abs().max()) or 1.0
    return float((answer - expected).abs().max()) <= TOLERANCE * largest

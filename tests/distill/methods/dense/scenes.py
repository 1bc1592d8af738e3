"""Small made-up scenes for tests of dense methods: the guide's maps, masks, tiny segmenters."""

from typing import Any

import torch

from tests.distill.golden import DENSE
from tests.distill.methods import scenes
from workers.distill.data import boxes, dataset
from workers.distill.data.types import Batch
from workers.distill.methods import catalog
from workers.distill.methods.base import Terms
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network

SHAPE = (2, 3, 2, 2)
PICTURES = scenes.pictures(2, (32, 32))
MASKS = DENSE.inputs("pixel_kd_2x3x2x2")["labels"]


def segmenter(seed: int, *widths: int, side: int = 8) -> Network:
    """Return a tiny segmenter of 3 classes with logits at full resolution."""
    torch.manual_seed(seed)
    return networks.build(
        "retort/fcn",
        classes=3,
        channels=1,
        height=side,
        width=side,
        arguments={"widths": list(widths)},
    )


def detector(
    seed: int,
    reference: str = "retort/fcos",
    *,
    size: tuple[int, int] = (32, 32),
    **arguments: Any,
) -> Network:
    """Return a tiny detector of 3 classes whose pyramid has maps at strides 4 and 8."""
    torch.manual_seed(seed)
    small = {"width": 4, "blocks": 1, "fpn_channels": 32, "detections_per_image": 10}
    if reference != "retort/fasterrcnn":
        small["head_convs"] = 1
    else:
        small.update(representation_size=16, box_batch_size_per_image=8)
    return networks.build(
        reference,
        classes=3,
        channels=1,
        height=size[0],
        width=size[1],
        arguments={**small, **arguments},
    )


def boxes_batch(*images: list[list[float]], size: tuple[int, int] = (32, 32)) -> Batch:
    """Return a batch of black pictures with boxes of class, x1, y1, x2, y2; by default of two."""
    rows = images or ([[0, 4, 4, 20, 24], [2, 12, 14, 30, 30]], [])
    table = boxes.padded(
        [torch.tensor([[*row, 0, 0] for row in each]).float().view(-1, 7) for each in rows],
        most=max(1, *map(len, rows)),
    )
    beside = torch.tensor([*size, 1.0]).expand(*table.shape[:2], 3)
    labels = torch.cat([table, beside], dim=-1)
    black = torch.zeros(len(rows), 1, *size, dtype=torch.uint8)
    return Batch(images=black, labels=labels, index=torch.arange(len(rows)))


def batch(masks: Any, class_weights: torch.Tensor | None = None) -> Batch:
    """Return a batch of black pictures with these masks, and what their classes count."""
    labels = torch.as_tensor(masks)
    images = torch.zeros(len(labels), 1, *labels.shape[1:], dtype=torch.uint8)
    index = torch.arange(len(labels))
    return Batch(images=images, labels=labels, index=index, class_weights=class_weights)


def terms(
    choice: dict[str, Any],
    student: torch.Tensor,
    teacher: torch.Tensor,
    masks: Any = MASKS,
    *,
    finals: tuple[torch.Tensor, torch.Tensor] | None = None,
    class_weights: torch.Tensor | None = None,
) -> Terms:
    """Return a method's terms for these logits, and last maps of equally many channels."""
    method = catalog.build(choice, segmenter(1, 4), segmenter(2, 4))
    ours, theirs = finals or (student, teacher)
    return method.terms(
        scenes.features(student, final=ours),
        scenes.features(teacher, final=theirs),
        batch(masks, class_weights),
        scenes.MOMENT,
    )


def without_labels(masks: Any = MASKS) -> torch.Tensor:
    """Return masks of the same shape in which no pixel has a class."""
    return torch.full_like(torch.as_tensor(masks), dataset.IGNORE_INDEX)


def frozen(network: Network) -> Network:
    """Return the network as a teacher."""
    return network.eval().requires_grad_(False)


def detection_terms(choice: dict[str, Any], student: Network, teacher: Network) -> Terms:
    """Return a method's terms for two images with the boxes of `boxes_batch`."""
    method = catalog.build(choice, student, teacher)
    student_out, teacher_out = scenes.observed(student, teacher, PICTURES)
    return method.terms(student_out, teacher_out, boxes_batch(), scenes.MOMENT)

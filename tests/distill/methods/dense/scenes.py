"""Small made-up scenes for tests of dense methods: the guide's maps, masks, tiny segmenters."""

from typing import Any

import torch

from tests.distill.golden import DENSE
from tests.distill.methods import scenes
from workers.distill.data import dataset
from workers.distill.data.types import Batch
from workers.distill.methods import catalog
from workers.distill.methods.base import Terms
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network

SHAPE = (2, 3, 2, 2)
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


def batch(masks: Any) -> Batch:
    """Return a batch of black pictures with these masks."""
    labels = torch.as_tensor(masks)
    images = torch.zeros(len(labels), 1, *labels.shape[1:], dtype=torch.uint8)
    return Batch(images=images, labels=labels, index=torch.arange(len(labels)))


def terms(
    choice: dict[str, Any],
    student: torch.Tensor,
    teacher: torch.Tensor,
    masks: Any = MASKS,
    *,
    finals: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Terms:
    """Return a method's terms for these logits, and last maps of equally many channels."""
    method = catalog.build(choice, segmenter(1, 4), segmenter(2, 4))
    ours, theirs = finals or (student, teacher)
    return method.terms(
        scenes.features(student, final=ours),
        scenes.features(teacher, final=theirs),
        batch(masks),
        scenes.MOMENT,
    )


def without_labels(masks: Any = MASKS) -> torch.Tensor:
    """Return masks of the same shape in which no pixel has a class."""
    return torch.full_like(torch.as_tensor(masks), dataset.IGNORE_INDEX)

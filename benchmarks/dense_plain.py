"""Detection and segmentation as the public repositories train them: what Retort is compared with.

The loops are torchvision's reference scripts as publicly described: a data loader of two worker
processes that makes a tensor of each PIL image, torchvision's own model with its own transform,
the losses it returns summed up, and metrics read with `.item()` at every step. Distillation is
added as to MMRazor's detectors: the teacher's backbone and pyramid alone, compared level by level.

The losses are written as in their authors' repositories, and use nothing of the engine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from PIL import Image
from torch import Tensor, nn
from torch.utils import data as loading
from torchvision.models.detection.fcos import FCOS
from torchvision.transforms import functional as pictures

from workers.distill.config.job import Input
from workers.distill.data import boxes, dataset

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Compares the student's map [N, C, H, W] with the teacher's."""
Example: TypeAlias = tuple[Tensor, Any]
"""A picture as a tensor, and its target."""

BATCH = 8
LOADER_PROCESSES = 2
LEARNING_RATE, WEIGHT_DECAY, CLIP = 2e-3, 1e-4, 5.0
"""Of the recipe `small_dense`."""
PATCH = 16
CWD_TEMPERATURE = 1.0


# -- losses ----------------------------------------------------------------------------------------


def mimic(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference over the variance of the teacher's map."""
    return F.mse_loss(student, teacher) / teacher.var(correction=0)


def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of each channel's z-scores."""

    def norm(maps: Tensor) -> Tensor:
        images, channels, height, width = maps.shape
        rows = maps.permute(1, 0, 2, 3).reshape(channels, -1)
        rows = (rows - rows.mean(-1, keepdim=True)) / (rows.std(-1, keepdim=True) + 1e-6)
        return rows.reshape(channels, images, height, width).permute(1, 0, 2, 3)

    return F.mse_loss(norm(student), norm(teacher)) / 2


def cwd(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence of each channel's softened map, averaged over images and channels."""
    images, channels, height, width = student.shape
    rows = (images * channels, height * width)
    one, other = student.reshape(rows), teacher.reshape(rows)
    target = F.softmax(other / CWD_TEMPERATURE, dim=1)
    log = F.log_softmax(other / CWD_TEMPERATURE, dim=1)
    gap = target * log - target * F.log_softmax(one / CWD_TEMPERATURE, dim=1)
    return gap.sum() * CWD_TEMPERATURE**2 / (images * channels)


def pcka(student: Tensor, teacher: Tensor, *, transposed: bool = False) -> Tensor:
    """Return 1 - CKA of patches, one channel after the other (Klayand/PCKA, as described).

    `transposed` compares the features of patches with each other instead of patches.
    """
    height, width = student.shape[2:]
    # The authors' side, or less for maps that have too few such patches.
    side = min(max(min(height, width) // 4, 1), PATCH)
    size = (math.ceil(height / side) * side, math.ceil(width / side) * side)

    def rows_of(maps: Tensor) -> Tensor:
        images, channels = maps.shape[:2]
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        cut = maps.unfold(2, side, side).unfold(3, side, side)
        cut = cut.reshape(images, channels, -1, side * side)
        return cut.permute(1, 2, 0, 3).reshape(channels, cut.shape[2], -1)

    similarities = []
    for one, other in zip(rows_of(student), rows_of(teacher), strict=True):
        if transposed:
            one, other = one.T, other.T
        kernel, target = one @ one.T, other @ other.T
        similarities.append((kernel * target).sum() / (kernel.norm() * target.norm()))
    return 1 - torch.stack(similarities).mean()


def pcka_transposed(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the second term of PCKA, which the authors switch on for two-stage detectors."""
    return pcka(student, teacher, transposed=True)


LOSSES: dict[str, Loss] = {
    "pcka": pcka,
    "pcka_transposed": pcka_transposed,
    "cwd": cwd,
    "pkd": pkd,
    "mimic": mimic,
}
METHODS: dict[str, Loss] = {"cwd": cwd, "densepcka": pcka, "mimic": mimic, "pkd": pkd}
"""The loss at each level of a pyramid, by the engine's name of its method."""


# -- loops -----------------------------------------------------------------------------------------


class BoxPictures(loading.Dataset[Example]):
    """Pictures with their boxes, as torchvision's reference turns COCO's annotations."""

    def __init__(self, folder: Path) -> None:
        train = dataset.load(folder / "dataset").split("train")
        self._pixels = train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._rows = [rows[boxes.is_ordinary(rows)] for rows in train.labels]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._rows)

    def __getitem__(self, place: int) -> Example:
        """Return a picture in 0..1 and its target."""
        rows = self._rows[place]
        target = {
            "boxes": rows[:, boxes.X1 : boxes.Y2 + 1].clone(),
            "labels": rows[:, boxes.CLASS].long(),
            "image_id": torch.tensor([place]),
            "area": rows[:, boxes.AREA].clone(),
            "iscrowd": torch.zeros(len(rows), dtype=torch.int64),
        }
        return pictures.to_tensor(Image.fromarray(self._pixels[place])), target


class MaskPictures(loading.Dataset[Example]):
    """Pictures with their masks."""

    def __init__(self, folder: Path) -> None:
        stored = dataset.load(folder / "dataset")
        train = stored.split("train")
        self._pixels = train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._masks = train.labels.numpy()
        self._moments = (stored.record.input.mean, stored.record.input.std)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._masks)

    def __getitem__(self, place: int) -> Example:
        """Return a normalised picture and its mask."""
        picture = pictures.to_tensor(Image.fromarray(self._pixels[place]))
        mask = torch.from_numpy(self._masks[place]).long()
        return pictures.normalize(picture, *self._moments), mask


def collate(examples: Sequence[Example]) -> tuple[tuple[Any, ...], ...]:
    """Return lists of images and of targets, as torchvision's detectors take them."""
    return tuple(zip(*examples, strict=True))


def detection_steps(
    student: FCOS, teacher: FCOS | None, loss: Loss | None, folder: Path
) -> Iterator[None]:
    """Train a detector; with a teacher, compare the maps of both pyramids by `loss`."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []
    student.backbone.register_forward_hook(
        lambda _module, given, maps: seen.append((given[0], maps))
    )
    loader = loading.DataLoader(
        BoxPictures(folder),
        batch_size=BATCH,
        shuffle=True,
        num_workers=LOADER_PROCESSES,
        collate_fn=collate,
    )
    student.train()
    totals: dict[str, float] = {}
    while True:
        for images, targets in loader:
            seen.clear()
            losses = student(list(images), [dict(target) for target in targets])
            if teacher is not None and loss is not None:
                given, maps = seen[0]
                with torch.no_grad():
                    wanted = teacher.backbone(given)
                losses["distillation"] = torch.stack(
                    [loss(maps[name], wanted[name]) for name in maps]
                ).sum()
            total = torch.stack(list(losses.values())).sum()
            step(student, optimizer, total)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item()
            yield


def segmentation_steps(student: nn.Module, folder: Path) -> Iterator[None]:
    """Train a segmenter, which returns logits, or torchvision's dictionary of them."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loader = loading.DataLoader(
        MaskPictures(folder), batch_size=BATCH, shuffle=True, num_workers=LOADER_PROCESSES
    )
    student.train()
    losses = 0.0
    while True:
        for images, masks in loader:
            output = student(images)
            logits = output["out"] if isinstance(output, dict) else output
            loss = F.cross_entropy(logits, masks, ignore_index=dataset.IGNORE_INDEX)
            step(student, optimizer, loss)
            losses += loss.item()
            yield


def step(student: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Check the loss, as the reference does, and move the weights."""
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"the loss is {loss.item()}")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
    torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
    optimizer.step()


def torchvision_fcos(built: Any, size: Input, classes: int) -> FCOS:
    """Return torchvision's own detector, with its own transform, around the parts of one of ours.

    `built` is an own FCOS of the engine: the same backbone, anchors and head.
    """
    return FCOS(
        built.backbone,
        classes,
        min_size=min(size.height, size.width),
        max_size=max(size.height, size.width),
        image_mean=size.mean,
        image_std=size.std,
        anchor_generator=built.anchor_generator,
        head=built.head,
        score_thresh=built.score_thresh,
        nms_thresh=built.nms_thresh,
        detections_per_img=built.detections_per_img,
    )

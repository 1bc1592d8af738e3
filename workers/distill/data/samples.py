"""A sample sheet: a few small pictures of each class of a data set, with boxes and masks."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, Shaped, UInt8
from PIL import Image
from torch import Tensor

from workers.distill.config import samples as bounds
from workers.distill.data import boxes, dataset

SPLIT = "train"
SMALL_SIDE = 40
"""Pictures up to it are sent as they are; JPEG would spoil so few pixels."""
JPEG_QUALITY = 85

Json = dict[str, Any]
Places = dict[int, list[int]]
"""Numbers of images by the number of a class that they show."""


def sheet(folder: Path) -> Json:
    """Return the sheet of a prepared data set: its classes, each with its pictures.

    Raises `BadDataset` when the training split is not as recorded.
    """
    stored = dataset.load(folder)
    split, classes = stored.open_split(SPLIT), stored.record.classes
    shown = len(classes[: bounds.MOST_CLASSES])
    notes = []
    if shown < len(classes):
        notes.append(f"The first {shown} of {len(classes)} classes are shown.")
    looked_at = spread(len(split.images), bounds.LOOKED_AT)
    if len(looked_at) < len(split.images) and stored.record.task != "classification":
        notes.append(
            f"{len(looked_at)} of {len(split.images)} images were searched for each class."
        )
    find, describe = TASKS[stored.record.task]
    places = find(split.labels, looked_at, max(1, shown))
    most = bounds.pictures_of_class(shown)
    groups = []
    for number in range(shown) if shown else (dataset.UNLABELLED,):
        found = places.get(number, [])
        chosen = [found[place] for place in spread(len(found), most)]
        # Sliced, since pictures that are stored as their files are decoded so.
        images = [split.images[index : index + 1][0] for index in chosen]
        groups.append(
            {
                "class": classes[number] if shown else None,
                "pictures": [
                    {
                        "index": index,
                        **picture(image),
                        **describe(split.labels[index], image, classes),
                    }
                    for index, image in zip(chosen, images, strict=True)
                ],
            }
        )
    channels = int(split.images.shape[1])
    if channels not in (1, 3):
        notes.append(f"Of {channels} channels, the first is shown in grey.")
    return {"split": SPLIT, "task": stored.record.task, "classes": groups, "notes": notes}


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread, beginning with 0."""
    if count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]


def picture(image: UInt8[Tensor, "c h w"]) -> Json:
    """Return an image as a small file in base64, and its own size."""
    height, width = image.shape[1:]
    drawn = Image.fromarray(_grey_or_colour(image).contiguous().numpy())
    drawn.thumbnail((bounds.LONGEST_SIDE, bounds.LONGEST_SIDE))
    is_small = max(drawn.size) <= SMALL_SIDE
    kind = "PNG" if is_small else "JPEG"
    return {
        "content": _encoded(drawn, kind),
        "media_type": f"image/{kind.lower()}",
        "height": height,
        "width": width,
    }


def _grey_or_colour(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "h w *c"]:
    return image.permute(1, 2, 0) if len(image) == 3 else image[0]


def _encoded(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    return base64.b64encode(file.getvalue()).decode()


def _of_labels(labels: Shaped[Tensor, "N *T"], _looked_at: Sequence[int], classes: int) -> Places:
    """Return the images of each class; those without a label are of the class `UNLABELLED`."""
    return {
        number: torch.nonzero(labels == number).flatten().tolist()
        for number in (*range(classes), dataset.UNLABELLED)
    }


def _of_boxes(labels: Shaped[Tensor, "N *T"], looked_at: Sequence[int], classes: int) -> Places:
    found: Places = {number: [] for number in range(classes)}
    for index in looked_at:
        rows = labels[index]
        for number in np.unique(
            rows[boxes.is_ordinary(rows)][:, boxes.CLASS].int().numpy()
        ).tolist():
            if number in found:
                found[number].append(index)
    return found


def _of_masks(labels: Shaped[Tensor, "N *T"], looked_at: Sequence[int], classes: int) -> Places:
    found: Places = {number: [] for number in range(classes)}
    for index in looked_at:
        for number in np.unique(labels[index].numpy()).tolist():
            if number in found:
                found[number].append(index)
    return found


def _nothing(*_: object) -> Json:
    return {}


def _boxes(rows: Shaped[Tensor, "*T"], image: Tensor, classes: Sequence[str]) -> Json:
    """Return the boxes of an image, with corners as shares 0..1 of its sides."""
    height, width = image.shape[1:]
    return {
        "boxes": [
            {
                "class": classes[int(row[boxes.CLASS])],
                "box": [
                    round(row[boxes.X1] / width, 5),
                    round(row[boxes.Y1] / height, 5),
                    round(row[boxes.X2] / width, 5),
                    round(row[boxes.Y2] / height, 5),
                ],
                "is_ordinary": row[boxes.FLAG] == boxes.ORDINARY,
            }
            for row in rows[boxes.is_box(rows)].tolist()
        ]
    }


def _mask(mask: Integer[Tensor, "*T"], _image: Tensor, _classes: Sequence[str]) -> Json:
    """Return the class numbers of an image's pixels as a grey PNG of the picture's size."""
    drawn = Image.fromarray(mask.to(torch.uint8).contiguous().numpy())
    # Thumbnails of numbers take the nearest: no mean of two classes is a third.
    drawn.thumbnail((bounds.LONGEST_SIDE, bounds.LONGEST_SIDE), Image.Resampling.NEAREST)
    return {"mask_png": _encoded(drawn, "PNG")}


# Of each task: which images show a class, and what an image shows beside its pixels.
TASKS: Mapping[str, tuple[Callable[..., Places], Callable[..., Json]]] = {
    "classification": (_of_labels, _nothing),
    "detection": (_of_boxes, _boxes),
    "segmentation": (_of_masks, _mask),
}

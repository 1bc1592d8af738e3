"""Small uploads of every format, made in memory, for drills that damage them."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from workers.distill.networks import catalog

INPUT = {"channels": 1, "height": 8, "width": 8}
_CLASSES = ("cat", "dog")
_BOX = """<annotation><filename>{name}</filename>
<size><width>8</width><height>8</height><depth>1</depth></size>
<object><name>{label}</name><bndbox>
<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


@dataclass(frozen=True)
class Sample:
    """A whole upload, and the request that accepts it."""

    name: str
    content: bytes
    request: Mapping[str, Any] = field(default_factory=dict)


def samples() -> list[Sample]:
    """Return an upload of each kind; all of them are accepted."""
    found = [
        Sample(f"pictures {kind}", _pictures(kind), _dataset())
        for kind in ("png", "jpeg", "webp", "tiff", "bmp", "gif")
    ]
    found += [Sample(f"tar {mode}", _tar(mode), _dataset()) for mode in ("", "gz", "bz2", "xz")]
    found += [
        Sample("npz", _npz(np.savez), _dataset()),
        Sample("npz compressed", _npz(np.savez_compressed), _dataset()),
        Sample("csv", _csv(), _dataset()),
        Sample("idx", _idx(), _dataset()),
        Sample("cifar", _cifar(), _dataset()),
        Sample("parquet", _parquet(), _dataset()),
        Sample("coco", _coco(), _dataset("detection")),
        Sample("voc", _voc(), _dataset("detection")),
        Sample("yolo", _yolo(), _dataset("detection")),
        Sample("masks", _masks(), _dataset("segmentation")),
    ]
    torch.manual_seed(0)
    state = catalog.build(
        "retort/resnet8", classes=10, channels=1, height=8, width=8, arguments={}
    ).state_dict()
    wrapped = {"model": state, "epoch": 3, "rates": [0.1, 0.01]}
    found += [
        Sample("safetensors", safetensors.torch.save(state), _model()),
        Sample("torch", _torch(wrapped, is_zip=True), _model()),
        Sample("legacy torch", _torch(wrapped, is_zip=False), _model()),
    ]
    return found


def _dataset(task: str = "classification") -> dict[str, Any]:
    hints = None if task == "classification" else INPUT
    return {"kind": "dataset", "format": "auto", "task": task, "input": hints}


def _model() -> dict[str, Any]:
    size = {**INPUT, "mean": [0.3], "std": [0.4]}
    return {"kind": "model", "network": "retort/resnet8", "classes": 10, "input": size}


def _picture(number: int, kind: str = "png", *, highest: int = 256) -> bytes:
    pixels = np.random.default_rng(number).integers(0, highest, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _zip(entries: Mapping[str, bytes | str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _pictures(kind: str) -> bytes:
    return _zip(
        {
            f"{split}/{label}/{number}.{kind}": _picture(number, kind)
            for split, first in (("train", 0), ("test", 3))
            for label in _CLASSES
            for number in range(first, first + 3)
        }
    )


def _tar(mode: str) -> bytes:
    file = io.BytesIO()
    # The mode's type is a list of literals.
    options: dict[str, Any] = {"mode": f"w:{mode}"}
    with tarfile.open(fileobj=file, **options) as archive:
        for label in _CLASSES:
            for number in range(3):
                content = _picture(number)
                entry = tarfile.TarInfo(f"{label}/{number}.png")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _npz(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, x_train=np.zeros((10, 8, 8), np.uint8), y_train=np.arange(10) % 3)
    return file.getvalue()


def _csv() -> bytes:
    lines = [f"{number}.png,{_CLASSES[number % 2]}" for number in range(6)]
    table = "\n".join(["file,label", *lines])
    return _zip({"labels.csv": table, **{f"{n}.png": _picture(n) for n in range(6)}})


def _idx() -> bytes:
    entries: dict[str, bytes | str] = {}
    for split, count in (("train", 8), ("t10k", 4)):
        sizes = b"".join(size.to_bytes(4, "big") for size in (count, 8, 8))
        entries[f"{split}-images-idx3-ubyte"] = b"\0\0\x08\x03" + sizes + bytes(count * 64)
        labels = bytes(number % 2 for number in range(count))
        entries[f"{split}-labels-idx1-ubyte"] = b"\0\0\x08\x01" + sizes[:4] + labels
    return _zip(entries)


def _cifar() -> bytes:
    batch = b"".join(bytes([label]) + bytes(3072) for label in range(10))
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    entries: dict[str, bytes | str] = {f"cifar-10-batches-bin/{name}.bin": batch for name in names}
    entries["cifar-10-batches-bin/batches.meta.txt"] = "\n".join("abcdefghij")
    return _zip(entries)


def _parquet() -> bytes:
    # Imported here: it starts a thread, and whoever forks has to do without.
    import pyarrow as pa
    from pyarrow import parquet

    images = [{"bytes": _picture(number), "path": f"{number}.png"} for number in range(8)]
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": images, "label": [n % 2 for n in range(8)]}), file)
    return file.getvalue()


def _coco() -> bytes:
    annotations = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": 8, "height": 8}
            for number in range(6)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + number % 2,
                "bbox": [1, 1, 4, 4],
                "area": 16,
                "iscrowd": 0,
            }
            for number in range(6)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    pictures = {f"train/{number}.png": _picture(number) for number in range(6)}
    return _zip({"annotations/instances_train.json": json.dumps(annotations), **pictures})


def _voc() -> bytes:
    entries: dict[str, bytes | str] = {}
    for number in range(6):
        entries[f"JPEGImages/{number}.png"] = _picture(number)
        label = _CLASSES[number % 2]
        entries[f"Annotations/{number}.xml"] = _BOX.format(name=f"{number}.png", label=label)
    entries["ImageSets/Main/train.txt"] = "0\n1\n2\n3"
    entries["ImageSets/Main/val.txt"] = "4\n5"
    return _zip(entries)


def _yolo() -> bytes:
    entries: dict[str, bytes | str] = {
        "data.yaml": "train: images/train\nval: images/val\nnames: [cat, dog]\n"
    }
    for split, first in (("train", 0), ("val", 4)):
        for number in range(first, first + 4):
            entries[f"images/{split}/{number}.png"] = _picture(number)
            entries[f"labels/{split}/{number}.txt"] = f"{number % 2} 0.5 0.5 0.2 0.2\n"
    return _zip(entries)


def _masks() -> bytes:
    entries: dict[str, bytes | str] = {"classes.txt": "cat\ndog\n"}
    for split, first in (("train", 0), ("val", 4)):
        for number in range(first, first + 4):
            entries[f"images/{split}/{number}.png"] = _picture(number)
            entries[f"masks/{split}/{number}.png"] = _picture(number, highest=2)
    return _zip(entries)


def _torch(content: Any, *, is_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()

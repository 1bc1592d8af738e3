"""Archives of pictures with one folder per class, in folders `train`, `val` and `test` or none.

Pictures that all have one size keep it; others are scaled and cropped to the size that the uploader
gives. How splits and classes are found stands in `class_tree.py`.
"""

from pathlib import Path

from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import archives, class_tree, classified, conversion
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload


def convert(
    upload: Upload, folder: Path, hints: conversion.InputHints, task: Task
) -> dataset.DatasetRecord:
    """Unpack an archive of class folders and write it as a prepared data set."""
    root = upload.root
    found = class_tree.find(root)
    return classified.write(
        folder,
        found.given,
        root,
        classes=found.classes,
        hints=hints,
        notes=[*upload.notes, *found.notes],
        task=task,
    )


FORMAT = Format(
    name="imagefolder",
    title="a zip or tar archive with a folder of pictures for each class",
    description=(
        "Each picture lies in a folder named for its class, such as `cat/1.png`; above them there "
        "may be `train`, `val` and `test`, under these names or like ones (`Training`, `test_set`, "
        "`seg_train`), and splits that are missing are taken from training. A file such as "
        "`val_annotations.txt` may list the classes of a split's pictures, as in Tiny-ImageNet. "
        "Folders that fit into no split and no class are left out, which the notes tell; the "
        "format `images` keeps a folder `unlabelled` as images without a label. Pictures of "
        "different sizes need `input.height` and `input.width`. Read are AVIF, BMP, GIF, HEIF, "
        "JPEG, PNG, PPM, TIFF and WebP, turned upright as their EXIF says; grey values of more "
        "than 8 bits are scaled by the range of the whole upload, or `input.max_value`."
    ),
    tasks=("classification",),
    suffixes=archives.SUFFIXES,
    recognise=lambda upload: class_tree.find(upload.root),
    convert=convert,
)

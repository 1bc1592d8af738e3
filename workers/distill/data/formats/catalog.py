"""Which upload formats exist: one line each."""

from typing import Any

from workers.distill import errors
from workers.distill.config import formats as rules
from workers.distill.config.job import Task
from workers.distill.data.formats import (
    cifar,
    coco,
    csv_table,
    file_kinds,
    idx,
    imagefolder,
    images,
    masks,
    npz,
    parquet,
    voc,
    yolo,
)
from workers.distill.data.formats.base import Format
from workers.distill.data.formats.upload import Upload

FORMATS: dict[str, Format] = {
    "imagefolder": imagefolder.FORMAT,
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "npz": npz.FORMAT,
    "csv": csv_table.FORMAT,
    "images": images.FORMAT,
    "idx": idx.FORMAT,
    "parquet": parquet.FORMAT,
    "coco": coco.FORMAT,
    "voc": voc.FORMAT,
    "yolo": yolo.FORMAT,
    "masks": masks.FORMAT,
}


def choose(name: str, task: Task, upload: Upload) -> Format:
    """Return the format of that name, or with `auto` that of the upload, which its notes tell.

    Raises `UploadRefused` if it cannot hold labels of `task`, or if not exactly one is recognised.
    """
    chosen = recognise(upload).name if name == rules.AUTO else name
    refusal = rules.refusal(chosen, task, {key: entry.tasks for key, entry in FORMATS.items()})
    if refusal is not None and name == rules.AUTO:
        able = " or ".join(FORMATS[chosen].tasks)
        refusal = (
            f"the upload was recognised as {chosen}, which holds no labels for {task}: register it "
            f"again with task {able}"
        )
    if refusal is not None:
        raise errors.UploadRefused(rules.CODE, refusal)
    return FORMATS[chosen]


def recognise(upload: Upload) -> Format:
    """Return the only format that an upload is laid out as, and note it.

    Raises `UploadRefused` with the names of all if there are several, and with the reasons of each
    if there is none.
    """
    if upload.is_archive:
        # What is wrong with the archive itself is no format's reason.
        upload.root  # noqa: B018
    reasons: dict[str, errors.UploadRefused] = {}
    found: list[Format] = []
    for name, entry in FORMATS.items():
        try:
            entry.recognise(upload)
            found.append(entry)
        except errors.UploadRefused as refusal:
            reasons[name] = refusal
    if not found:
        raise errors.UploadRefused(rules.CODE, _unrecognised(upload, reasons))
    if len(found) > 1:
        names = " and ".join(entry.name for entry in found)
        raise errors.UploadRefused(
            rules.CODE, f"the upload could be {names}: register it again with the format you mean"
        )
    upload.notes.append(f"the format was recognised: {found[0].name}")
    return found[0]


def _unrecognised(upload: Upload, reasons: dict[str, errors.UploadRefused]) -> str:
    """Return what an upload is, or why it has the layout of none of the formats."""
    message = "the upload has the layout of no known format"
    kind = None if upload.is_archive or upload.is_npz else file_kinds.kind_of(upload.path)
    if kind is not None:
        return f"{message}: it is {kind}; formats are {', '.join(FORMATS)}"
    return "\n".join([message, *(f"{name}: {reason.message}" for name, reason in reasons.items())])


def describe() -> list[dict[str, Any]]:  # Any: JSON for the catalog
    """Return the formats as the catalog publishes them."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "description": entry.description,
            "tasks": list(entry.tasks),
            "suffixes": list(entry.suffixes),
        }
        for entry in FORMATS.values()
    ]

"""Which upload format holds labels of which task: one rule for the API and for the engine."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

CODE = "unsupported_format"
AUTO = "auto"
"""Asks that the format of an upload be recognised by its content."""

Storage: TypeAlias = Literal["auto", "decoded", "encoded"]
"""How images are kept: all in one size, or as the files that were uploaded."""
ENCODED = ("imagefolder", "csv", "images", "parquet")
"""Formats of pictures with one class each, which can be stored encoded."""
MOST_ENTRIES = 2_000_000
"""Files and folders of an archive, or of a folder that a data set refers to."""
LARGEST_FILE_BYTES = 4 << 30
"""Of one file in it."""
LARGEST_TOTAL_BYTES = 64 << 30
"""Of all files in it."""
DECODED_BYTES = 2 << 30
"""Images that take more than this when they are decoded are stored encoded by `auto`."""


def storage_refusal(storage: str, name: str, task: str) -> str | None:
    """Return why an upload of format `name` cannot be stored so, or None.

    What `auto` will turn out to be is not known before the upload is looked into.
    """
    if storage == "encoded" and task != "classification":
        return f"storage encoded is for classification, and the task is {task}; leave storage out"
    if storage == "encoded" and name not in (AUTO, *ENCODED):
        return (
            f"storage encoded is for pictures ({', '.join(ENCODED)}), and the format is {name}; "
            "leave storage out"
        )
    return None


def refusal(name: str, task: str, formats: Mapping[str, Sequence[str]]) -> str | None:
    """Return why an upload of format `name` cannot become a data set for `task`, or None.

    `formats` maps the name of each format to the tasks whose labels it can hold. What `auto` will
    turn out to be is not known before the upload is looked into.
    """
    if name == AUTO:
        return None
    if name not in formats:
        return f"format must be one of {', '.join((AUTO, *formats))}, got {name[:80]!r}"
    if task not in formats[name]:
        able = ", ".join(other for other, tasks in formats.items() if task in tasks)
        return f"{name} holds no labels for {task}; upload {able or 'nothing: no format does'}"
    return None

"""What an upload format has to offer; `formats/catalog.py` lists all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import conversion
from workers.distill.data.formats.upload import Upload


class Convert(Protocol):
    """Reads an upload and writes it as a prepared data set."""

    def __call__(
        self, upload: Upload, folder: Path, hints: conversion.InputHints, task: Task, /
    ) -> dataset.DatasetRecord:
        """Write the data set of an upload into `folder`, which need not exist; return its record.

        The record has the upload's notes. `task` is one of the format's tasks. Raises
        `UploadRefused` for whatever is wrong with the file; nothing in it may be trusted.
        """
        ...


@dataclass(frozen=True)
class Format:
    """One layout of files that can be uploaded as a data set."""

    name: str
    """By which callers ask for it."""
    title: str
    """In a few words, for help texts."""
    description: str
    """How the file must be laid out, in full sentences, for people who prepare one."""
    tasks: tuple[Task, ...]
    """Tasks whose labels it can hold."""
    suffixes: tuple[str, ...]
    """Usual endings of the file's name. The content counts, not the name: nothing checks them."""
    recognise: Callable[[Upload], object]
    """Raises `UploadRefused` with the reason unless an upload is laid out as this format."""
    convert: Convert

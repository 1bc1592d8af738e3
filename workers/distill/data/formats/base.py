"""What an upload format has to offer; `formats/catalog.py` lists all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import conversion


class Convert(Protocol):
    """Reads an upload and writes it as a prepared data set."""

    def __call__(
        self,
        upload: Path,
        scratch: Path,
        folder: Path,
        hints: conversion.InputHints,
        task: Task,
        /,
    ) -> dataset.DatasetRecord:
        """Write the data set of the file `upload` into `folder` and return its record.

        `scratch` is a folder for temporary files, deleted afterwards; neither folder need exist.
        `task` is one of the format's tasks. Raises `UploadRefused` for whatever is wrong with the
        file; nothing in it may be trusted.
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
    convert: Convert

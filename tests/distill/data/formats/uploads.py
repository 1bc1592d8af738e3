"""Runs a format on an upload, as the inspection does."""

from pathlib import Path
from typing import Any

from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import catalog, conversion


def convert(
    name: str, workdir: Path, *, task: Task = "classification", **hints: Any
) -> dataset.DatasetRecord:
    """Convert `workdir/upload` to `workdir/dataset` and return its record."""
    return catalog.FORMATS[name].convert(
        workdir / "upload",
        workdir / "scratch",
        workdir / "dataset",
        conversion.InputHints(**hints),
        task,
    )

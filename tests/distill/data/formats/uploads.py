"""Makes uploads, and runs a format on them, as the inspection does."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import dataset
from workers.distill.data.formats import catalog, conversion
from workers.distill.data.formats.upload import Upload

ORIENTATION = 0x0112


def convert(
    name: str, workdir: Path, *, task: Task = "classification", **hints: Any
) -> dataset.DatasetRecord:
    """Convert `workdir/upload` to `workdir/dataset` and return its record."""
    return catalog.FORMATS[name].convert(
        Upload(workdir / "upload", workdir / "scratch"),
        workdir / "dataset",
        conversion.InputHints(**hints),
        task,
    )


def recognised(upload: Upload) -> str:
    """Return the name of the format that an upload is recognised as."""
    return catalog.recognise(upload).name


def picture(
    value: int, *, size: tuple[int, int] = (20, 30), mode: str = "RGB", turned: int = 1
) -> bytes:
    """Return a PNG of one colour, of this height and width; `turned` is EXIF's orientation."""
    stream = io.BytesIO()
    image = Image.new("RGB", size[::-1], (value, value, value)).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    image.save(stream, "PNG", exif=exif)
    return stream.getvalue()


def png(values: Any, *, mode: str = "L", **options: Any) -> bytes:
    """Return a PNG that holds an array of values, with a palette in mode P."""
    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(values))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([number % 256 for number in range(7, 7 + 768)])
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def archive(workdir: Path, files: dict[str, bytes | str]) -> None:
    """Write `workdir/upload`, a zip with these files."""
    workdir.mkdir(exist_ok=True)
    with zipfile.ZipFile(workdir / "upload", "w") as target:
        for name, content in files.items():
            target.writestr(name, content)


def refused(
    name: str, workdir: Path, files: dict[str, bytes | str], *, task: Task, **hints: Any
) -> errors.UploadRefused:
    """Return why an archive of these files is refused."""
    archive(workdir, files)
    with pytest.raises(errors.UploadRefused) as caught:
        convert(name, workdir, task=task, **hints)
    return caught.value

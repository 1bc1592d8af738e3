"""Small uploads that stand for much, and honest ones of many pictures: memory stays flat."""

import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.drills import mutated_uploads, uploads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own figures are read"),
]
MODEL: dict[str, Any] = next(
    dict(one.request) for one in uploads.samples() if one.request.get("kind") == "model"
)
SMALL = {"height": 32, "width": 32}
MIB = 2**20


def pictures(one: Image.Image, count: int, kind: str) -> bytes:
    """Return an archive of two classes of the same picture."""
    picture, archive = io.BytesIO(), io.BytesIO()
    one.save(picture, kind)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(count):
            file.writestr(f"{'ab'[number % 2]}/{number}.{kind}", picture.getvalue())
    return archive.getvalue()


def of_pixels() -> tuple[bytes, dict[str, Any]]:
    """Return pictures of 62 million pixels each, 250 MB in all, in an archive of 2 KB."""
    request = {"kind": "dataset", "format": "imagefolder", "task": "classification"}
    return pictures(Image.new("L", (7900, 7900)), 4, "png"), {**request, "input": SMALL}


def of_many() -> tuple[bytes, dict[str, Any]]:
    """Return 400 pictures as anybody may have them, 60 MB decoded."""
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    one = Image.fromarray(noise).resize((224, 224))
    request = {"kind": "dataset", "format": "imagefolder", "task": "classification"}
    return pictures(one, 400, "jpeg"), {**request, "input": None}


def of_a_header() -> tuple[bytes, dict[str, Any]]:
    """Return a file of weights that is nothing but a header of 60 MB."""
    header = b"{" + b" " * (60 * MIB - 2) + b"}"
    return len(header).to_bytes(8, "little") + header, MODEL


def resident(figure: str) -> int:
    """Return a figure of this process's memory in bytes: VmRSS, or VmHWM for the highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(rf"^{figure}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024


@pytest.mark.parametrize(
    ("make", "outcome", "most"),
    [
        (of_pixels, "ready", 200 * MIB),  # one decoded picture, twice
        (of_many, "ready", 100 * MIB),
        (of_a_header, "unreadable", 16 * MIB),
    ],
)
def test_inspection_takes_little_memory(
    make: Callable[[], tuple[bytes, dict[str, Any]]], outcome: str, most: int, tmp_path: Path
) -> None:
    content, request = make()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest
    code, message = mutated_uploads.inspect(content, request, tmp_path / "work")
    assert code == outcome, message
    assert resident("VmHWM") - before < most

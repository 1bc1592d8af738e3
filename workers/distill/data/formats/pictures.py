"""Read a picture of an upload: bounds, orientation, depth of its pixels, grey or colour.

Pictures are decoded here, once, at inspection, and nowhere else. They are shown upright, as EXIF
says, unless annotations were made for the pixels as they lie in the file.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps

from workers.distill import errors

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_PIXELS = 64_000_000
GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L"})
ORIENTATION = 0x0112
TURNED = frozenset({5, 6, 7, 8})
"""Values of EXIF's orientation that swap height and width."""
PNG_DEPTH_BYTES = slice(24, 26)
"""Where a PNG says how many bits a value has, and whether it is grey (0) or from a palette (3)."""
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
)
"""Decoders raise these for damaged content, depending on the format."""


@dataclass(frozen=True)
class PictureHeader:
    """Size of a picture when it is shown upright, and what else its header says."""

    height: int
    width: int
    is_grey: bool
    is_turned: bool
    """Whether its pixels lie in the file with height and width swapped."""


def read_header(file: Path, root: Path) -> PictureHeader:
    """Return a picture's header; raises `UploadRefused` if it is damaged, unknown or too large."""
    try:
        with _open(file, root) as image:
            # The library turns TIFF on its own, and gives the size after that.
            is_turned = image.format != "TIFF" and _orientation(image) in TURNED
            height, width = image.height, image.width
            is_grey = image.mode in GREY_MODES
    except DECODER_ERRORS as error:
        raise _not_a_picture(file, root, error) from error
    return PictureHeader(
        height=width if is_turned else height,
        width=height if is_turned else width,
        is_grey=is_grey,
        is_turned=is_turned,
    )


def decode(file: Path, root: Path, channels: int, *, is_upright: bool = True) -> Image.Image:
    """Return a picture as 8-bit grey (1 channel) or RGB (3 channels).

    It is turned as EXIF says, unless not `is_upright`. Raises `UploadRefused` for a damaged one.
    """
    try:
        with _open(file, root) as image:
            image.load()
            if is_upright:
                ImageOps.exif_transpose(image, in_place=True)
            return _plain(image, channels)
    except DECODER_ERRORS as error:
        raise _not_a_picture(file, root, error) from error


def read_mask(file: Path, root: Path) -> NDArray[np.uint16]:
    """Return the class numbers [H, W] of a PNG: grey values, or places in its palette.

    Raises `UploadRefused` for a damaged file and for colours, which are no numbers.
    """
    name = file.relative_to(root)
    try:
        with file.open("rb") as stream:
            depth, kind = stream.read(PNG_DEPTH_BYTES.stop)[PNG_DEPTH_BYTES] or (0, 0)
        with _open(file, root, formats=("PNG",)) as image:
            mode = image.mode
            if mode in ("L", "P"):
                values = np.asarray(image).astype(np.uint16)
            elif mode == "1":
                values = np.asarray(image.convert("L")).astype(np.uint16)
            elif mode in ("I", "I;16"):
                values = np.asarray(image).astype(np.uint16)
            else:
                raise errors.UploadRefused(
                    "bad_labels",
                    f"{name} has pixels of mode {mode}; a mask is a PNG with one class number a "
                    "pixel: save it as grey or with a palette",
                )
    except DECODER_ERRORS as error:
        raise _not_a_picture(file, root, error) from error
    if kind == 0 and depth < 8:
        # The library spreads grey values of few bits over 0..255.
        values //= np.uint16(255 // (2**depth - 1))
    return values


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return a grey or RGB picture as uint8 [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def digest(file: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _open(file: Path, root: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    try:
        image = Image.open(file, formats=formats)
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise _not_a_picture(file, root, error) from error
    if image.width * image.height > LARGEST_PIXELS:
        image.close()
        raise errors.UploadRefused(
            "too_large",
            f"{file.relative_to(root)} has {image.width}x{image.height} pixels, more than "
            f"{LARGEST_PIXELS}",
        )
    return image


def _orientation(image: Image.Image) -> int | None:
    return image.getexif().get(ORIENTATION)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        # The conversion of the library cuts off above 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _not_a_picture(file: Path, root: Path, error: Exception) -> errors.UploadRefused:
    is_unidentified = isinstance(error, PIL.UnidentifiedImageError)
    reason = "its content is of no known kind" if is_unidentified else str(error)
    return errors.UploadRefused(
        "unreadable", f"{file.relative_to(root)} is not a readable picture: {reason}"
    )

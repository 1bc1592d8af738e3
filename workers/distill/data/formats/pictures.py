"""Read a picture of an upload: bounds, orientation, depth of its pixels, grey or colour.

Pictures are decoded here, once, at inspection, and nowhere else. They are shown upright, as EXIF
says, unless annotations were made for the pixels as they lie in the file.
"""

import hashlib
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, ImageOps

from workers.distill import errors
from workers.distill.data.formats import file_kinds
from workers.distill.data.formats.problems import Problems

pillow_heif.register_heif_opener()

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_PIXELS = 64_000_000
DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
"""Grey values of more than 8 bits."""
GREY_MODES = frozenset({"1", "L", "LA"}) | DEEP_MODES
LARGEST_VALUE = 65_535
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that grey values of pictures have, which are stored in 16 where they are more than 8."""
ORIENTATION = 0x0112
ORIENTATIONS = frozenset(range(2, 9))
"""Values of EXIF's orientation that move pixels."""
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
    is_oriented: bool = False
    """Whether EXIF says that its pixels are to be turned or mirrored."""
    is_deep: bool = False
    """Whether its grey values have more than 8 bits."""
    is_several: bool = False
    """Whether the file holds more pictures than the first, which is read."""
    kind: str = ""
    """Its format, as Pillow calls it."""
    mode: str = ""
    """Its pixels' mode, as Pillow calls it."""
    orientation: int = 1
    """As EXIF has it, where that is a valid one."""


def read_header(file: Path, root: Path) -> PictureHeader:
    """Return a picture's header; raises `UploadRefused` if it is damaged, unknown or too large."""
    try:
        with _open(file, root) as image:
            orientation = _orientation(image)
            # The library turns TIFF on its own, and gives the size after that.
            is_turned = image.format != "TIFF" and orientation in TURNED
            height, width = image.height, image.width
            is_grey, is_deep = image.mode in GREY_MODES, image.mode in DEEP_MODES
            is_several = bool(getattr(image, "is_animated", False))
            kind, mode = image.format or "", image.mode
    except DECODER_ERRORS as error:
        raise _not_a_picture(file, root, error) from error
    return PictureHeader(
        height=width if is_turned else height,
        width=height if is_turned else width,
        is_grey=is_grey,
        is_turned=is_turned,
        is_oriented=orientation in ORIENTATIONS,
        is_deep=is_deep,
        is_several=is_several,
        kind=kind,
        mode=mode,
        orientation=orientation if orientation in ORIENTATIONS and orientation else 1,
    )


def highest_value(file: Path, root: Path) -> int:
    """Return the highest grey value of a picture of more than 8 bits.

    Raises `UploadRefused` for a damaged one, and for values that 16 bits do not hold.
    """
    try:
        with _open(file, root) as image:
            values = np.asarray(image)
            lowest, highest = int(values.min()), int(values.max())
    except DECODER_ERRORS as error:
        raise _not_a_picture(file, root, error) from error
    if lowest < 0 or highest > LARGEST_VALUE:
        raise errors.UploadRefused(
            "unreadable",
            f"{file.relative_to(root)} has values from {lowest} to {highest}; save grey pictures "
            "with 8 or 16 bits",
        )
    return highest


@dataclass(frozen=True)
class GreyScale:
    """How grey values of more than 8 bits become 8 bits."""

    highest: int
    """The highest value in any picture."""
    white: int
    """The value that becomes 255; all above it do as well."""

    @classmethod
    def of(cls, highest: int, given: int | None = None) -> "GreyScale":
        """Return the scale for pictures with values up to `highest`.

        White is `given`, or the largest value of the fewest bits that cameras and scanners have.
        """
        bits = next(bits for bits in DEPTHS if highest < 1 << bits)
        return cls(highest, given or (1 << bits) - 1)


def grey_scale(
    headers: dict[Path, PictureHeader], root: Path, given: int | None, problems: Problems
) -> GreyScale:
    """Return the scale of all pictures of more than 8 bits, whose white is `given` or measured.

    Those that cannot be read are added to `problems`, and lose their header.
    """
    highest = 0
    for file in [file for file, header in headers.items() if header.is_deep]:
        try:
            highest = max(highest, highest_value(file, root))
        except errors.UploadRefused as refusal:
            problems.add_unreadable(file, refusal)
            del headers[file]
    return GreyScale.of(highest, given)


def notes_of(headers: Collection[PictureHeader], scale: GreyScale) -> list[str]:
    """Return notes about pictures that were turned, scaled in depth, or the first of several."""
    turned = sum(header.is_oriented for header in headers)
    deep = sum(header.is_deep for header in headers)
    several = sum(header.is_several for header in headers)
    notes = []
    if turned:
        notes.append(f"{turned} pictures were turned or mirrored to be upright, as their EXIF says")
    if deep:
        notes.append(
            f"{deep} grey pictures have more than 8 bits, with values up to {scale.highest}: they "
            f"were scaled so that {scale.white}"
            + (" and all above it become" if scale.white < scale.highest else " becomes")
            + " 255; input.max_value sets another value"
        )
    if several:
        notes.append(f"{several} files hold several pictures, of which the first was read")
    return notes


def decode(
    file: Path, root: Path, channels: int, *, is_upright: bool = True, white: int = LARGEST_VALUE
) -> Image.Image:
    """Return a picture as 8-bit grey (1 channel) or RGB (3 channels).

    It is turned as EXIF says, unless not `is_upright`. Grey values of more than 8 bits are scaled
    so that `white`, and all above it, become 255. Raises `UploadRefused` for a damaged one.
    """
    try:
        with _open(file, root) as image:
            image.load()
            if is_upright:
                ImageOps.exif_transpose(image, in_place=True)
            return _plain(image, channels, white)
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


def _plain(image: Image.Image, channels: int, white: int) -> Image.Image:
    if image.mode in DEEP_MODES:
        # The conversion of the library cuts off above 255 instead of scaling.
        values = np.arange(LARGEST_VALUE + 1)
        scaled = ((np.minimum(values, white) * 255 + white // 2) // white).astype(np.uint8)
        pixels = np.asarray(image)
        plain = np.empty(pixels.shape, dtype=np.uint8)
        for row, line in enumerate(pixels):
            # Looking up widens every number to eight bytes: a whole picture may be large.
            plain[row] = scaled[line]
        image = Image.fromarray(plain)
    elif image.mode == "F":
        raise ValueError("its values are fractions, whose range is not known: save 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _not_a_picture(file: Path, root: Path, error: Exception) -> errors.UploadRefused:
    is_unidentified = isinstance(error, PIL.UnidentifiedImageError)
    reason = str(error)
    if is_unidentified:
        kind = file_kinds.kind_of(file)
        reason = f"it is {kind}" if kind else "its content is of no known kind"
    return errors.UploadRefused(
        "unreadable", f"{file.relative_to(root)} is not a readable picture: {reason}"
    )

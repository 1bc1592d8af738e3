"""Finds the checkpoint inside a compressed file or an archive, and names files that hold none.

What a file is follows from its first bytes, never from its name.
"""

import bz2
import contextlib
import gzip
import lzma
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from workers.distill import errors
from workers.distill.files import tensorfile

HEAD_BYTES = 512
COPIED_BYTES = 1 << 20
MOST_LAYERS = 3
MOST_ENTRIES = 100_000
MOST_GROWTH = 16
"""Weights shrink by a tenth when they are compressed; what grows by more than this is a bomb."""
SMALLEST_LIMIT = 64 << 20
CHECKPOINTS = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".gz", ".weights")
"""Endings of checkpoints; they decide only which of several files of an archive is taken."""
LISTED_NAMES = 6

SAFE = "save the weights with safetensors.torch.save_file or torch.save(model.state_dict(), ...)"
# Any: the stream of a library, which is read and closed.
PACKED: tuple[tuple[bytes, str, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.open),
    (b"BZh", "bzip2", bz2.open),
    (b"\xfd7zXZ\x00", "xz", lzma.open),
)
# What begins so, and what to do about it.
OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it, and upload the checkpoint inside"),
    (b"Rar!", "a RAR archive: unpack it, and upload the checkpoint inside"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file: unpack it with unzstd, and upload what comes out"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the weights: run `git lfs pull` in the repository, or download the "
        "file itself",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the weights: run `git annex get` first"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, such as Keras writes: load it there, and {SAFE}"),
    (b"GGUF", f"a GGUF file of quantised weights: take the original checkpoint, or {SAFE}"),
    (b"\x93NUMPY", f"a NumPy array: {SAFE}"),
    (b"\x89PNG", "a PNG picture, not weights"),
    (b"\xff\xd8\xff", "a JPEG picture, not weights"),
    (b"%PDF", "a PDF document, not weights"),
    (b"MATLAB", f"a MATLAB file: load it there, and {SAFE}"),
)
TENSORFLOW = f"which is no PyTorch checkpoint: convert the weights first, then {SAFE}"
ONNX = (
    "an ONNX model: a graph, whose weights have lost their names; upload it as a teacher (retort "
    f"upload teacher), or the checkpoint that it was exported from ({SAFE})"
)
TENSORFLOW_TABLE = bytes.fromhex("57fb808b247547db")
"""The last bytes of an index of TensorFlow's checkpoints, a table of LevelDB."""
IGNORED = re.compile(r"(^|/)(__MACOSX/|\.[^./]|Thumbs\.db$|desktop\.ini$)")
ZIP_FORMS: tuple[tuple[str, str], ...] = (
    (r"(^|/)saved_model\.pb$", f"a SavedModel of TensorFlow, {TENSORFLOW}"),
    (r"(^|/)model\.weights\.h5$", f"a model of Keras, {TENSORFLOW}"),
    (r"(^|/)MAR-INF/", "an archive of TorchServe: unpack it, and upload the checkpoint inside"),
    (r"\.onnx$", f"an archive with {ONNX}"),
    (r"\.npy$", f"a NumPy archive (npz): {SAFE}"),
)


class PackedStream(Protocol):
    """A stream that is unpacked while it is read."""

    def read(self, count: int = ..., /) -> bytes:
        """Return the next bytes."""
        ...


@dataclass(frozen=True)
class Opened:
    """A file that may be a checkpoint, and how it was found in the one that was given."""

    path: Path
    remarks: tuple[str, ...] = ()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Give the file itself, or the checkpoint that is packed in it, beside it for as long.

    Raises `UploadRefused` for what is no checkpoint, in words that say what it is.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unpacked-") as folder:
        limit = max(SMALLEST_LIMIT, MOST_GROWTH * path.stat().st_size)
        here = path
        remarks: list[str] = []
        for layer in range(MOST_LAYERS + 1):
            inside = _unpacked(here, Path(folder) / str(layer), limit)
            if inside is None:
                break
            if layer == MOST_LAYERS:
                raise errors.UploadRefused(
                    "unreadable", f"{path.name} is packed more than {MOST_LAYERS} times: unpack it"
                )
            here = inside.path
            remarks += inside.remarks
        refuse_other_files(here)
        yield Opened(here, tuple(remarks))


def refuse_other_files(path: Path) -> None:
    """Raise `UploadRefused` with the name of what a file is, if that is no checkpoint."""
    kind = other_kind(path)
    if kind is not None:
        raise errors.UploadRefused("unreadable", f"{path.name} is {kind}")


def other_kind(path: Path) -> str | None:
    """Return what a file is, and what to do about it; None where it may be a checkpoint."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, path.stat().st_size - len(TENSORFLOW_TABLE)))
        tail = stream.read()
    if not head:
        return "empty: the upload or the download before it failed"
    if tensorfile.looks_like(path):
        return None
    for beginning, words in OTHER_FILES:
        if head.startswith(beginning):
            return words
    if tail == TENSORFLOW_TABLE:
        return f"an index of a checkpoint of TensorFlow, {TENSORFLOW}"
    if head[4:8] == b"TFL3":
        return f"a model of TensorFlow Lite, {TENSORFLOW}"
    return _protobuf_kind(head) or _text_kind(head)


def _protobuf_kind(head: bytes) -> str | None:
    """Return what a message is that begins with a small version number (field 1) and field 2."""
    if len(head) < 5 or head[0] != 0x08 or head[2] not in (0x12, 0x3A):
        return None
    producer = head[4 : 4 + min(head[3], 32)]
    if head[1] == 1 and head[2] == 0x12 and not producer.isascii():
        return f"a SavedModel of TensorFlow, {TENSORFLOW}"
    if 1 <= head[1] <= 32 and (head[2] == 0x3A or re.fullmatch(rb"[\x20-\x7e]*", producer)):
        return ONNX
    return f"a SavedModel of TensorFlow, {TENSORFLOW}" if head[1] == 1 else None


def _text_kind(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return (
            "an HTML page, not the weights: the download failed, or asked for a login or a "
            "confirmation first; open the address in a browser, and save the file itself"
        )
    if text.startswith((b"<?xml", b"<error")):
        return "an XML text, such as a storage service answers instead of a file it does not give"
    if text.startswith((b"{", b"[")) and re.match(rb'[{\[]\s*["{\[\]}]', text):
        return "a JSON text, not weights: a server's answer, or a model's configuration"
    return None


def _unpacked(path: Path, folder: Path, limit: int) -> Opened | None:
    """Unpack one layer into a new folder; None for what is not packed."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if tensorfile.looks_like(path):
        return None
    try:
        for beginning, form, open_packed in PACKED:
            if head.startswith(beginning):
                return _decompressed(path, folder, limit, form, open_packed)
        if head.startswith(b"PK\x03\x04"):
            return _from_zip(path, folder, limit)
        # In an archive, the magic number follows the first name; nothing else has it there.
        if head[257:262] == b"ustar" or (head[:1].isalnum() and _is_old_tar(path, head)):
            return _from_tar(path, folder, limit)
    except (
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is a damaged or cut archive: {error}"
        ) from error
    return None


def _is_old_tar(path: Path, head: bytes) -> bool:
    return len(head) == HEAD_BYTES and not head[500:].strip(b"\x00") and tarfile.is_tarfile(path)


def _decompressed(
    path: Path, folder: Path, limit: int, form: str, open_packed: Callable[[Path], Any]
) -> Opened:
    folder.mkdir()
    stem = re.sub(r"\.(gz|gzip|tgz|bz2|xz)$", "", path.name, flags=re.IGNORECASE) or "file"
    with open_packed(path) as stream:
        _copy(stream, folder / stem, limit, path)
    return Opened(folder / stem, (f"{path.name} was unpacked ({form})",))


def _from_zip(path: Path, folder: Path, limit: int) -> Opened | None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return None  # one of torch.save
        for pattern, words in ZIP_FORMS:
            if any(re.search(pattern, name) for name in names):
                raise errors.UploadRefused("unreadable", f"{path.name} is {words}")
        chosen = _only(path, [entry.filename for entry in entries if not entry.is_dir()], "zip")
        entry = archive.getinfo(chosen)
        if entry.flag_bits & 1:
            raise errors.UploadRefused(
                "unreadable", f"{path.name} is a zip file with a password: unpack it"
            )
        with archive.open(entry) as stream:
            return _taken(stream, chosen, path, folder, limit)


def _from_tar(path: Path, folder: Path, limit: int) -> Opened:
    with tarfile.open(path, "r:") as archive:
        members = {member.name: member for member in archive if member.isfile()}
        if {"pickle", "storages", "tensors"} <= {name.rpartition("/")[2] for name in members}:
            raise errors.UploadRefused(
                "unreadable",
                f"{path.name} was written by PyTorch 0.1; load it with PyTorch 1, and save it "
                "again",
            )
        chosen = _only(path, list(members), "tar")
        stream = archive.extractfile(members[chosen])
        if stream is None:
            raise tarfile.TarError(f"{chosen[:80]!r} has no content")
        return _taken(stream, chosen, path, folder, limit)


def _only(path: Path, names: Sequence[str], form: str) -> str:
    """Return the only file of an archive that is no by-product, or the only checkpoint."""
    if len(names) > MOST_ENTRIES:
        raise errors.UploadRefused(
            "unreadable", f"{path.name} is a {form} archive of {len(names)} files, not a checkpoint"
        )
    files = [name for name in names if not IGNORED.search(name)]
    chosen = files if len(files) == 1 else [n for n in files if n.lower().endswith(CHECKPOINTS)]
    if len(chosen) != 1:
        listed = ", ".join(sorted(chosen or files)[:LISTED_NAMES]) or "none"
        what = "several checkpoints" if chosen else "no checkpoint"
        raise errors.UploadRefused(
            "unreadable",
            f"{path.name} is a {form} file, but not one that torch.save wrote; it is an archive "
            f"with {what} ({listed}): unpack it, and upload one file of weights",
        )
    return chosen[0]


def _taken(stream: PackedStream, name: str, path: Path, folder: Path, limit: int) -> Opened:
    folder.mkdir()
    last = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])[-100:].lstrip(".") or "file"
    _copy(stream, folder / last, limit, path)
    return Opened(folder / last, (f"{last} was taken from the archive {path.name}",))


def _copy(stream: PackedStream, target: Path, limit: int, path: Path) -> None:
    written = 0
    with target.open("wb") as copy:
        while block := stream.read(COPIED_BYTES):
            written += len(block)
            if written > limit:
                raise errors.UploadRefused(
                    "too_large",
                    f"{path.name} unpacks to more than {limit} bytes, {MOST_GROWTH} times its "
                    "size; weights do not shrink so: unpack it, and upload the checkpoint",
                )
            copy.write(block)

"""Pictures as they were uploaded, in tar files that WebDataset reads, with an index of offsets.

A split is `train-00000.tar`, `train-00001.tar`, ... with two entries for each picture: `KEY.jpg`
(or `.png`, `.webp`) with its bytes, and `KEY.cls` with the number of its class, where it has one.
Beside them `train.safetensors` says, row by row, where a picture's bytes begin in which file, how
many they are, its height and width upright, and how it is to be turned. Equal pictures in equal
order give equal bytes.
"""

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from workers.distill import errors
from workers.distill.files import tensorfile

SHARD_BYTES = 256 << 20
"""A file is closed when it is at least this large."""
COLUMNS = ("shard", "offset", "size", "height", "width", "orientation")
"""Columns of the index, int64 [N] each, beside `labels`."""
UPRIGHT = 1
"""EXIF's orientation of a picture that is not to be turned."""


@dataclass(frozen=True)
class EncodedPicture:
    """A picture's file content, and what has to be known to read it."""

    content: bytes
    suffix: str
    """`jpg`, `png` or `webp`."""
    height: int
    width: int
    orientation: int = UPRIGHT
    """As EXIF has it; height and width are those after turning."""


class ShardWriter:
    """Writes the pictures of one split."""

    def __init__(self, folder: Path, split: str) -> None:
        """Write into `folder`, which must exist."""
        self._folder, self._split = folder, split
        self._stream: io.BufferedWriter | None = None
        self._shards = 0
        self._rows: list[tuple[int, ...]] = []
        self.encoded_bytes = 0

    def add(self, picture: EncodedPicture, label: int | None) -> None:
        """Append a picture; `label` is the number of its class, None for none."""
        if self._stream is None or self._stream.tell() >= SHARD_BYTES:
            self._next_file()
        key = f"{len(self._rows):09d}"
        offset = self._entry(f"{key}.{picture.suffix}", picture.content)
        if label is not None:
            self._entry(f"{key}.cls", str(label).encode())
        where = (self._shards - 1, offset, len(picture.content))
        self._rows.append((*where, picture.height, picture.width, picture.orientation))
        self.encoded_bytes += len(picture.content)

    def close(self, labels: Int[Tensor, " N"]) -> None:
        """Finish the last file and write the index with the labels of all pictures."""
        self._end_file()
        columns = {
            name: torch.tensor([row[place] for row in self._rows], dtype=torch.int64)
            for place, name in enumerate(COLUMNS)
        }
        path = self._folder / f"{self._split}.safetensors"
        tensorfile.write(path, {**columns, "labels": labels}, header={})

    def _entry(self, name: str, content: bytes) -> int:
        """Append one entry and return where its content begins."""
        if self._stream is None:
            raise ValueError("no shard is open")
        # USTAR, without times and owners: the same content gives the same bytes.
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._stream.write(entry.tobuf(tarfile.USTAR_FORMAT))
        offset = self._stream.tell()
        self._stream.write(content)
        self._stream.write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def _next_file(self) -> None:
        self._end_file()
        path = self._folder / shard_name(self._split, self._shards)
        self._stream = path.open("wb")
        self._shards += 1

    def _end_file(self) -> None:
        if self._stream is None:
            return
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))
        self._stream.close()
        self._stream = None


def shard_name(split: str, number: int) -> str:
    """Return the name of a file of a split."""
    return f"{split}-{number:05d}.tar"


class ShardReader:
    """Reads pictures of one split by their row; any thread may."""

    def __init__(self, folder: Path, split: str, index: dict[str, Tensor]) -> None:
        """Open the files of a split, whose index was read from its safetensors file.

        Raises `BadDataset` where a file is missing, or shorter than the index says.
        """
        self._files: list[int] = []
        missing = [name for name in COLUMNS if name not in index]
        if missing:
            raise errors.BadDataset(
                f"the index of the {split} split has no column {missing[0]}", split=split
            )
        self._split = split
        self._columns = {name: index[name] for name in COLUMNS}
        self._open(folder)

    @classmethod
    def of(cls, folder: Path, split: str) -> "ShardReader":
        """Open a split that was just written."""
        return cls(folder, split, tensorfile.read(folder / f"{split}.safetensors"))

    def _open(self, folder: Path) -> None:
        shards, ends = self._columns["shard"], self._columns["offset"] + self._columns["size"]
        for number in range(int(shards.max()) + 1 if len(shards) else 0):
            path = folder / shard_name(self._split, number)
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise errors.BadDataset(
                    f"{path.name} of the {self._split} split cannot be read: {error}",
                    split=self._split,
                ) from error
            self._files.append(file)
            inside = ends[shards == number]
            if len(inside) and os.fstat(file).st_size < int(inside.max()):
                raise errors.BadDataset(
                    f"{path.name} of the {self._split} split is shorter than its index says",
                    split=self._split,
                )

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def sizes(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Return heights and widths of some pictures, upright."""
        return self._columns["height"][index], self._columns["width"][index]

    def read(self, row: int) -> EncodedPicture:
        """Return one picture; its suffix is empty, since its bytes tell what it is."""
        shard, offset, size, height, width, orientation = (
            int(self._columns[name][row]) for name in COLUMNS
        )
        content = os.pread(self._files[shard], size, offset)
        if len(content) != size:
            raise errors.BadDataset(
                f"picture {row} of the {self._split} split ends early", split=self._split
            )
        return EncodedPicture(content, "", height, width, orientation)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            os.close(file)
        self._files = []

    def __del__(self) -> None:
        self.close()

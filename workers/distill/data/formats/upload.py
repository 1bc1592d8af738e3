"""An uploaded file as its format sees it: what it is, what it unpacks to, notes for its owner."""

import functools
import zipfile
from pathlib import Path

from workers.distill.data.formats import archives


class Upload:
    """One file, unpacked once however many formats look into it."""

    def __init__(self, path: Path, scratch: Path) -> None:
        """Take the file `path`; `scratch` is a folder for temporary files, which need not exist."""
        self.path = path
        self.scratch = scratch
        self.notes: list[str] = []
        """What was converted, left out or chosen so far; formats add theirs to it."""

    @functools.cached_property
    def root(self) -> Path:
        """The folder of the unpacked archive; raises `UploadRefused` for what is none."""
        folder = self.scratch / "unpacked"
        self.notes += archives.unpack(self.path, folder)
        return folder

    @functools.cached_property
    def is_archive(self) -> bool:
        """Whether it is a zip or tar archive, damaged or not; one of NumPy arrays alone is none."""
        return archives.is_archive(self.path) and not self.is_npz

    @functools.cached_property
    def is_npz(self) -> bool:
        """Whether it is a zip archive of NumPy arrays."""
        if not zipfile.is_zipfile(self.path):
            return False
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, UnicodeError, ValueError):
            return False
        return bool(names) and all(name.endswith(".npy") for name in names)

    def starts_with(self, magic: bytes) -> bool:
        """Return whether the file begins with these bytes."""
        with self.path.open("rb") as stream:
            return stream.read(len(magic)) == magic

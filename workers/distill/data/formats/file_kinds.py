"""What a file is by its first bytes, in words for those who uploaded another than they meant."""

from pathlib import Path

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: pack its files as .zip or .tar.gz"),
    (b"Rar!", "a RAR archive: pack its files as .zip or .tar.gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: pack its files as .zip or .tar.gz"),
    (b"\x89HDF\r\n", "an HDF5 file: save its arrays with numpy.savez"),
    (b"MATLAB 5.0", "a MATLAB file: read it with scipy.io.loadmat and save it with numpy.savez"),
    (b"\x93NUMPY", "a single NumPy array: save images and labels in one file by numpy.savez"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"ARROW1", "an Arrow file: save it with Dataset.to_parquet"),
    (b"%PDF", "a PDF document"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"\x80\x02", "a pickle, which may run code when it is loaded: save arrays by numpy.savez"),
    (b"\x80\x03", "a pickle, which may run code when it is loaded: save arrays by numpy.savez"),
    (b"\x80\x04", "a pickle, which may run code when it is loaded: save arrays by numpy.savez"),
    (b"\x80\x05", "a pickle, which may run code when it is loaded: save arrays by numpy.savez"),
    (b"\x1f\x8b", "compressed with gzip"),
)
_HTML = (b"<!doctype html", b"<html")


def kind_of(path: Path) -> str | None:
    """Return in words what a file is by its first bytes, or None where they say nothing."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith(_HTML):
        return "an HTML page: the download needed a login or a confirmation"
    return next((words for magic, words in _MAGIC if head.startswith(magic)), None)

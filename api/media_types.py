"""Media types of stored files, by the suffix of their path."""

from pathlib import PurePosixPath

_BY_ENDING = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

UNKNOWN = "application/octet-stream"
ALL = (UNKNOWN, *_BY_ENDING.values())


def of(path: str) -> str:
    """Return the media type of a file; `UNKNOWN` for every other suffix."""
    return _BY_ENDING.get(PurePosixPath(path).suffix, UNKNOWN)

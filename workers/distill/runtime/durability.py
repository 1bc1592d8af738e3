"""What it takes for files to be there after a power cut."""

import os
import pathlib


def sync_folder(folder: pathlib.Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

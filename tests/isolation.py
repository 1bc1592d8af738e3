"""Run a program where only some packages are installed, as with whoever gets a student."""

import functools
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from tests import waiting


def run(
    script: Path, *arguments: str, site: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with no packages but those of `site`, as `make_site` made it."""
    return subprocess.run(
        # -S: no packages of this environment. The program's own folder is searched, as usual.
        [sys.executable, "-S", "-s", "-B", str(script), *arguments],
        cwd=folder,
        env={"PATH": os.defpath, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * waiting.PATIENCE_SECONDS,
        check=False,
    )


def make_site(folder: Path, *packages: str) -> Path:
    """Make a folder with what `pip install` of these packages would bring, and nothing else."""
    folder.mkdir()
    for name in sorted(_with_requirements(frozenset(packages))):
        for top in _top_folders(name):
            link = folder / top.name
            if not link.exists():
                link.symlink_to(top)
    return folder


@functools.cache
def _with_requirements(packages: frozenset[str]) -> frozenset[str]:
    found, wanted = set[str](), set(packages)
    while wanted:
        name = wanted.pop()
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                wanted |= {needed.name.lower()} - found
    return frozenset(found)


def _top_folders(name: str) -> Iterator[Path]:
    distribution = importlib.metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "")}
    for top in sorted(tops - {"__pycache__"}):
        yield Path(str(distribution.locate_file(top)))

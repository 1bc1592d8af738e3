"""The project's own files, as the house rules read them."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests import waiting

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "models_registry", "retort", "workers", "migrations")
# What a source archive without its history may contain beside the project's files.
NOT_OURS = {"build", "dist", "retort-data", "demo-data", "__pycache__", "venv"}
OURS_WITH_A_DOT = {".ci", ".github", ".dockerignore", ".env.example", ".gitignore"}


@cache
def files() -> tuple[Path, ...]:
    """Return every file of the project, relative to its root: tracked, or new and not ignored."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
        found = [Path(name) for name in listed if name and (ROOT / name).is_file()]
    else:
        found = [path.relative_to(ROOT) for path in walk(ROOT)]
    return tuple(sorted(found))


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, leaving out what is made, hidden or somebody else's."""
    for path in folder.iterdir():
        hidden = path.name.startswith(".") and path.name not in OURS_WITH_A_DOT
        if hidden or path.name in NOT_OURS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def python_files(*tops: str) -> list[Path]:
    """Return the Python files whose first folder is one of `tops`."""
    return [path for path in files() if path.suffix == ".py" and path.parts[0] in tops]


def text(path: Path) -> str:
    """Return a file's text."""
    return (ROOT / path).read_text(encoding="utf-8")


def tree(path: Path) -> ast.Module:
    """Return a Python file's syntax tree; those of all files are a burden on memory."""
    return ast.parse(text(path), filename=str(path))


@cache
def pyproject() -> dict[str, Any]:
    """Return `pyproject.toml`."""
    return tomllib.loads(text(Path("pyproject.toml")))


def python(
    *arguments: str, cwd: Path = ROOT, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process of its own, and return what came of it."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=waiting.PATIENCE_SECONDS,
        check=False,
    )


def environment(variables: dict[str, str] | None = None) -> dict[str, str]:
    """Return a child's environment: a path and what is given; nothing inherited, no home."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "OMP_NUM_THREADS": "1",
        **(variables or {}),
    }

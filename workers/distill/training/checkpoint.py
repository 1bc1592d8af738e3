"""Resume points: written whole or not at all, read back newest first.

A file is written under another name, flushed to the disk and renamed, so a kill at any instant
leaves either the old set of files or the new one. Only plain values and tensors are kept, and they
are read without unpickling code.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import torch

from workers.distill.runtime import durability, events

KEPT = 2
FORMAT = 2
"""Format 1 used other names; `_upgraded` reads it."""
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


@dataclass(frozen=True)
class Written:
    """A checkpoint that is safe on the disk."""

    path: pathlib.Path
    size_bytes: int
    sha256: str


class _Hashing:
    """A file that digests what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes | memoryview) -> int:
        self.digest.update(content)
        written = self._file.write(content)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()


def write(folder: pathlib.Path, step: int, recipe_digest: str, state: dict[str, Any]) -> Written:
    """Write a checkpoint, then drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.ckpt"
    temporary = path.with_suffix(".ckpt.tmp")
    with temporary.open("wb") as file:
        hashing = _Hashing(file)
        content = {"format": FORMAT, "recipe": recipe_digest, "step": step, "state": state}
        torch.save(content, hashing)  # type: ignore[arg-type]  # write and flush are all it calls
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    durability.sync_folder(folder)
    for old in newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return Written(path, hashing.size, hashing.digest.hexdigest())


def newest(
    folder: pathlib.Path, recipe_digest: str, reporter: events.Reporter
) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint of this recipe that can be read, or None."""
    return next(readable(folder, recipe_digest, reporter), None)


def readable(
    folder: pathlib.Path, recipe_digest: str, reporter: events.Reporter
) -> Iterator[dict[str, Any]]:
    """Yield the states of this recipe's checkpoints, the newest first; warn of all others."""
    for leftover in folder.glob("*.ckpt.tmp"):
        leftover.unlink(missing_ok=True)
    for path in newest_first(folder):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            state, digest = content["state"], content["recipe"]
        except Exception as error:  # any damage means: try the one before
            reporter.warning(
                "checkpoint_unreadable",
                f"{path.name} cannot be read ({type(error).__name__}); trying an older one",
            )
            continue
        if digest != recipe_digest:
            reporter.warning(
                "checkpoint_ignored", f"{path.name} belongs to another recipe and is not used"
            )
            continue
        if content["format"] not in (1, FORMAT):
            reporter.warning(
                "checkpoint_ignored",
                f"{path.name} has format {content['format']}, and this version reads 1 to "
                f"{FORMAT}; it is not used",
            )
            continue
        yield _upgraded(state) if content["format"] == 1 else state


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state of format 1 under the names of format 2."""
    return {
        "train_state": _renamed_train_state(state["course"]),
        "finished": {name: _renamed_train_state(kept) for name, kept in state["finished"].items()},
        "threads": state["threads"],
    }


def _renamed_train_state(old: dict[str, Any]) -> dict[str, Any]:
    """Rename the keys of a student's state, and of what it contains."""
    state = _renamed(
        old,
        stepper="optimizer",
        tally="meter",
        studio="source",
        closed_epoch="finished_epoch",
    )
    state["best"] = _renamed(state["best"], accuracy="score")
    if state["source"] is None:
        state["source"] = {}
    else:
        state["source"] = _renamed(
            state["source"],
            inverter="synthesizer",
            replay="buffer",
            gallery="snapshots",
            tally="meter",
        )
    return state


def _renamed(old: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in old.items()}


def newest_first(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the checkpoints in a folder by step, the largest first."""
    steps = {
        path: int(match[1])
        for path in folder.glob("step-*.ckpt")
        if (match := _NAME.fullmatch(path.name))
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)

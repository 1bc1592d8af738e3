"""Inspect damaged uploads: every one must become ready, or be refused with a sentence.

`python -m tests.drills.mutated_uploads --count 10000 --seed 1` prints a line for each upload that
ends otherwise, with the number that makes it anew, and exits with 1 if there was one.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.drills import uploads
from workers.distill.inspection import uploads as inspection
from workers.distill.runtime import events, memory

SLOW_SECONDS = 10.0
"""So small an upload may not cost an inspector more processor time."""
MEMORY_BYTES = 2 << 30
_WORDS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80")


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Return an upload with some bytes changed: of the file, or of entries that it holds."""
    if rng.random() < 0.7 and zipfile.is_zipfile(io.BytesIO(whole)):
        return _with_damaged_entries(whole, rng)
    return _mutated(whole, rng)


def _mutated(whole: bytes, rng: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not content:
            break
        # Headers lie at the start, and what a zip archive holds is listed at its end.
        near = rng.randrange(min(len(content), 400))
        place = rng.choice((rng.randrange(len(content)), near, len(content) - 1 - near))
        _mutate(content, place, rng)
    return bytes(content)


def _mutate(content: bytearray, place: int, rng: random.Random) -> None:
    match rng.randrange(7):
        case 0:
            content[place] ^= 1 << rng.randrange(8)
        case 1:
            content[place] = rng.choice((0, 1, 127, 128, 255))
        case 2:
            del content[place : place + rng.randrange(1, 50)]
        case 3:
            content[place:place] = rng.randbytes(rng.randrange(1, 9))
        case 4:
            content[place : place + 4] = rng.choice(_WORDS)
        case 5:
            del content[max(place, len(content) // 2) :]
        case _:
            other, length = rng.randrange(len(content)), rng.randrange(1, 40)
            content[place : place + length] = content[other : other + length]


def _with_damaged_entries(whole: bytes, rng: random.Random) -> bytes:
    """Return a zip archive, itself sound, with damaged, renamed or missing entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(file, "w") as target:
        names = source.namelist()
        hit = set(rng.sample(names, rng.choice((1, 1, 2, len(names)))))
        for name in names:
            content, kept = source.read(name), name
            change = rng.randrange(6) if name in hit else None
            if change == 5:
                continue
            if change == 4:
                letters = _mutated(name.encode(), rng).decode(errors="replace")
                kept = letters.replace("\0", "")[:60_000] or "x"
            elif change is not None:
                content = _mutated(content, rng)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a name twice: that is the point
                target.writestr(kept, content)
    return file.getvalue()


def outcomes(count: int, seed: int) -> Iterator[tuple[int, str, str, str]]:
    """Yield number, name of the sample, code and message for so many damaged uploads.

    The code is `ready` for those that are accepted, and `slow` for those that took too long.
    """
    whole = uploads.samples()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            sample = whole[number % len(whole)]
            content = damaged(sample.content, random.Random(f"{seed}/{number}"))
            started = time.process_time()
            code, message = inspect(content, sample.request, Path(folder) / "work")
            if time.process_time() - started > SLOW_SECONDS:
                code, message = "slow", f"it took more than {SLOW_SECONDS:g} s ({code})"
            yield number, sample.name, code, message


def inspect(content: bytes, request: Any, workdir: Path) -> tuple[str, str]:
    """Inspect an upload in this process; return the code of its refusal, or `ready`, and why."""
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    (workdir / "upload").write_bytes(content)
    (workdir / "request.json").write_text(json.dumps(request))
    lines = workdir / "lines"
    # The traceback of a refusal is for the log of a worker.
    with lines.open("wb") as stream, contextlib.redirect_stderr(io.StringIO()):
        inspection.execute(workdir / "request.json", workdir, events.Reporter(stream.fileno()))
    last = json.loads(lines.read_bytes().splitlines()[-1])
    return last.get("code", "ready"), last.get("message", "")


def main() -> int:
    """Run the drill, print what fell, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.mutated_uploads")
    parser.add_argument("--count", type=int, default=10_000, help="damaged uploads")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="decides the damage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # decoders warn of what they then refuse
    logging.disable()
    memory.limit(MEMORY_BYTES)
    counts: collections.Counter[str] = collections.Counter()
    fell = 0
    for number, name, code, message in outcomes(options.count, options.seed):
        counts[code] += 1
        if code in ("internal_error", "slow"):
            fell += 1
            print(f"seed {options.seed} upload {number} ({name}): {code}: {message}")
    told = ", ".join(f"{code} {count}" for code, count in counts.most_common())
    print(f"seed {options.seed}: {options.count} uploads, {fell} fell: {told}")
    return 1 if fell else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)

"""Files of JSON lines, by which a benchmark goes on where an earlier run has stopped."""

import json
from pathlib import Path
from typing import Any

# Any: what a benchmark has measured, as JSON.
Line = dict[str, Any]


def read(path: Path | None) -> list[Line]:
    """Return the lines that earlier runs have written; none without a file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def append(path: Path | None, line: Line) -> None:
    """Write a line at once, so that a run that is stopped loses no other; without a file, none."""
    if path is not None:
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

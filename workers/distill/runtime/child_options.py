"""The command line of the programs that a worker has do one thing, and their bound on memory."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.distill.runtime import memory


@dataclass(frozen=True)
class ChildOptions:
    """What a worker tells such a program."""

    request: Path
    workdir: Path
    memory_bytes: int | None
    """The bound that holds for this process from now on; None: there is none."""


def read(program: str, arguments: Sequence[str], *, reads: str) -> ChildOptions:
    """Return the options of `python -m <program>`, and bound this process's memory by them.

    `reads` says which files of the working folder the program reads.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("request", type=Path, help="REQUEST.json")
    parser.add_argument("--workdir", type=Path, required=True, help=f"folder with {reads} in it")
    parser.add_argument(
        "--memory-bytes", type=int, help="memory that may be taken beyond what torch has"
    )
    options = parser.parse_args(arguments)
    if options.memory_bytes is not None:
        memory.limit(options.memory_bytes)
    return ChildOptions(options.request, options.workdir, options.memory_bytes)

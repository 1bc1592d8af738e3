"""A child process of two ranks that talk: `python -m talking_ranks TARGETS`.

TARGETS is JSON: the working folder, and the addresses of an internet socket and of a socket of the
file system outside. It reports the sum that the ranks found, and what calling outside led to.
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from workers.distill.config.devices import Share
from workers.distill.runtime import events, rank_processes, signals
from workers.distill.runtime.ranks import join


def call(family: int, address: Any) -> str:
    """Return `done`, or why an address could not be called."""
    try:
        with socket.socket(family) as connection:
            connection.settimeout(5)
            connection.connect(address)
    except OSError as error:
        return type(error).__name__
    return "done"


def main() -> int:
    """Run two ranks."""
    targets = json.loads(sys.argv[1])
    reporter = events.open_stream()

    def work(rank: int) -> int:
        meeting = Path(targets["workdir"]) / "meeting"
        ranks = join(Share(rank, 2), meeting, torch.device("cpu"))
        total = ranks.sums(torch.tensor([float(rank + 1)]))
        if ranks.is_first:
            reporter.result(
                total=float(total),
                internet=call(socket.AF_INET, tuple(targets["address"])),
                socket_file=call(socket.AF_UNIX, targets["socket"]),
            )
        ranks.from_all(True)
        return 0

    return rank_processes.RankProcesses(2, reporter, signals.Stop()).run(work)


if __name__ == "__main__":
    sys.exit(main())

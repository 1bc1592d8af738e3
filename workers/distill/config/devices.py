"""A job on several devices: how many there may be, and which rows of a batch each one computes.

One process (a rank) works on each device. `training.batch_size` is the batch of all of them
together: every step has the images that it has on one device, in the same order, and each rank
computes its own slice of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

MOST_DEVICES = 16
"""Devices of one machine; a job does not span machines."""
FEWEST_ROWS = 2
"""Images that each rank has at least in every step: batch norm has no variance of one image."""

AcrossDevices: TypeAlias = Literal["gathers", "slices", "one"]
"""What a method does on several devices.

`gathers`: each rank computes the networks for its slice; then outputs of all ranks are gathered,
with their gradient, and the loss is that of the whole batch. `slices`: the loss is a mean over
images, so each rank computes it for its slice, and the means are averaged. `one`: it does not run
on several devices.
"""


@dataclass(frozen=True)
class Share:
    """One rank among so many, and its slice of any number of rows."""

    rank: int = 0
    ranks: int = 1

    def bounds(self, start: int, end: int) -> tuple[int, int]:
        """Return where this rank's slice of the rows from `start` to `end` starts and ends."""
        rows = end - start
        return start + rows * self.rank // self.ranks, start + rows * (self.rank + 1) // self.ranks

    def sizes(self, rows: int) -> list[int]:
        """Return how many of so many rows each rank has; they differ by one at most."""
        each = (Share(rank, self.ranks).bounds(0, rows) for rank in range(self.ranks))
        return [end - start for start, end in each]

    @property
    def fewest_rows(self) -> int:
        """Return the fewest images that a step of all ranks together has."""
        return FEWEST_ROWS * self.ranks


WHOLE = Share()
"""The share of a process that trains alone."""


def of_parts(parts: Sequence[AcrossDevices]) -> AcrossDevices:
    """Return what a combination of methods does: what the most demanding of its parts does."""
    if "one" in parts:
        return "one"
    return "gathers" if "gathers" in parts else "slices"

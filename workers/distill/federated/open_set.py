"""The open set: images without labels that all parties have, in the same order."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from workers.distill.data import stateless_rng
from workers.distill.files import tensorfile

DRAW = 3
"""What random numbers are for; those of partitions have others."""


@dataclass(frozen=True)
class OpenSet:
    """Open images on the device, and which of them a round uses: all, or so many drawn anew."""

    images: UInt8[Tensor, "N c h w"]
    per_round: int | None
    seed: int

    @classmethod
    def read(cls, path: Path, per_round: int | None, seed: int, device: torch.device) -> "OpenSet":
        """Return the images of a file, which the server has written, on a device."""
        return cls(tensorfile.read(path)["images"].to(device), per_round, seed)

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the images as a safetensors file, by which parties compare."""
        return hashlib.sha256(tensorfile.to_bytes({"images": self.images}, {})).hexdigest()

    def rows(self, number: int) -> Int[Tensor, " n"]:
        """Return the images of a round, in rising order: a pure function of seed and round."""
        count = len(self.images)
        if self.per_round is None or self.per_round >= count:
            return torch.arange(count)
        draw = torch.Generator().manual_seed(stateless_rng.mix(self.seed, number, DRAW))
        return torch.randperm(count, generator=draw)[: self.per_round].sort().values

    def of_round(self, number: int) -> UInt8[Tensor, "n c h w"]:
        """Return the images of a round."""
        rows = self.rows(number)
        if len(rows) == len(self.images):
            return self.images
        return self.images[rows.to(self.images.device)]

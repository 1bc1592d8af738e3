"""Made-up embeddings of a batch, and the ways in which a relation must not see them change."""

import torch


def rows(seed: int, count: int, width: int) -> torch.Tensor:
    """Return random embeddings in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def turn(seed: int, width: int) -> torch.Tensor:
    """Return a random orthogonal matrix."""
    turned: torch.Tensor = torch.linalg.qr(rows(seed, width, width)).Q
    return turned

"""Differential privacy of uploaded tables: clipping, Gaussian noise, and what both guarantee.

What is protected is a client's whole table in every round: whoever sees all of its uploads cannot
tell it from any other table (local differential privacy). Which labels a client holds, its counts
and its weights are not covered, only the values of the table.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def clip_norm(table: Float[Tensor, "*S"], *, limit: float) -> Float[Tensor, "*S"]:
    """Return the table scaled down so that its L2 norm, over all values, is at most `limit`."""
    length: Tensor = torch.linalg.vector_norm(table)
    return table * (limit / length.clamp_min(limit))


def add_noise(
    table: Float[Tensor, "*S"], *, std: float, generator: torch.Generator | None = None
) -> Float[Tensor, "*S"]:
    """Return the table with noise from N(0, std^2) added to each value.

    A generator of the CPU. Noise protects nobody from those who know its seed, so the seed of a
    real client must be its own secret, never the job's.
    """
    noise = torch.randn(table.shape, dtype=table.dtype, generator=generator)
    return table + std * noise.to(table.device)


def privatize(
    table: Float[Tensor, "N C"],
    *,
    clip: float,
    noise_multiplier: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N C"]:
    """Return a table of scores or embeddings, clipped to the norm `clip` and with noise.

    The noise's standard deviation is clip * noise_multiplier.
    """
    clipped = clip_norm(table, limit=clip)
    return add_noise(clipped, std=clip * noise_multiplier, generator=generator)


def privatize_probabilities(
    probs: Float[Tensor, "N C"],
    *,
    clip: float,
    noise_multiplier: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N C"]:
    """Return a table of probabilities, clipped and with noise, whose rows are probabilities again.

    What is clipped is the difference to uniform rows, so that a clipped table says less, not
    something else. The nearest rows of probabilities are taken afterwards, which costs no privacy.
    """
    uniform = 1 / probs.shape[1]
    noisy = privatize(
        probs - uniform, clip=clip, noise_multiplier=noise_multiplier, generator=generator
    )
    return nearest_probabilities(noisy + uniform)


def nearest_probabilities(rows: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Return the nearest row of probabilities to each row, in Euclidean distance.

    Source: Duchi et al., ICML 2008 (projection onto the simplex).
    """
    ordered = rows.sort(1, descending=True).values
    ranks = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    thresholds = (ordered.cumsum(1) - 1) / ranks
    last = (ordered > thresholds).sum(1, keepdim=True) - 1
    return (rows - thresholds.gather(1, last)).clamp_min(0)


def epsilon(*, noise_multiplier: float, releases: int, delta: float) -> float:
    """Return epsilon of (epsilon, delta) after a client's `releases` tables.

    Two tables of norm `clip` may be 2 * clip apart, so the noise counts with half its multiplier.
    Drawing a part of the clients adds nothing: the server knows who was drawn. Without noise it is
    infinite, without a release 0. Computed by Opacus' accountant of Renyi differential privacy, as
    an upper bound.
    """
    if releases == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    # Loading takes seconds, and few jobs ask for noise.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier / 2, 1.0, releases)]
    return float(accountant.get_epsilon(delta=delta))

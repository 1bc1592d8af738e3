"""Rules that make one row of probabilities of the rows that several clients sent for a sample.

Clients that did not send a sample are left out of its row, so a client that vanishes moves nobody
else's weight. Rows are probabilities: the caller has refused others (`soft_targets`).

Source: Itahara et al., IEEE TMC 2021, arXiv 2008.06180 (DS-FL): `mean` is its simple aggregation
(SA), `sharpened` of it the entropy reduction aggregation (ERA); arXiv 2504.19602 (SCARLET): `power`
is its enhanced ERA.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Bool, Float
from torch import Tensor

LEAST_PROBABILITY = 1e-12
"""Lower bound of a probability before its logarithm is taken."""


class Decided(NamedTuple):
    """A row per sample, and whether the rule could decide it; undecided rows are uniform."""

    probs: Float[Tensor, "N C"]
    decided: Bool[Tensor, " N"]


def mean(
    probs: Float[Tensor, "K N C"], sent: Bool[Tensor, "K N"] | None = None
) -> Float[Tensor, "N C"]:
    """Return the mean of the rows that were sent (SA).

    One client moves a row by at most 1 / clients in half the L1 norm, whatever it sends.
    Raises `ValueError` where nobody sent a sample.
    """
    shares = _sent(probs, sent).to(probs.dtype)
    rows = torch.where(_sent(probs, sent)[..., None], probs, 0.0)
    return rows.sum(0) / shares.sum(0)[:, None]


def sharpened(probs: Float[Tensor, "N C"], *, temperature: float = 0.1) -> Float[Tensor, "N C"]:
    """Return softmax(probs / temperature): applied to the mean at the server, this is ERA.

    It keeps the order of the classes, but lowers the entropy only where one class stands out: the
    scores lie within 1 / temperature, so many classes with a low peak become flatter. Compare
    `soft_targets.entropies` before and after.
    """
    return (probs / temperature).softmax(-1)


def power(probs: Float[Tensor, "N C"], *, exponent: float = 2.0) -> Float[Tensor, "N C"]:
    """Return probs^exponent, normalised: with an exponent above 1 the entropy never rises.

    Probabilities below 1e-12 count as that.
    """
    return (exponent * probs.clamp_min(LEAST_PROBABILITY).log()).softmax(-1)


def vote(
    probs: Float[Tensor, "K N C"], sent: Bool[Tensor, "K N"] | None = None
) -> Float[Tensor, "N C"]:
    """Return the share of clients that predict each class; ties go to the class that comes first.

    It is the limit of sharpening each client's rows before they are averaged. Raises `ValueError`
    where nobody sent a sample.
    """
    choices = F.one_hot(probs.nan_to_num(-1).argmax(-1), probs.shape[-1]).to(probs.dtype)
    return mean(choices, sent)


def median(probs: Float[Tensor, "K N C"], sent: Bool[Tensor, "K N"] | None = None) -> Decided:
    """Return the median over clients of each class, normalised; of two middle values their mean.

    A minority of clients cannot move it at will. A row is undecided where every class has the
    median 0. Raises `ValueError` where nobody sent a sample.
    """
    ranks, senders, ordered = _ordered(probs, sent)
    middle = (ranks == (senders - 1) // 2) | (ranks == senders // 2)
    return _normalised(_mean_where(middle, ordered))


def trimmed_mean(
    probs: Float[Tensor, "K N C"], sent: Bool[Tensor, "K N"] | None = None, *, share: float
) -> Decided:
    """Return the mean of each class without its lowest and highest values, normalised.

    floor(share * clients) values are left out at each end; `share` is below 0.5. Raises
    `ValueError` for another share, and where nobody sent a sample.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"share must be at least 0 and below 0.5, got {share}")
    ranks, senders, ordered = _ordered(probs, sent)
    left_out = (share * senders).floor()
    return _normalised(_mean_where((ranks >= left_out) & (ranks < senders - left_out), ordered))


def distances_from_others(
    probs: Float[Tensor, "K N C"], sent: Bool[Tensor, "K N"] | None = None
) -> Float[Tensor, " K"]:
    """Return how far each client is from the mean of the others: total variation, 0 to 1.

    That is half the L1 distance of two rows, averaged over the samples that the client and another
    one sent. A client without such samples has distance 0.
    """
    counted = _sent(probs, sent)
    rows = torch.where(counted[..., None], probs, 0.0)
    others = counted.sum(0) - counted.long()
    mean_others = (rows.sum(0) - rows) / others.clamp_min(1)[..., None].to(probs.dtype)
    comparable = (counted & (others > 0)).to(probs.dtype)
    apart = (rows - mean_others).abs().sum(-1) / 2
    return (apart * comparable).sum(1) / comparable.sum(1).clamp_min(1)


def _sent(probs: Tensor, sent: Bool[Tensor, "K N"] | None) -> Bool[Tensor, "K N"]:
    """Return which rows count; raises `ValueError` where a sample has none."""
    if sent is None:
        sent = torch.ones(probs.shape[:2], dtype=torch.bool, device=probs.device)
    missing = (~sent.any(0)).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"nobody sent sample {missing[0]} ({len(missing)} of {probs.shape[1]} samples have no "
            "sender); leave such samples out"
        )
    return sent


def _ordered(
    probs: Float[Tensor, "K N C"], sent: Bool[Tensor, "K N"] | None
) -> tuple[Float[Tensor, "K 1 1"], Float[Tensor, " N 1"], Float[Tensor, "K N C"]]:
    """Return ranks from 0, how many sent each sample, and each class's values in ascending order.

    Values that were not sent come last.
    """
    counted = _sent(probs, sent)
    ordered = torch.where(counted[..., None], probs, torch.inf).sort(0).values
    ranks = torch.arange(len(probs), dtype=probs.dtype, device=probs.device)[:, None, None]
    return ranks, counted.sum(0).to(probs.dtype)[:, None], ordered


def _mean_where(
    chosen: Bool[Tensor, "K N 1"], values: Float[Tensor, "K N C"]
) -> Float[Tensor, "N C"]:
    return torch.where(chosen, values, 0.0).sum(0) / chosen.sum(0)


def _normalised(rows: Float[Tensor, "N C"]) -> Decided:
    whole = rows.sum(1, keepdim=True)
    decided = whole > 0
    probs = torch.where(decided, rows / torch.where(decided, whole, 1.0), 1 / rows.shape[1])
    return Decided(probs, decided.squeeze(1))

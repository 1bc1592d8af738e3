"""Mean outputs per label: what federated distillation (FD) exchanges instead of weights.

Each client averages its network's outputs over the samples of a label. The teacher of a client is
the mean of the other clients' rows. A row exists only where somebody holds the label: `held` says
for which labels, and rows that do not exist are zeros that no loss may read.

Values may be probabilities (FD), scores before softmax (FedDistill) or embeddings (FedProto).
Source: Jeong et al., 2018, arXiv 1811.11479 (algorithm 1).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workers.distill.functional.federated import soft_targets


class LabelMeans(NamedTuple):
    """One row per label, and for which labels there is one; other rows are zeros."""

    rows: Float[Tensor, "*K C D"]
    held: Bool[Tensor, "*K C"]


class LabelSums(NamedTuple):
    """Sums of outputs per label and how many were added; both decay where recency counts."""

    sums: Float[Tensor, "C D"]
    counts: Float[Tensor, " C"]


def empty_sums(
    classes: int, width: int, *, count: float = 0.0, like: Float[Tensor, "..."]
) -> LabelSums:
    """Return sums of zeros, with the dtype and device of `like`.

    `count` 1 is how FedGen's code starts its FedDistill; it shrinks all means towards zero.
    """
    return LabelSums(like.new_zeros(classes, width), like.new_full((classes,), count))


def add_batch(
    before: LabelSums,
    values: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    decay: float = 1.0,
    counted: Bool[Tensor, " N"] | None = None,
) -> LabelSums:
    """Return the sums after a batch, sample by sample: sum = decay * sum + value, likewise counts.

    `decay` 1 is the paper's plain mean; below 1, later samples of a label weigh more. Samples that
    are not `counted` (padding) are left out. No gradient flows into the sums.
    """
    members = labels[:, None] == torch.arange(len(before.counts), device=labels.device)
    members = members if counted is None else members & counted[:, None]
    shares = members.to(values.dtype)
    kept = torch.ones_like(before.counts)
    if decay != 1:
        # How many samples of the label follow this one in the batch.
        later = shares.flip(0).cumsum(0).flip(0) - shares
        kept = decay ** shares.sum(0)
        shares = shares * decay**later
    sums = kept[:, None] * before.sums + shares.T @ values.detach()
    return LabelSums(sums, kept * before.counts + shares.sum(0))


def means(sums: LabelSums) -> LabelMeans:
    """Return the mean output of each label; labels that were never counted have no row."""
    held = sums.counts > 0
    rows = sums.sums / torch.where(held, sums.counts, 1.0)[:, None]
    return LabelMeans(rows * held[:, None], held)


def leave_one_out(uploads: LabelMeans) -> LabelMeans:
    """Return the teacher of each client: the mean over the other clients that hold the label.

    Differs: the paper divides by all other clients, which is the same where every client holds
    every label; see `leave_one_out_all`. A label that no other client holds has no row.
    """
    return without_own(uploads, total(uploads))


def leave_one_out_all(uploads: LabelMeans) -> LabelMeans:
    """Return the teacher of each client as the paper writes it: divided by all others, K - 1.

    Clients without the label count as rows of zeros, so that rows may have a sum below 1, and
    are no probabilities then. With one client there is no row.
    """
    rows, held = _filled(uploads)
    clients = len(rows)
    if clients < 2:
        return LabelMeans(torch.zeros_like(rows), torch.zeros_like(held))
    others = held.sum(0) - held.long()
    return LabelMeans((rows.sum(0) - rows) / (clients - 1), others > 0)


class LabelTotals(NamedTuple):
    """Sum of all clients' rows of each label, and how many clients hold it: the same for all."""

    sums: Float[Tensor, "C D"]
    holders: Int[Tensor, " C"]


def total(uploads: LabelMeans) -> LabelTotals:
    """Return the sum over clients, from which each client can subtract its own rows."""
    rows, held = _filled(uploads)
    return LabelTotals(rows.sum(0), held.sum(0))


def without_own(own: LabelMeans, totals: LabelTotals) -> LabelMeans:
    """Return the mean over the other holders: (sum - own row) / (holders - 1 if own, else holders).

    `own` may be one client's means or those of all clients.
    """
    rows, held = _filled(own)
    others = totals.holders - held.long()
    has_teacher = others > 0
    rows = (totals.sums - rows) / others.clamp_min(1)[..., None].to(rows.dtype)
    # The difference of a sum and its only summand is not 0 to the last digit.
    return LabelMeans(torch.where(has_teacher[..., None], rows, 0.0), has_teacher)


def mean_of_holders(uploads: LabelMeans, weights: Float[Tensor, "K C"] | None = None) -> LabelMeans:
    """Return the mean over the clients that hold a label; with weights such as sample counts.

    Without weights each holder counts the same.
    """
    rows, held = _filled(uploads)
    shares = held.to(rows.dtype) if weights is None else weights * held
    whole = shares.sum(0)
    found = whole > 0
    rows = torch.einsum("kc,kcd->cd", shares, rows) / torch.where(found, whole, 1.0)[:, None]
    return LabelMeans(rows, found)


def mean_of_all(uploads: LabelMeans) -> LabelMeans:
    """Return the plain mean over all clients; rows of clients without the label count as zeros.

    FedGen's code of FedDistill does so; `mean_of_holders` leaves such clients out.
    """
    rows, held = _filled(uploads)
    return LabelMeans(rows.mean(0), torch.ones_like(held[0]))


def cross_entropies(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], teacher: LabelMeans
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return each sample's cross-entropy with its label's row, and whether there is such a row.

    Without a row it is 0, without a gradient. The teacher's rows are probabilities.
    """
    has_teacher = teacher.held[labels]
    apart = soft_targets.cross_entropies(logits, teacher.rows[labels])
    return apart * has_teacher, has_teacher


def kl_divergences(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    teacher: LabelMeans,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return each sample's KL(softmax(row of its label) || softmax(logits)), as FedDistill.

    The teacher's rows are scores. Second comes whether there is such a row; without one it is 0.
    """
    has_teacher = teacher.held[labels]
    targets = teacher.rows[labels].softmax(1)
    return soft_targets.kl_divergences(logits, targets) * has_teacher, has_teacher


def _filled(uploads: LabelMeans) -> LabelMeans:
    """Return the means with zeros where there is no row, whatever stood there."""
    rows = torch.where(uploads.held[..., None], uploads.rows, 0.0)
    return LabelMeans(rows, uploads.held)

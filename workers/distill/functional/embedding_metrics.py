"""What embeddings are worth: nearest neighbours, a linear classifier, likeness to another space.

k-NN follows DINO's protocol (Caron et al., ICCV 2021, arXiv:2104.14294, section 4.1 and appendix
F.1): cosine similarity, 20 neighbours, votes weighted by exp(similarity / 0.07).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 1024
"""Rows whose similarities to all others are in memory at a time."""
PROBE_STEPS = 200
PROBE_WORK = 400_000_000
"""Most references x width x classes of a linear probe: minutes on one core."""
PROBE_DECAY = 1e-3
"""L2 penalty of the linear probe on standardised embeddings, beside the mean cross-entropy."""


def knn_predict(
    queries: Float[Tensor, "N D"],
    references: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    classes: int,
    leaves_self_out: bool = False,
) -> Int[Tensor, " N"]:
    """Return the class that the nearest references vote for; of equal votes the lowest number.

    `leaves_self_out`: row i of `queries` is row i of `references`, and no neighbour of itself.
    """
    near = _nearest(queries, references, leaves_self_out=leaves_self_out)
    votes = torch.zeros(len(queries), classes, device=queries.device)
    weights = (near.values / TEMPERATURE).exp()
    votes.scatter_add_(1, labels[near.indices], weights)
    return votes.argmax(1)


def shared_neighbours(one: Float[Tensor, "N D"], other: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Return the mean share of an image's nearest images that are the same in both spaces.

    Of few images no more than half of the others count as near. Source: mutual k-nearest neighbours
    of Huh et al., ICML 2024, arXiv:2405.07987, appendix A.
    """
    near = max(1, min(NEIGHBOURS, (len(one) - 1) // 2))
    first = _nearest(one, one, leaves_self_out=True).indices[:, :near]
    second = _nearest(other, other, leaves_self_out=True).indices[:, :near]
    shared = (first[:, :, None] == second[:, None, :]).any(2)
    return shared.double().mean()


class _Nearest(NamedTuple):
    """Similarities and row numbers of the nearest references."""

    values: Float[Tensor, "N K"]
    indices: Int[Tensor, "N K"]


def _nearest(queries: Tensor, references: Tensor, *, leaves_self_out: bool) -> _Nearest:
    count = min(NEIGHBOURS, len(references) - leaves_self_out)
    unit_references = F.normalize(references.float(), dim=1)
    values, indices = [], []
    for first in range(0, len(queries), CHUNK):
        rows = F.normalize(queries[first : first + CHUNK].float(), dim=1)
        similarities = rows @ unit_references.mT
        if leaves_self_out:
            places = torch.arange(len(rows), device=rows.device)
            similarities[places, first + places] = -torch.inf
        found = similarities.topk(count, dim=1)
        values.append(found.values)
        indices.append(found.indices)
    return _Nearest(torch.cat(values), torch.cat(indices))


def cosine_similarity(one: Float[Tensor, "N D"], other: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return the mean cosine of the angle between the two embeddings of each image."""
    return F.cosine_similarity(one.double(), other.double(), dim=1).mean()


def linear_probe_predict(
    queries: Float[Tensor, "N D"],
    references: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    classes: int,
) -> Int[Tensor, " N"]:
    """Return the classes that a logistic regression on the references gives the queries.

    Embeddings are standardised by the references; L-BFGS from zero weights in float64, so that
    nothing is drawn. Of more references than `PROBE_WORK` allows, as many are taken, evenly spread.
    """
    most = max(classes, PROBE_WORK // (references.shape[1] * classes))
    if len(references) > most:
        rows = torch.linspace(0, len(references) - 1, most, device=references.device).round().long()
        references, labels = references[rows], labels[rows]
    mean = references.double().mean(0)
    # Of one reference alone, there is no deviation to correct.
    deviation = references.double().std(0, correction=0).clamp(min=1e-6)
    inputs = (references.double() - mean) / deviation
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.double, device=inputs.device)
    bias = torch.zeros(classes, dtype=torch.double, device=inputs.device)
    # An evaluation runs in inference mode, whose tensors take no gradients.
    with torch.inference_mode(mode=False), torch.enable_grad():
        inputs, known = inputs.clone(), labels.clone()
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = PROBE_DECAY / 2 * weight.square().sum()
            loss = F.cross_entropy(F.linear(inputs, weight, bias), known) + penalty
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]  # the same
    found = F.linear((queries.double() - mean) / deviation, weight.detach(), bias.detach())
    return found.argmax(1)

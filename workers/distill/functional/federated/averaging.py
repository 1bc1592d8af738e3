"""Averages of weights and of outputs over clients, and the pull towards the server's weights.

Source: McMahan et al., AISTATS 2017, arXiv 1602.05629 (FedAvg); Li et al., MLSys 2020, arXiv
1812.06127 (FedProx).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Weighting: TypeAlias = Literal["samples", "uniform"]


def client_weights(
    samples: Int[Tensor, " K"], *, weighting: Weighting = "samples"
) -> Float[Tensor, " K"]:
    """Return the weight of each client, in float64 and with sum 1.

    samples: in proportion to its number of samples; uniform: the same for all. Raises `ValueError`
    without clients, and where none has a sample.
    """
    if not len(samples):
        raise ValueError("no client to average over; a round needs at least one reply")
    counts = samples.double() if weighting == "samples" else torch.ones_like(samples).double()
    if bool((counts < 0).any()) or not float(counts.sum()):
        raise ValueError(f"sample counts must not be negative nor all 0, got {samples.tolist()}")
    return counts / counts.sum()


def average_states(
    states: Sequence[Mapping[str, Tensor]], weights: Float[Tensor, " K"]
) -> dict[str, Tensor]:
    """Return the weighted mean of state dicts that have the same names and shapes.

    Floating-point entries are averaged in float64, running statistics included. Others, such as
    counters of batches, are the first client's. Raises `ValueError` where names or shapes differ.
    """
    if len(states) != len(weights):
        raise ValueError(f"{len(states)} state dicts, but {len(weights)} weights")
    first = states[0]
    for place, state in enumerate(states):
        _check_alike(first, state, place)
    return {
        name: _average([state[name] for state in states], weights)
        if value.is_floating_point()
        else value.clone()
        for name, value in first.items()
    }


def _average(values: list[Tensor], weights: Float[Tensor, " K"]) -> Tensor:
    whole = torch.zeros_like(values[0], dtype=torch.float64)
    for value, weight in zip(values, weights.tolist(), strict=True):
        whole.add_(value.double(), alpha=weight)
    return whole.to(values[0].dtype)


def _check_alike(first: Mapping[str, Tensor], state: Mapping[str, Tensor], place: int) -> None:
    different = sorted(first.keys() ^ state.keys())
    if different:
        raise ValueError(
            f"state dict {place} has other names than the first: {', '.join(different[:3])}; only "
            "clients with the same network can be averaged"
        )
    for name, value in first.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{name} is {list(state[name].shape)} in state dict {place}, but "
                f"{list(value.shape)} in the first"
            )


def proximal_penalty(
    weights: Mapping[str, Tensor], anchors: Mapping[str, Tensor], *, mu: float
) -> Float[Tensor, ""]:
    """Return (mu / 2) * ||weights - anchors||^2; its gradient is mu * (weights - anchors).

    Raises `KeyError` for weights without an anchor.
    """
    apart = [(value - anchors[name].detach()).square().sum() for name, value in weights.items()]
    return mu / 2 * torch.stack(apart).sum()


def mean_scores(scores: Float[Tensor, "K N C"]) -> Float[Tensor, "N C"]:
    """Return the mean over clients of the scores before softmax.

    The sum has the same largest class, but its softmax is that of the mean at temperature 1 / K.
    """
    return scores.mean(0)


def mean_probabilities(scores: Float[Tensor, "K N C"]) -> Float[Tensor, "N C"]:
    """Return the mean over clients of softmax(scores)."""
    return scores.softmax(-1).mean(0)

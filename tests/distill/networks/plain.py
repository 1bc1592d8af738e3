"""Layers read from a state dictionary by name, for writing a network down a second time."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from workers.distill.networks import catalog, interface

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Layers:
    """Convolutions, norms and linear layers in evaluation mode, by their names in a checkpoint."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def conv(self, name: str, maps: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return functional.conv2d(
            maps,
            weight,
            self.state.get(f"{name}.bias"),
            stride=stride,
            padding=weight.shape[2] // 2,
            groups=groups,
        )

    def norm(self, name: str, maps: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            self.state[f"{name}.{part}"][:, None, None] for part in NORM[:4]
        )
        return (maps - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def linear(self, name: str, pooled: Tensor) -> Tensor:
        return pooled @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def shuffled(maps: Tensor, groups: int) -> Tensor:
    """Deal the channels out: the first of every group, then the second of every group."""
    per_group = maps.shape[1] // groups
    order = [group * per_group + place for place in range(per_group) for group in range(groups)]
    return maps[:, order]


def build(
    reference: str, *, side: int = 32, seed: int = 0, **arguments: object
) -> interface.Network:
    """Build a network in float64 whose norms change what passes them."""
    torch.manual_seed(seed)
    network = catalog.build(
        reference, classes=5, channels=3, height=side, width=side, arguments=arguments
    ).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.copy_(torch.randn(tensor.shape, generator=draw) / 10)
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return network


def pictures(side: int = 32) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, side, side, generator=draw, dtype=torch.float64)


def check(
    seen: interface.Features, *, logits: Tensor, stages: list[Tensor], before: list[Tensor]
) -> None:
    """Compare what a network shows with what was computed a second time."""
    for mine, theirs in (
        (seen.logits, logits),
        *zip(seen.stages, stages, strict=True),
        *zip(seen.pre_activations, before, strict=True),
    ):
        # Both in float64; sums of up to some thousand terms in two orders.
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def names(network: interface.Network) -> set[str]:
    return set(network.state_dict())


def norm_names(prefix: str) -> set[str]:
    return {f"{prefix}.{part}" for part in NORM}

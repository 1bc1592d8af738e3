"""The server's own model, and what a method may do with it while it aggregates."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill.data import stateless_rng
from workers.distill.federated import client
from workers.distill.federated.client import ClientContext
from workers.distill.methods.federated.base import MakeOptimizer
from workers.distill.networks.interface import Network
from workers.distill.training.step import DistillationStep
from workers.distill.training.teachers import NoTeacher

NAME = "server"
DRAW = 21
"""What random numbers are for."""


class ServerModel:
    """The student's network at the server; see `methods.federated.base.Server`."""

    def __init__(self, network: Network, shared: ClientContext) -> None:
        self._network = network
        self._shared = shared
        self._seed = client.seed_of(shared.training.seed, NAME)
        self._scratch: Network | None = None
        self._step = DistillationStep(
            network, shared.method, NoTeacher(shared.device), shared.preprocess, shared.precision
        )
        self.round = 0

    @property
    def network(self) -> Network:
        """Return the server's model."""
        return self._network

    @property
    def rounds(self) -> int:
        """Return the number of rounds in all."""
        return self._shared.training.epochs

    @property
    def generator(self) -> torch.Generator:
        """Return random numbers of this round, on the CPU."""
        return torch.Generator().manual_seed(stateless_rng.mix(self._seed, self.round, DRAW))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights into the server's model."""
        client.load_part(self._network, weights)

    def open_logits(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "N C"]:
        """Return logits of the round's open images by the student's network with such weights."""
        if self._scratch is None:
            self._scratch = copy.deepcopy(self._network)
        self._scratch.load_state_dict(self._network.state_dict())
        client.load_part(self._scratch, weights)
        return client.predict(self._scratch, self._shared.preprocess, self._open_images())

    def fit_open(
        self, targets: Float[Tensor, "N C"], optimizer: MakeOptimizer | None = None
    ) -> None:
        """Train the server's model on the round's open images by the method's `adapt_terms`."""
        client.fit_open(
            self._step,
            self._shared,
            targets,
            self.round,
            seed=self._seed,
            make_optimizer=optimizer,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the model's weights are the student's."""
        return {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.round = state["round"]

    def _open_images(self) -> Tensor:
        if self._shared.open_set is None:
            raise ValueError("there is no open set")
        return self._shared.open_set.of_round(self.round)

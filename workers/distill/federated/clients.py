"""The clients of a federation as the loop of rounds sees them, and those of one process.

In one process, clients are trained one after the other, which is the reference, or many at once
(`stacked`). Which of the two was taken, and why not the other, is kept and told.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from workers.distill.federated import stacked
from workers.distill.federated.client import ClientContext, LocalClient, LocalOutcome
from workers.distill.federated.protocol import Message
from workers.distill.networks.interface import Network

FEWEST_STACKED = 4
"""Clients from which on vectorising saves time, so that `auto` does it."""
MOST_STACKED = 128
"""Clients in a stack at most, so that their activations fit into memory."""


class Clients(Protocol):
    """Those who have the data: simulated in this process, or other processes."""

    @property
    def engines(self) -> dict[str, int]:
        """Return how many clients are trained in each way: `loop`, `vmap`, `remote`."""
        ...

    @property
    def not_stacked(self) -> Mapping[str, str]:
        """Return why clients are trained one after the other, by the reference of their network."""
        ...

    def names(self) -> list[str]:
        """Return who takes part, sorted."""
        ...

    def train(self, number: int, waiting: Sequence[str]) -> Sequence[Message]:
        """Let some of those train in a round (from 1) and return their replies.

        No reply means that nobody else will answer.
        """
        ...

    def receive(self, consensus: Message, waiting: Sequence[str]) -> Sequence[str]:
        """Give some of those what the server has published, and return who has it."""
        ...

    def seen(self, name: str) -> int:
        """Return the round of the newest consensus that a client has; -1 before any."""
        ...

    def losses(self) -> Mapping[str, Tensor]:
        """Return the mean terms of the clients' losses in the last round, where they are known."""
        ...

    def logits(self, images: UInt8[Tensor, "N c h w"]) -> dict[str, Float[Tensor, "N C"]]:
        """Return the answers of the clients' models that are here, by name."""
        ...

    def model(self, name: str) -> Network | None:
        """Return the model of a client, if it is here."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...


def name_of(number: int) -> str:
    """Return the name of a simulated client."""
    return f"client-{number:03}"


class LocalClients:
    """Simulated clients, all in this process."""

    def __init__(self, clients: Sequence[LocalClient], shared: ClientContext) -> None:
        self.clients = {client.name: client for client in clients}
        self._shared = shared
        self._losses: dict[int, dict[str, dict[str, Tensor]]] = {}
        self.images = 0
        """Images that were seen in training, all clients and passes."""
        self.not_stacked: dict[str, str] = {}
        self._stacks = self._stackable()

    @property
    def engines(self) -> dict[str, int]:
        """Return how many clients are trained at once (`vmap`), and how many apart (`loop`)."""
        at_once = sum(self._stacks.values())
        counts = {"vmap": at_once, "loop": len(self.clients) - at_once}
        return {name: count for name, count in counts.items() if count}

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self.clients)

    def train(self, number: int, waiting: Sequence[str]) -> list[Message]:
        """Train the first of those who wait, with others if they can be trained at once."""
        group = self._together(waiting)
        if len(group) == 1:
            client = group[0]
            client.start_training()
            results = {client.name: client.fit(number)}
        else:
            results = stacked.train(group, number)
        return [self._reply(client, number, results[client.name]) for client in group]

    def receive(self, consensus: Message, waiting: Sequence[str]) -> list[str]:
        """Give the consensus to the first of those who wait, with others if they can be at once."""
        group = self._together(waiting)
        targets = group[0].targets(consensus)
        if targets is None or len(group) == 1:
            for client in group:
                client.receive(consensus)
        else:
            for client in group:
                client.keep(consensus)
            stacked.fit_open(group, targets, consensus.round)
        return [client.name for client in group]

    def seen(self, name: str) -> int:
        """Return the round of the newest consensus that a client has."""
        return self.clients[name].seen

    def losses(self) -> dict[str, Tensor]:
        """Return the mean terms of the losses of all clients that trained in the last round."""
        if not self._losses:
            return {}
        rows = list(self._losses[max(self._losses)].values())
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def logits(self, images: UInt8[Tensor, "N c h w"]) -> dict[str, Float[Tensor, "N C"]]:
        """Return the answers of all clients."""
        answers: dict[str, Tensor] = {}
        for group in self._groups(self.names()):
            if len(group) == 1:
                answers[group[0].name] = group[0].predict(images)
            else:
                rows = stacked.predict(group, images)
                answers |= {client.name: rows[place] for place, client in enumerate(group)}
        return answers

    def model(self, name: str) -> Network:
        """Return the model by which a client answers."""
        return self.clients[name].model

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "clients": {name: client.state_dict() for name, client in self.clients.items()},
            "losses": self._losses,
            "images": self.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, own in state["clients"].items():
            self.clients[name].load_state_dict(own)
        self._losses, self.images = state["losses"], state["images"]

    def _reply(self, client: LocalClient, number: int, trained: LocalOutcome) -> Message:
        if number not in self._losses:
            self._losses = {number: {}}
        self._losses[number][client.name] = dict(trained.losses)
        self.images += trained.images
        return client.reply(number, trained)

    def _groups(self, names: Sequence[str]) -> Iterator[list[LocalClient]]:
        waiting = list(names)
        while waiting:
            group = self._together(waiting)
            yield group
            taken = {client.name for client in group}
            waiting = [name for name in waiting if name not in taken]

    def _together(self, waiting: Sequence[str]) -> list[LocalClient]:
        """Return the first client, with those that can be trained at once with it."""
        first = self.clients[waiting[0]]
        if not self._stacks[first.name]:
            return [first]
        key = _key(first)
        others = (self.clients[name] for name in waiting if self._stacks[name])
        return [client for client in others if _key(client) == key][:MOST_STACKED]

    def _stackable(self) -> dict[str, bool]:
        """Return for each client whether it may be trained with others at once."""
        groups: dict[tuple[str, str], list[LocalClient]] = {}
        for client in self.clients.values():
            groups.setdefault(architecture(client.network), []).append(client)
        return {
            client.name: decided
            for group in groups.values()
            for decided in [self._may_stack(group)]
            for client in group
        }

    def _may_stack(self, group: list[LocalClient]) -> bool:
        wanted, network = self._shared.federation.engine, group[0].network
        fewest = FEWEST_STACKED if wanted == "auto" else 2
        if wanted == "loop" or len(group) < fewest:
            return False
        reason, size = stacked.refusal(network, self._shared), stacked.epochs_bytes(group)
        if reason is None and size > stacked.LARGEST_EPOCHS_BYTES:
            reason = (
                f"the images of a round take {size} bytes, more than {stacked.LARGEST_EPOCHS_BYTES}"
            )
        if reason is not None:
            self.not_stacked[network.reference] = reason
        return reason is None


def architecture(network: Network) -> tuple[str, str]:
    """Return what two networks have in common whose weights fit each other."""
    return network.reference, json.dumps(dict(network.arguments), sort_keys=True, default=str)


def _key(client: LocalClient) -> tuple[Any, ...]:
    """Return what clients that are trained at once have in common."""
    return (*architecture(client.network), client.seen, tuple(sorted(client.memory)))

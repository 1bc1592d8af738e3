"""A small federation in this process, with real clients and a real server."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.federated import stacked
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.protocol import Message
from workers.distill.federated.server import ServerModel
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision

CPU = torch.device("cpu")
CLASSES = 4
SIDE = 4


def images_of(labels: Tensor, *, seed: int) -> Tensor:
    """Return images that show their label: a bright quarter, and noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (len(labels), 1, SIDE, SIDE), generator=generator)
    for place, label in enumerate(labels.tolist()):
        row, column = 2 * (label // 2), 2 * (label % 2)
        images[place, 0, row : row + 2, column : column + 2] += 120
    return images.to(torch.uint8)


def network(*, seed: int = 0, widths: Sequence[int] = (8, 6)) -> Network:
    torch.manual_seed(seed)
    return networks.build(
        "retort/mlp",
        classes=CLASSES,
        channels=1,
        height=SIDE,
        width=SIDE,
        arguments={"widths": list(widths)},
    )


@dataclass
class Parties:
    """Clients, their server, and the messages of the newest round."""

    clients: list[LocalClient]
    server: ServerModel
    shared: ClientContext
    replies: list[Message]
    consensus: Message

    @property
    def method(self) -> Any:  # Any: the federated method of a test
        return self.shared.method

    def publish(self, tensors: dict[str, Tensor], number: int) -> None:
        self.consensus = Message(
            method=self.method.name,
            round=number,
            sender="server",
            classes=CLASSES,
            tensors={name: value.detach().clone() for name, value in tensors.items()},
        )
        for client in self.clients:
            client.receive(self.consensus)

    def run(self, number: int, *, at_once: bool = False) -> None:
        """Make a round (from 1), of all clients."""
        self.server.round = number
        if at_once:
            results = stacked.train(self.clients, number)
            self.replies = [c.reply(number, results[c.name]) for c in self.clients]
        else:
            self.replies = [client.train(number) for client in self.clients]
        self.publish(self.method.aggregate(self.replies, self.server), number)


def gather(
    name: str,
    held: Sequence[Sequence[int]] = ((0, 0, 1, 1, 0), (1, 2, 2), (0, 3, 3, 3, 2, 1, 0)),
    *,
    federation: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    widths: Sequence[Sequence[int]] | None = None,
    **params: Any,
) -> Parties:
    """Return clients that hold such labels, after the start; `widths` are those of each network."""
    student = network()
    method, accepted = catalog.find({"name": name, "federation": federation or {}, **params})
    torch.manual_seed(1)
    built = method(accepted, student, None)
    if not isinstance(built, FederatedMethod):
        raise TypeError(f"{name} is no federated method")
    given = {
        "epochs": 4,
        "batch_size": 2,
        "augmentation": "none",
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        **(training or {}),
    }
    settings = expand(given)
    stored = Input(channels=1, height=SIDE, width=SIDE, mean=[0.5], std=[0.5])
    open_images = images_of(torch.arange(12) % CLASSES, seed=99)
    shared = ClientContext(
        method=built,
        training=settings,
        preprocess=Preprocessor("student", stored, stored, CPU),
        precision=Precision("float32", CPU),
        classes=CLASSES,
        open_set=OpenSet(open_images, None, 0) if built.uses_open_set else None,
    )
    clients = []
    for place, own in enumerate(held):
        labels = torch.tensor(own)
        images = images_of(labels, seed=place)
        batches = BatchLoader(images, labels, training=settings, flip=False, device=CPU)
        other = copy.deepcopy(student) if widths is None else network(widths=widths[place])
        clients.append(LocalClient(f"client-{place:03}", other, batches, shared))
    parties = Parties(clients, ServerModel(student, shared), shared, [], Message("", 0, "", 1, {}))
    parties.publish(built.start(parties.server), 0)
    return parties

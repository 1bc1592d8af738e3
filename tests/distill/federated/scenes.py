"""Small federations without a run around them.

`federation` gives the rounds of a method, made as a run makes them, of clients with pictures of
bright rows. `gather` gives clients and a server whose messages a test looks at, of pictures of
bright quarters, each with the labels that the test chooses.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.distill import folders
from workers.distill.config.job import Input
from workers.distill.config.training import Training, expand
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.federated import client, stacked
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import LocalClients, name_of
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.protocol import Message
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import ServerModel
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision

CPU = torch.device("cpu")
CLASSES = 3
QUARTERS, QUARTERS_SIDE = 4, 4
"""Classes of pictures of bright quarters, and their height and width."""
SIZES = (9, 11, 5, 8)
"""Images of the clients: batches of 4 end in one of five, a short one and a full one."""
PLAIN: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 1e-3},
    "schedule": {"name": "constant"},
    "augmentation": "none",
}


def network(
    reference: str = "retort/mlp",
    seed: int = 0,
    *,
    classes: int = CLASSES,
    side: int = 8,
    **arguments: Any,
) -> Network:
    """Return a small network with weights of this seed."""
    torch.manual_seed(seed)
    return networks.build(
        reference, classes=classes, channels=1, height=side, width=side, arguments=arguments
    )


def quarters_network(*, widths: Sequence[int] = (8, 6)) -> Network:
    """Return a network for pictures of bright quarters."""
    return network(classes=QUARTERS, side=QUARTERS_SIDE, widths=list(widths))


def quarters(labels: Tensor, *, seed: int) -> Tensor:
    """Return images that show their label: a bright quarter, and noise."""
    generator = torch.Generator().manual_seed(seed)
    sides = (QUARTERS_SIDE, QUARTERS_SIDE)
    images = torch.randint(0, 120, (len(labels), 1, *sides), generator=generator)
    for place, label in enumerate(labels.tolist()):
        row, column = 2 * (label // 2), 2 * (label % 2)
        images[place, 0, row : row + 2, column : column + 2] += 120
    return images.to(torch.uint8)


def images(sizes: Sequence[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return images and labels of each client; each lacks the class of its number."""
    made = []
    for number, size in enumerate(sizes):
        pixels, labels = folders.images(3 * size, CLASSES, seed + number)
        kept = (labels != number % CLASSES).nonzero().flatten()[:size]
        made.append((pixels[kept], labels[kept]))
    return made


def context(method: FederatedMethod, training: Training, *, open_images: int = 7) -> ClientContext:
    """Return what clients share; the open set is empty with 0 images."""
    open_set = None
    if open_images:
        pixels, _ = folders.images(open_images, CLASSES, 99)
        per_round = method.params.federation.open_images_per_round
        open_set = OpenSet(pixels, per_round, training.seed)
    return shared_by(method, training, Input.model_validate(folders.INPUT), CLASSES, open_set)


def shared_by(
    method: FederatedMethod,
    training: Training,
    size: Input,
    classes: int,
    open_set: OpenSet | None,
) -> ClientContext:
    """Return what the clients of a method share."""
    return ClientContext(
        method=method,
        training=training,
        preprocess=Preprocessor("student", size, size, CPU),
        precision=Precision("float32", CPU),
        classes=classes,
        open_set=open_set,
    )


def local_client(
    number: int,
    network: Network,
    pixels: Tensor,
    labels: Tensor,
    training: Training,
    shared: ClientContext,
) -> LocalClient:
    """Return the client of this number, which holds these images."""
    batches = BatchLoader(pixels, labels, training=training, flip=False, device=CPU)
    return LocalClient(name_of(number), network, batches, shared)


def federation(
    name: str = "fedavg",
    *,
    sizes: Sequence[int] = SIZES,
    training: dict[str, Any] | None = None,
    reference: str = "retort/mlp",
    arguments: dict[str, Any] | None = None,
    open_images: int = 7,
    scored: bool = True,
    others: Mapping[int, Network] | None = None,
    warnings: list[tuple[str, str]] | None = None,
    **choices: Any,
) -> Rounds:
    """Return the rounds of a method before the first one; `federation` may be among the choices.

    `others` are networks of single clients that differ from the student's.
    """
    settings = {"engine": "loop", "clients": len(sizes), **choices.pop("federation", {})}
    full = expand({**PLAIN, **(training or {})})
    student = network(reference, **(arguments or {}))
    method = catalog.build({"name": name, "federation": settings, **choices}, student, None)
    assert isinstance(method, FederatedMethod)
    shared = context(method, full, open_images=open_images)
    held = [
        local_client(
            number,
            (others or {}).get(number) or network(reference, **(arguments or {})),
            *own,
            full.model_copy(update={"seed": client.seed_of(full.seed, str(number))}),
            shared,
        )
        for number, own in enumerate(images(sizes))
    ]
    told = [] if warnings is None else warnings
    pixels, labels = folders.images(30, CLASSES, 55)
    return Rounds(
        LocalClients(held, shared),
        ServerModel(student, shared),
        shared,
        student,
        Scoring(LabelledImages(pixels, labels) if scored else None, [one.name for one in held]),
        lambda code, message: told.append((code, message)),
        rows=sum(sizes),
        label_counts={one.name: one.label_counts.tolist() for one in held},
    )


def run(rounds: Rounds, count: int) -> Rounds:
    """Make so many rounds."""
    for _ in range(count):
        while not rounds.work():
            pass
    return rounds


def weights(network: Network) -> Tensor:
    """Return all weights in one row."""
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def client_weights(rounds: Rounds) -> dict[str, Tensor]:
    """Return the weights of each simulated client."""
    assert isinstance(rounds.clients, LocalClients)
    return {name: weights(one.network) for name, one in rounds.clients.clients.items()}


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
            classes=QUARTERS,
            tensors={name: value.detach().clone() for name, value in tensors.items()},
        )
        for one in self.clients:
            one.receive(self.consensus)

    def run(self, number: int, *, at_once: bool = False) -> None:
        """Make a round (from 1), of all clients."""
        self.server.round = number
        if at_once:
            results = stacked.train(self.clients, number)
            self.replies = [one.reply(number, results[one.name]) for one in self.clients]
        else:
            self.replies = [one.train(number) for one in self.clients]
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
    student = quarters_network()
    torch.manual_seed(1)
    built = catalog.build({"name": name, "federation": federation or {}, **params}, student, None)
    if not isinstance(built, FederatedMethod):
        raise TypeError(f"{name} is no federated method")
    sgd = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    plain = {**PLAIN, "epochs": 4, "batch_size": 2, "optimizer": sgd}
    settings = expand({**plain, **(training or {})})
    stored = Input(channels=1, height=QUARTERS_SIDE, width=QUARTERS_SIDE, mean=[0.5], std=[0.5])
    open_images = quarters(torch.arange(12) % QUARTERS, seed=99)
    open_set = OpenSet(open_images, None, 0) if built.uses_open_set else None
    shared = shared_by(built, settings, stored, QUARTERS, open_set)
    clients = []
    for number, own in enumerate(held):
        labels = torch.tensor(own)
        own_network = (
            copy.deepcopy(student) if widths is None else quarters_network(widths=widths[number])
        )
        pixels = quarters(labels, seed=number)
        clients.append(local_client(number, own_network, pixels, labels, settings, shared))
    parties = Parties(clients, ServerModel(student, shared), shared, [], Message("", 0, "", 1, {}))
    parties.publish(built.start(parties.server), 0)
    return parties

"""Small federations without a run around them: a few clients with pictures of bright rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.distill import folders
from workers.distill.config.job import Input
from workers.distill.config.training import Training, expand
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.federated import client
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import LocalClients, name_of
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import ServerModel
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision

CPU = torch.device("cpu")
CLASSES = 3
SIZES = (9, 11, 5, 8)
"""Images of the clients: batches of 4 end in one of five, a short one and a full one."""
PLAIN: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 1e-3},
    "schedule": {"name": "constant"},
    "augmentation": "none",
}


def network(reference: str = "retort/mlp", seed: int = 0, **arguments: Any) -> Network:
    """Return a small network with weights of this seed."""
    torch.manual_seed(seed)
    return networks.build(
        reference, classes=CLASSES, channels=1, height=8, width=8, arguments=arguments
    )


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
    size = Input.model_validate(folders.INPUT)
    open_set = None
    if open_images:
        pixels, _ = folders.images(open_images, CLASSES, 99)
        per_round = method.params.federation.open_images_per_round
        open_set = OpenSet(pixels, per_round, training.seed)
    return ClientContext(
        method=method,
        training=training,
        preprocess=Preprocessor("student", size, size, CPU),
        precision=Precision("float32", CPU),
        classes=CLASSES,
        open_set=open_set,
    )


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
        LocalClient(
            name_of(number),
            (others or {}).get(number) or network(reference, **(arguments or {})),
            BatchLoader(
                pixels,
                labels,
                training=full.model_copy(update={"seed": client.seed_of(full.seed, str(number))}),
                flip=False,
                device=CPU,
            ),
            shared,
        )
        for number, (pixels, labels) in enumerate(images(sizes))
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

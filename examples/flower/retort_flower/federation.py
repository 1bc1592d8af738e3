"""What server and clients share: method, network, data, and messages as Flower's records.

All mathematics is the engine's: a client is its `LocalClient`, the server aggregates by the
method's own `aggregate`, and each reply is checked as one that comes over HTTP. The data are the
digits, divided by the seed; a federation of your own changes `federation`.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from workers.distill.config import messages
from workers.distill.config.federation import Partition
from workers.distill.config.training import expand
from workers.distill.data.builtin import digits
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.federated import client, partition, protocol
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import name_of
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.protocol import Message
from workers.distill.federated.remote import expected_reply
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network
from workers.distill.runtime.precision import Precision

CPU = torch.device("cpu")
OPEN_IMAGES = 300
TENSORS, STRINGS = "tensors", "message"

Settings = Mapping[str, bool | float | int | str]
"""Flower's run configuration."""


@dataclass(frozen=True)
class Federation:
    """The parties' common ground; equal for equal settings, wherever it is made."""

    shared: ClientContext
    student: Network
    images: torch.Tensor
    labels: torch.Tensor
    division: partition.ClientPartition

    def client(self, number: int) -> LocalClient:
        """Return the client of a SuperNode, from `partition-id` 0, before its first round."""
        name, training = name_of(number), self.shared.training
        own = training.model_copy(update={"seed": client.seed_of(training.seed, name)})
        part = torch.from_numpy(self.division.parts[number])
        loader = BatchLoader(
            self.images[part], self.labels[part], training=own, flip=False, device=CPU
        )
        return LocalClient(name, network(training.seed), loader, self.shared)


def network(seed: int) -> Network:
    """Return the student's network at its start, which all parties share."""
    torch.manual_seed(seed)
    return networks.build("retort/mlp", classes=10, channels=1, height=8, width=8, arguments={})


def federation(settings: Settings) -> Federation:
    """Return the federation of such settings."""
    seed, count = int(settings["seed"]), int(settings["clients"])
    record, splits = digits.prepare()
    images, labels = splits["train"]
    division = partition.divide(
        labels.numpy(),
        Partition(),
        clients=count,
        open_images=OPEN_IMAGES,
        classes=10,
        seed=seed,
    )
    training = expand(
        {
            "epochs": int(settings["rounds"]),
            "batch_size": 32,
            "optimizer": {
                "name": "sgd",
                "learning_rate": float(settings["learning-rate"]),
                "momentum": 0.0,
                "weight_decay": 0.0,
            },
            "schedule": {"name": "constant"},
            "augmentation": "none",
            "seed": seed,
        }
    )
    student = network(seed)
    chosen = {"clients": count, "local_epochs": int(settings["local-epochs"])}
    method = catalog.build({"name": settings["method"], "federation": chosen}, student, None)
    if not isinstance(method, FederatedMethod):
        raise TypeError(f"method {method.name} has no clients")
    method.rounds = training.epochs
    open_set = OpenSet(images[torch.from_numpy(division.open_set)], None, seed)
    shared = ClientContext(
        method=method,
        training=training,
        preprocess=Preprocessor("student", record.input, record.input, CPU),
        precision=Precision("float32", CPU),
        classes=10,
        open_set=open_set if method.uses_open_set else None,
    )
    return Federation(shared, student, images, labels, division)


def record_of(message: Message) -> RecordDict:
    """Return a message as Flower carries it: named arrays, and strings."""
    arrays = {name: Array(value.numpy(force=True)) for name, value in message.tensors.items()}
    strings = ConfigRecord(
        {
            "method": message.method,
            "round": message.round,
            "sender": message.sender,
            "classes": message.classes,
            "open_set": message.open_set,
            "samples": message.samples,
        }
    )
    return RecordDict({TENSORS: ArrayRecord(arrays), STRINGS: strings})


def message_of(record: RecordDict) -> Message:
    """Return the message that `record_of` has made a record of."""
    strings, arrays = record[STRINGS], record[TENSORS]
    tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    return Message(**strings, tensors=tensors)


def checked(message: Message, made: Federation, number: int) -> Message:
    """Return a reply that is what a round asks for; raises `MessageRefused` for another."""
    content = protocol.encode(message)
    expected = expected_reply(made.shared, made.student, number)
    messages.check(io.BytesIO(content), len(content), expected)
    return message

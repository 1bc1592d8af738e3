"""What malicious clients do to the rules of DS-FL: accuracy of the server's model on the digits.

    OMP_NUM_THREADS=1 python -m benchmarks.federated_poisoning [--seeds 3] [--alphas 1.0,0.1]

Three of ten clients send something else than their predictions of the open images: rows drawn at
random (noise), or their own with every class moved to the next one (shift: they agree on what is
wrong). All messages are rows of probabilities, so no check refuses them.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch

from workers.distill.config.federation import Partition
from workers.distill.config.training import expand
from workers.distill.data.builtin import digits
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.federated import client, partition
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import LocalClients, name_of
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.protocol import Message
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import ServerModel
from workers.distill.functional.federated import poisoning
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import catalog as networks
from workers.distill.runtime.precision import Precision

CPU = torch.device("cpu")
CLIENTS, ATTACKERS, OPEN = 10, 3, 300
ROUNDS = {1.0: 10, 0.1: 15}
"""Rounds by alpha."""
RULES = ("sa", "era", "median", "trimmed")
RULE_NAMES = {"trimmed": f"trimmed by {ATTACKERS / CLIENTS:g}"}
Attack: TypeAlias = Literal["none", "noise", "shift"]


class SomeMaliciousClients(LocalClients):
    """Clients of which the first ones send something else than they predict."""

    def __init__(
        self, clients: Sequence[LocalClient], shared: ClientContext, attack: Attack
    ) -> None:
        super().__init__(clients, shared)
        self._attack = attack
        self._draw = torch.Generator().manual_seed(shared.training.seed)

    def train(self, number: int, waiting: Sequence[str]) -> list[Message]:
        """Train as the others do, and change what the malicious ones send."""
        attackers = {name_of(place) for place in range(ATTACKERS)}
        return [
            self._poisoned(reply) if reply.sender in attackers else reply
            for reply in super().train(number, waiting)
        ]

    def _poisoned(self, reply: Message) -> Message:
        rows = reply.tensors["probabilities"]
        if self._attack == "noise":
            rows = poisoning.noise_rows(rows, generator=self._draw)
        if self._attack == "shift":
            rows = poisoning.shift_classes(rows)
        return dataclasses.replace(reply, tensors={"probabilities": rows})


def main() -> None:
    """Run all, and print the server's accuracy on the test split: JSON lines, or a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated_poisoning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alphas", default="1.0,0.1")
    parser.add_argument("--attacks", default=",".join(get_args(Attack)))
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    asked = parser.parse_args()
    alphas = [float(one) for one in asked.alphas.split(",")]
    if asked.markdown:
        names = [RULE_NAMES.get(rule, rule) for rule in RULES]
        sys.stdout.write(f"| alpha, attack | {' | '.join(names)} |\n|{'---|' * (1 + len(RULES))}\n")
    for alpha, attack in itertools.product(alphas, asked.attacks.split(",")):
        cells = [f"{alpha}, {attack}"]
        for rule in RULES:
            found = [accuracy(alpha, attack, rule, seed) for seed in range(asked.seeds)]
            cells.append(", ".join(f"{100 * one:.1f}" for one in found))
            if not asked.markdown:
                row = {"alpha": alpha, "attack": attack, "rule": rule, "accuracy": found}
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
        if asked.markdown:
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()


def accuracy(alpha: float, attack: Attack, rule: str, seed: int) -> float:
    """Return the accuracy of the server's model after all rounds."""
    record, splits = digits.prepare()
    images, labels = splits["train"]
    training = expand(
        {
            "epochs": ROUNDS[alpha],
            "batch_size": 32,
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0,
                "weight_decay": 0,
            },
            "schedule": {"name": "constant"},
            "augmentation": "none",
            "seed": seed,
        }
    )
    torch.manual_seed(seed)
    student = networks.build("retort/mlp", classes=10, channels=1, height=8, width=8, arguments={})
    choice: dict[str, Any] = {
        "name": "dsfl",
        "aggregation": rule,
        "trim": ATTACKERS / CLIENTS,
        "distill_epochs": 5,
        "federation": {"clients": CLIENTS, "local_epochs": 5},
    }
    method = catalog.build(choice, student, None)
    if not isinstance(method, FederatedMethod):
        raise TypeError("dsfl is a federated method")
    parts = partition.divide(
        labels.numpy(),
        Partition(alpha=alpha),
        clients=CLIENTS,
        open_images=OPEN,
        classes=10,
        seed=seed,
    )
    shared = ClientContext(
        method=method,
        training=training,
        preprocess=Preprocessor("student", record.input, record.input, CPU),
        precision=Precision("float32", CPU),
        classes=10,
        open_set=OpenSet(images[torch.from_numpy(parts.open_set)], None, seed),
    )
    held = []
    for number, part in enumerate(parts.parts):
        own = training.model_copy(update={"seed": client.seed_of(seed, name_of(number))})
        index = torch.from_numpy(part)
        loader = BatchLoader(images[index], labels[index], training=own, flip=False, device=CPU)
        held.append(LocalClient(name_of(number), copy.deepcopy(student), loader, shared))
    rounds = Rounds(
        SomeMaliciousClients(held, shared, attack),
        ServerModel(student, shared),
        shared,
        student,
        Scoring(None, []),
        lambda _code, _message: None,
        rows=sum(len(part) for part in parts.parts),
        label_counts={},
    )
    for _ in range(ROUNDS[alpha]):
        while not rounds.work():
            pass
    shown, truth = splits["test"]
    answers = client.predict(student, shared.preprocess, shown).argmax(1)
    return round(float((answers == truth).double().mean()), 3)


if __name__ == "__main__":
    main()

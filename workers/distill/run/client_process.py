"""A client of a federation, in the process of the data's owner.

`python -m workers.distill.run.client_process FOLDER` trains on `FOLDER/dataset` as the plan in
`FOLDER/plan.json` says. It takes orders as JSON lines on standard input and answers on standard
output; whoever starts it (`retort client join`) carries messages to and from the service. Nothing
leaves the folder but the files of `replies`, which hold what the method sends and nothing else.

Orders: `{"do": "train", "round": 3, "start": "received/0002.safetensors"}` is answered by `reply`
with the path; `{"do": "finish", "consensus": path}` by `finished`, with the model in
`model.safetensors`. An order that was carried out before is answered with the same bytes.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input, JobConfig
from workers.distill.data import dataset
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.export import outputs
from workers.distill.federated import client, protocol
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.protocol import Message
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import weights
from workers.distill.networks.interface import Network
from workers.distill.run import failures, prepare
from workers.distill.runtime import events
from workers.distill.runtime.precision import choose_precision
from workers.distill.tasks.catalog import TASKS
from workers.distill.training import checkpoint

LOG = logging.getLogger(__name__)

PLAN, MEMBERSHIP, OPEN_SET = "plan.json", "membership.json", "open_set.safetensors"
NOISE_SEED = "noise_seed"
MODEL = "model.safetensors"


class ClientProcess:
    """The client in its folder: network, images, and what it has done so far."""

    def __init__(
        self, folder: Path, reporter: events.Reporter, *, accelerator: str, sends_metrics: bool
    ) -> None:
        self._folder = folder
        self._reporter = reporter
        self._sends_metrics = sends_metrics
        plan = json.loads((folder / PLAN).read_bytes())
        membership = json.loads((folder / MEMBERSHIP).read_bytes())
        self._config = JobConfig.model_validate(plan["config"])
        self._classes: list[str] = plan["classes"]
        self._digest = hashlib.sha256(json.dumps([plan, membership]).encode()).hexdigest()
        images = Input.model_validate(plan["input"])
        stored = dataset.load(folder / "dataset")
        check_form(stored.record, images)
        device = prepare.choose_device(accelerator)
        network, shared = self._build(images, device)
        labels = {name: self._labels(stored, name) for name in ("train", "validation")}
        scored = prepare.as_scored(labels["validation"], self._config)
        self._validation = prepare.on_device(scored, device)
        training = self._config.training
        name = membership["client"]
        own = training.model_copy(update={"seed": client.seed_of(training.seed, name)})
        loader = BatchLoader(
            labels["train"].images,
            labels["train"].labels,
            training=own,
            flip=plan["flip"],
            device=device,
        )
        self._client = LocalClient(
            name, network, loader, shared, noise_seed=noise_seed(folder / NOISE_SEED)
        )
        self._resume()

    @property
    def samples(self) -> int:
        """Return the number of training images."""
        return self._client.samples

    @property
    def label_counts(self) -> list[int]:
        """Return the number of training images of each class of the federation."""
        counts: list[int] = self._client.label_counts.tolist()
        return counts

    def train(self, number: int, start: str) -> Path:
        """Take over what the server has published, train, and write the reply of a round."""
        path = self._folder / "replies" / f"{number:04d}.safetensors"
        if self._client.sent_round == number and path.exists():
            return path
        self._receive(start)
        message = self._client.train(number)
        message = dataclasses.replace(message, metrics=self._metrics())
        write(path, protocol.encode(message))
        state = self._client.state_dict()
        checkpoint.write(self._folder / "state", number, self._digest, state)
        return path

    def finish(self, consensus: str) -> dict[str, float]:
        """Take over the last consensus, write the model, and return how good it is."""
        self._receive(consensus)
        model = self._client.model
        described = outputs.header(self._config, self._classes, model)
        texts = {"format": "pt", weights.HEADER_KEY: json.dumps(described, sort_keys=True)}
        weights.save_student(self._folder / MODEL, model, texts)
        return {"accuracy": self._accuracy()}

    def _build(self, images: Input, device: torch.device) -> tuple[Network, ClientContext]:
        """Return the network at its start, which all clients and the server share, and the rest."""
        config = self._config
        torch.manual_seed(config.training.seed)
        network = prepare.placed(prepare.build("student", config.student, config.task), device)
        method = catalog.build(config.method, network, None).to(device)
        if not isinstance(method, FederatedMethod):
            raise errors.BadRecipe(f"method {method.name} has no clients")
        method.rounds = config.training.epochs
        shared = ClientContext(
            method=method,
            training=config.training,
            preprocess=Preprocessor("student", config.student.input, images, device),
            precision=choose_precision(config.training, device),
            classes=len(self._classes),
            open_set=self._open_set(method, device),
        )
        return network, shared

    def _open_set(self, method: FederatedMethod, device: torch.device) -> OpenSet | None:
        if not method.uses_open_set:
            return None
        per_round = method.params.federation.open_images_per_round
        seed = self._config.training.seed
        return OpenSet.read(self._folder / OPEN_SET, per_round, seed, device)

    def _labels(self, stored: dataset.StoredDataset, name: str) -> dataset.Split:
        """Return a split whose labels count the federation's classes, not those of the folder."""
        split = TASKS["classification"].read_split(stored, name)
        numbers = class_numbers(stored.record.classes, self._classes)
        return dataset.Split(split.images, numbers[split.labels])

    def _resume(self) -> None:
        state = checkpoint.newest(self._folder / "state", self._digest, self._reporter)
        if state is not None:
            self._client.load_state_dict(state)

    def _receive(self, path: str) -> None:
        message: Message = protocol.decode((self._folder / path).read_bytes())
        if message.round <= self._client.seen:
            return
        device = self._client.shared.device
        tensors = {name: tensor.to(device) for name, tensor in message.tensors.items()}
        self._client.receive(dataclasses.replace(message, tensors=tensors))

    def _metrics(self) -> dict[str, float]:
        return {"accuracy": self._accuracy()} if self._sends_metrics else {}

    def _accuracy(self) -> float:
        """Return the share of right answers on the owner's validation images."""
        split: LabelledImages = self._validation
        answers = self._client.predict(split.every_image()).argmax(1)
        return float((answers == split.labels).double().mean())


def check_form(record: dataset.DatasetRecord, images: Input) -> None:
    """Raise `BadDataset` unless the owner's images have the form of the federation's."""
    if record.task != "classification":
        raise errors.BadDataset(
            f"the data is for {record.task}; clients of a federation classify images"
        )
    for name in ("channels", "height", "width"):
        own, shared = getattr(record.input, name), getattr(images, name)
        if own != shared:
            raise errors.BadDataset(
                f"the images have {name} {own}, those of the federation {shared}: convert them"
            )


def class_numbers(own: Sequence[str], classes: Sequence[str]) -> Int[Tensor, " n"]:
    """Return the number in the federation of each class of the owner's data, by its name.

    Raises `BadDataset` for a class that the federation has not.
    """
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise errors.BadDataset(
            f"the data has classes that the federation has not: {', '.join(unknown[:5])}; the "
            f"federation's are {', '.join(classes[:20])}"
        )
    return torch.tensor([list(classes).index(name) for name in own])


def noise_seed(path: Path) -> int:
    """Return the secret that the noise of `privacy` follows from; it is drawn once, and kept."""
    if not path.exists():
        write(path, os.urandom(7).hex().encode())
        path.chmod(0o600)
    return int(path.read_text(), 16)


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def serve(made: ClientProcess, folder: Path, reporter: events.Reporter) -> None:
    """Carry out orders until standard input ends."""
    for order in orders():
        if order["do"] == "train":
            path = made.train(order["round"], order["start"])
            reporter.answer("reply", round=order["round"], path=str(path.relative_to(folder)))
        else:
            reporter.answer("finished", path=MODEL, **made.finish(order["consensus"]))


def orders() -> Iterator[Mapping[str, Any]]:  # Any: JSON of the parent process
    """Yield the orders on standard input, line by line."""
    for line in sys.stdin:
        yield json.loads(line)


def main(arguments: Sequence[str]) -> int:
    """Be a client until standard input ends, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.distill.run.client_process")
    parser.add_argument("folder", type=Path, help="the client's own folder")
    parser.add_argument("--accelerator", choices=("any", "cpu", "cuda"), default="any")
    parser.add_argument("--no-metrics", action="store_true", help="do not send the accuracy")
    options = parser.parse_args(arguments)
    reporter = events.open_stream()
    try:
        made = ClientProcess(
            options.folder,
            reporter,
            accelerator=options.accelerator,
            sends_metrics=not options.no_metrics,
        )
        reporter.answer("ready", samples=made.samples)
        serve(made, options.folder, reporter)
    except Exception as error:  # the one door through which failures leave
        LOG.exception("the client failed")
        failures.report(reporter, failures.translate(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

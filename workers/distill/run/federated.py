"""How methods whose data stay with clients are trained."""

import copy
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from workers.distill import errors
from workers.distill.config.baseline import baseline_of
from workers.distill.config.federation import REMOTE, ClientNetwork, Federation
from workers.distill.config.job import JobConfig
from workers.distill.config.result import (
    ClientAugmentation,
    ClientSummary,
    FederationSummary,
    ScoreRange,
)
from workers.distill.data.loader import BatchLoader
from workers.distill.federated import (
    augmentation,
    client,
    clients,
    loop,
    partition,
    protocol,
    rounds,
)
from workers.distill.federated.augmentation import Augmented
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import LocalClients
from workers.distill.federated.loop import FederatedTrainer
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.partition import ClientPartition
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import ServerModel
from workers.distill.methods import catalog
from workers.distill.methods.base import Method
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks.interface import Network
from workers.distill.run import prepare, remote_federation
from workers.distill.run.context import JobContext, LoopEvidence, SharedContext
from workers.distill.runtime import signals
from workers.distill.runtime.ranks import ALONE, Ranks
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState
from workers.distill.training.step import DistillationStep
from workers.distill.training.throughput import ThroughputMeter

PARTITION_FILE = "partition.json"
MOST_NAMED = 10
"""Labels that a warning names at most."""


class FederatedLoop:
    """Rounds of clients and server, a baseline without exchange, the best round delivered."""

    delivers: Literal["best", "last"] = "best"
    train_metric = "accuracy"
    trains_method = False
    compiles = False

    def prepare(
        self,
        config: JobConfig,
        workdir: pathlib.Path,
        stop: signals.Stop,
        *,
        strong: bool,
        ranks: Ranks = ALONE,
    ) -> SharedContext:
        """Read the data set, and load a teacher that the student is compared with, if any."""
        return prepare.prepare(config, workdir, stop, loop=self, strong=strong, ranks=ranks)

    def steps_per_epoch(self, context: JobContext) -> int:
        """Return 1: a round."""
        return Rounds.steps_per_epoch

    def baseline(self, context: JobContext) -> dict[str, Any]:
        """Return local training of the same clients on the same images."""
        method, params = catalog.find(context.config.method)
        if not issubclass(method, FederatedMethod) or not isinstance(params, method.Params):
            raise TypeError(f"method {method.name} has no clients")
        federation = params.federation.model_dump(mode="json")
        return baseline_of({"federation": federation}, method.declared_exchange())

    def make_source(self, context: JobContext, method: Method, student: Network) -> Rounds:
        """Divide the training split, and return the rounds before the first one."""
        if not isinstance(method, FederatedMethod):
            raise TypeError(f"method {method.name} has no clients")
        loader, federation = context.train_loader, method.params.federation
        if federation.clients == REMOTE:
            return remote_federation.make_rounds(context, method, student)
        division = divide(context, method)
        shared = ClientContext(
            method=method,
            training=context.config.training,
            preprocess=context.student_preprocessor,
            precision=context.precision,
            classes=len(context.classes),
            open_set=open_set(loader, division, federation, context.config.training.seed),
        )
        local = make_clients(context, shared, student, division)
        warn(context, local)
        return Rounds(
            local,
            ServerModel(student, shared),
            shared,
            student,
            Scoring(
                None if context.validation is None else context.validation.samples,
                [
                    name
                    for name, one in sorted(local.clients.items())
                    if clients.architecture(one.network) == clients.architecture(student)
                ],
            ),
            context.reporter.warning,
            rows=sum(one.samples for one in local.clients.values()),
            division=division,
            augment=augment_of(local, shared),
            label_counts={name: one.label_counts.tolist() for name, one in local.clients.items()},
        )

    def make_trainer(
        self, state: TrainState, step: DistillationStep, reporter: ProgressReporter
    ) -> FederatedTrainer:
        """Return a trainer whose steps are rounds."""
        return FederatedTrainer(state, step, reporter, rounds=rounds_of(state))

    def train(
        self, trainer: StudentTrainer, *, stop: signals.Stop, throughput: ThroughputMeter
    ) -> None:
        """Train to the end; the share of arithmetic is not measured."""
        if not isinstance(trainer, FederatedTrainer):
            raise TypeError("a student without clients is trained by another loop")
        loop.train(trainer, stop=stop)

    def result_fields(self, context: JobContext, state: TrainState) -> dict[str, Any]:
        """Return the summary of the federation."""
        return {"federation": summary(context, state)}

    def write_files(self, context: JobContext, state: TrainState) -> list[str]:
        """Write which images each client had."""
        division = rounds_of(state).division
        if division is None:
            return []
        path = context.workdir / PARTITION_FILE
        path.write_text(division.to_json() + "\n", encoding="utf-8")
        return [PARTITION_FILE]

    def evidence(self, context: JobContext, state: TrainState) -> LoopEvidence:
        """Return what the report shows of rounds and clients."""
        # Imported here because drawing takes a second to load, which a start should not pay.
        from workers.distill.reporting import federation_report

        source = rounds_of(state)
        shown = federation_report.FederationEvidence(
            method=source.method.name,
            label_counts=dict(source.label_counts),
            scores=test_scores(context, source).by_client,
            best_clients=source.best_clients,
            traffic={
                name: (record.up.encoded_bytes, record.down.encoded_bytes)
                for name, record in sorted(source.records.items())
            },
        )
        return LoopEvidence(federation=shown)


def divide(context: JobContext, method: FederatedMethod) -> ClientPartition:
    """Return who holds which images; raises `BadRecipe` where nobody could."""
    federation = method.params.federation
    labels = context.task.image_classes(context.train_loader.labels)
    if labels is None or federation.clients == REMOTE:
        raise errors.BadRecipe(
            "the training split is divided among simulated clients, by the class of each image; "
            "set method.federation.clients to a number",
            field="method/federation/clients",
        )
    division = partition.divide(
        labels.cpu().numpy(),
        federation.partition,
        clients=int(federation.clients),
        open_images=partition.open_images_of(
            federation.open_images, uses_open_set=method.uses_open_set, count=len(labels)
        ),
        classes=len(context.classes),
        seed=context.config.training.seed,
    )
    if not method.pools:
        return division
    return ClientPartition(division.open_set, [np.unique(np.concatenate(division.parts))])


def open_set(
    loader: BatchLoader, division: ClientPartition, federation: Federation, seed: int
) -> OpenSet | None:
    """Return the images that were set aside, without their labels."""
    if not len(division.open_set):
        return None
    return OpenSet(
        loader.images_of(torch.from_numpy(division.open_set)),
        federation.open_images_per_round,
        seed,
    )


def make_clients(
    context: JobContext, shared: ClientContext, student: Network, division: ClientPartition
) -> LocalClients:
    """Return the clients of this process; all of one network start from the same weights."""
    training, own_networks = context.config.training, shared.federation.networks
    made = []
    for number, part in enumerate(division.parts):
        name = clients.name_of(number)
        network = copy.deepcopy(student)
        if own_networks is not None:
            network = build_network(context, own_networks[number % len(own_networks)], student)
        own = training.model_copy(update={"seed": client.seed_of(training.seed, name)})
        images = context.train_loader.subset(torch.from_numpy(part), own)
        made.append(LocalClient(name, network, images, shared))
    return LocalClients(made, shared)


def build_network(context: JobContext, choice: ClientNetwork, student: Network) -> Network:
    """Return a client's network: a copy of the student's where they are alike, else a fresh one."""
    if (choice.network, choice.arguments) == (student.reference, dict(student.arguments)):
        return copy.deepcopy(student)
    wanted = context.config.student.model_copy(
        update={"network": choice.network, "arguments": choice.arguments}
    )
    torch.manual_seed(context.config.training.seed)
    built = prepare.build("student", wanted, context.config.task)
    return prepare.placed(built, context.device)


def augment_of(local: LocalClients, shared: ClientContext) -> Callable[[], Augmented] | None:
    """Return what extends the clients' data before the first round, or None."""
    settings = shared.federation.augmentation
    if settings is None:
        return None
    return lambda: augmentation.augment(list(local.clients.values()), shared, settings)


def warn(context: JobContext, local: LocalClients) -> None:
    """Tell what was chosen for the user, and what nobody can learn."""
    for reason in local.not_stacked.values():
        context.reporter.warning(
            "not_vectorised", f"clients are trained one after the other: {reason}"
        )
    counts = np.array([one.label_counts.tolist() for one in local.clients.values()])
    missing = partition.without_holder(counts)
    if missing:
        listed = ", ".join(context.classes[label] for label in missing[:MOST_NAMED])
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        context.reporter.warning(
            "labels_without_holder",
            f"no client has images of {listed}{more}: nobody can learn them",
        )


def rounds_of(state: TrainState) -> Rounds:
    """Return the rounds of a federated student."""
    if not isinstance(state.source, Rounds):
        raise TypeError("the student has no clients")
    return state.source


@dataclass(frozen=True)
class ClientScores:
    """What the clients' models score on the test split after the last round, 0..1."""

    by_client: dict[str, float]
    ensemble: float | None


def test_scores(context: JobContext, source: Rounds) -> ClientScores:
    """Score the clients' models; empty where there are none here, or no test split."""
    answers = {} if context.test is None else source.clients.logits(context.test.every_image())
    if context.test is None or not answers:
        return ClientScores({}, None)
    together = None
    if source.method.ensemble != "none":
        mean = rounds.ensemble(answers, source.method.ensemble)
        together = float((mean.argmax(1) == context.test.labels).double().mean())
    return ClientScores(rounds.accuracies(answers, context.test.labels), together)


def summary(context: JobContext, state: TrainState) -> FederationSummary:
    """Return the summary of the federation, for the result."""
    source = rounds_of(state)
    method, local = source.method, source.clients
    scores = test_scores(context, source)
    found = list(scores.by_client.values())
    records = source.records.values()
    at_server = method.delivered == "server"
    return FederationSummary(
        clients=len(local.names()),
        rounds=state.step,
        skipped_rounds=source.skipped_rounds,
        delivered=protocol.SERVER if at_server else source.best_clients.get(state.best.epoch),
        engines=local.engines,
        not_vectorised=list(local.not_stacked.values()),
        partition_sha256=None if source.division is None else source.division.digest(),
        open_images=0 if source.shared.open_set is None else len(source.shared.open_set),
        labels_without_seed=[
            context.classes[label] for label in source.augmentation.get("labels_without_seed", [])
        ],
        labels_without_holder=[context.classes[label] for label in source.labels_without_holder()],
        client_accuracy=ScoreRange(mean=sum(found) / len(found), min=min(found), max=max(found))
        if found
        else None,
        ensemble_accuracy=scores.ensemble,
        bytes_up=sum(record.up.encoded_bytes for record in records),
        bytes_down=sum(record.down.encoded_bytes for record in records),
        payload_bytes_up=sum(record.up.payload_bytes for record in records),
        payload_bytes_down=sum(record.down.payload_bytes for record in records),
        epsilon=source.epsilon(),
        by_client=[
            client_summary(context, name, source, scores.by_client.get(name))
            for name in local.names()
        ],
    )


def client_summary(
    context: JobContext, name: str, source: Rounds, accuracy: float | None
) -> ClientSummary:
    """Return what one client had and did."""
    record, counts = source.record(name), source.label_counts.get(name)
    model = source.clients.model(name)
    return ClientSummary(
        name=name,
        network=None if model is None else model.reference,
        images=None if counts is None else sum(counts),
        classes=None if counts is None else sum(count > 0 for count in counts),
        replies=record.replies,
        dropped=record.dropped,
        late=record.late,
        bytes_up=record.up.encoded_bytes,
        bytes_down=record.down.encoded_bytes,
        accuracy=accuracy,
        augmentation=client_augmentation(context, source.augmentation, name),
    )


def client_augmentation(
    context: JobContext,
    facts: Mapping[str, Any],  # Any: JSON
    name: str,
) -> ClientAugmentation | None:
    """Return what the augmentation did for a client, or None without one."""
    if not facts:
        return None
    found = facts["clients"][name]
    labels = {
        kind: [context.classes[label] for label in found[kind]]
        for kind in ("target_labels", "redundant_labels")
    }
    figures = ("seed_images", "generated_images", "device_server_leakage", "inter_device_leakage")
    return ClientAugmentation(**labels, **{figure: found[figure] for figure in figures})


LOOP = FederatedLoop()

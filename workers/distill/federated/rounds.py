"""The rounds of a federation: who takes part, what is published, what is counted.

A round goes in units (`work`): a client, or a group of clients, receives or trains; then the server
aggregates. Whatever a unit has done is in the state, so a run that is stopped between two units, or
killed and continued from a checkpoint, ends with the same bytes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill.config import federation as config
from workers.distill.data import stateless_rng
from workers.distill.federated import augmentation, partition, protocol
from workers.distill.federated.augmentation import Augmented
from workers.distill.federated.client import ClientContext
from workers.distill.federated.clients import Clients
from workers.distill.federated.partition import ClientPartition
from workers.distill.federated.protocol import Message
from workers.distill.federated.server import ServerModel
from workers.distill.functional.federated import privacy
from workers.distill.methods.base import Terms
from workers.distill.networks.interface import Network

Warn: TypeAlias = Callable[[str, str], None]
"""Tells the user: a code, and a sentence."""
Stage: TypeAlias = Literal["start", "catch_up", "train", "receive", "score"]

CHOOSE = 31
"""What random numbers are for."""
ROSE = 1e-3
"""Nats by which the entropy of targets may exceed that of the mean before it is told."""


@dataclass
class Traffic:
    """Bytes of one party, as the messages are encoded, and of their tensors alone."""

    messages: int = 0
    encoded_bytes: int = 0
    payload_bytes: int = 0

    def count(self, size: int, message: Message) -> None:
        """Count a message of such an encoded size."""
        self.messages += 1
        self.encoded_bytes += size
        self.payload_bytes += message.payload_bytes


@dataclass
class ClientRecord:
    """What a client has done so far."""

    replies: int = 0
    dropped: int = 0
    late: int = 0
    up: Traffic = field(default_factory=Traffic)
    down: Traffic = field(default_factory=Traffic)


@dataclass
class Round:
    """A round on its way."""

    number: int = 0
    stage: Stage = "start"
    waiting: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    replies: dict[str, Message] = field(default_factory=dict)
    skipped: bool = False


class ScoredImages(Protocol):
    """Images on which clients are scored (`evaluation.evaluate.LabelledImages`)."""

    @property
    def labels(self) -> Int[Tensor, " N"]:
        """Return their classes."""

    def every_image(self) -> UInt8[Tensor, "N c h w"]:
        """Return all images."""


@dataclass(frozen=True)
class Scoring:
    """On what clients are scored after a round, and whose models may be delivered."""

    split: ScoredImages | None
    deliverable: Sequence[str]
    """Clients whose network is the student's."""


class Rounds:
    """All rounds of a federation; `training.state.DataSource` of the delivered model."""

    steps_per_epoch = 1

    def __init__(
        self,
        clients: Clients,
        server: ServerModel,
        shared: ClientContext,
        student: Network,
        scoring: Scoring,
        warn: Warn,
        *,
        rows: int,
        label_counts: Mapping[str, list[int]],
        division: ClientPartition | None = None,
        augment: Callable[[], Augmented] | None = None,
    ) -> None:
        """Take all through their rounds.

        `student` is delivered; `rows` are the images of all clients; `label_counts` are the images
        of each class of the clients that are here, `division` says which: those of others become
        known if they send them. `augment` extends the images before the first round.
        """
        self.clients = clients
        self.server = server
        self.shared = shared
        self.method = shared.method
        self.method.rounds = shared.training.epochs
        self.rows_per_epoch = rows * shared.federation.local_epochs
        self.label_counts = dict(label_counts)
        self._clients_here = frozenset(label_counts)
        self.division = division
        self.records: dict[str, ClientRecord] = {}
        self.skipped_rounds = 0
        self.best_clients: dict[int, str] = {}
        """After each round that was scored, the client with the best answers."""
        self.accuracies: dict[int, dict[str, float]] = {}
        """After each round that was scored, the share of right answers of each client."""
        self.augmentation: dict[str, Any] = {}  # Any: JSON
        """Facts of the augmentation; empty without one."""
        self._augment = augment
        self._student = student
        self._scoring = scoring
        self._warn = warn
        self._now = Round()
        self._newest: Message | None = None
        self._metrics: dict[str, float] = {}
        self._told: set[str] = set()

    # -- what the state of a training asks of its source -------------------------------------------

    @property
    def round(self) -> int:
        """Return the round on its way; 0 before the first."""
        return self._now.number

    def epoch(self, epoch: int, *, first: int = 0) -> Any:
        """Raise: a round is no series of batches."""
        raise TypeError("a federation has no batches of its own; federated.loop trains it")

    def share_done(self, step: int, steps: int) -> float:
        """Return which share of the work is done, parts of a round included."""
        now = self._now
        part = 0.0
        if now.stage == "train" and now.chosen:
            part = 1 - len(now.waiting) / len(now.chosen)
        return min((step + part) / steps, 1.0)

    def finish_epoch(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Return what the round has measured."""
        return dict(self._metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        now = dataclasses.asdict(dataclasses.replace(self._now, replies={}))
        now["replies"] = {name: _message_state(one) for name, one in self._now.replies.items()}
        return {
            "now": now,
            "newest": None if self._newest is None else _message_state(self._newest),
            "clients": self.clients.state_dict(),
            "server": self.server.state_dict(),
            "records": {name: dataclasses.asdict(one) for name, one in self.records.items()},
            "skipped_rounds": self.skipped_rounds,
            "best_clients": self.best_clients,
            "accuracies": self.accuracies,
            "metrics": self._metrics,
            "told": sorted(self._told),
            "augmentation": self.augmentation,
            "label_counts": self.label_counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if not state:
            return
        now = dict(state["now"])
        replies = {name: Message(**one) for name, one in now.pop("replies").items()}
        self._now = Round(**now)
        self._now.replies = replies
        self._newest = None if state["newest"] is None else Message(**state["newest"])
        self.clients.load_state_dict(state["clients"])
        self.server.load_state_dict(state["server"])
        self.records = {
            name: ClientRecord(
                **{**one, "up": Traffic(**one["up"]), "down": Traffic(**one["down"])}
            )
            for name, one in state["records"].items()
        }
        self.skipped_rounds = state["skipped_rounds"]
        self.best_clients = dict(state["best_clients"])
        self.accuracies = dict(state["accuracies"])
        self._metrics = dict(state["metrics"])
        self._told = set(state["told"])
        self.augmentation = dict(state["augmentation"])
        self.label_counts = dict(state["label_counts"])

    # -- work --------------------------------------------------------------------------------------

    def work(self) -> bool:
        """Do the next unit, and return whether it ended a round."""
        now = self._now
        match now.stage:
            case "start":
                self.server.round = 0
                self._make_images()
                self._publish(self.method.start(self.server), self.clients.names())
            case "catch_up":
                self._receive()
                if not now.waiting:
                    self._await_replies()
            case "train":
                self._train()
            case "receive":
                self._receive()
                if not now.waiting and now.number == 0:
                    self._begin(1)
                elif not now.waiting:
                    now.stage = "score"
            case "score":
                self._score()
                self._begin(now.number + 1)
                return True
        return False

    def losses(self) -> Terms:
        """Return the mean terms of the clients' losses in the last round."""
        return dict(self.clients.losses()) or {"task": torch.zeros((), device=self.shared.device)}

    @property
    def images_per_round(self) -> int:
        """Return about how many images are seen in a round."""
        made = int(self.augmentation.get("generated_images", 0))
        return self.rows_per_epoch + made * self.shared.federation.local_epochs

    def record(self, name: str) -> ClientRecord:
        """Return what a client has done."""
        return self.records.setdefault(name, ClientRecord())

    def _make_images(self) -> None:
        """Extend the clients' data, where that is wanted, and tell what could not be made."""
        if self._augment is None:
            return
        done = self._augment()
        self.augmentation = done.facts
        size = protocol.encoded_size(done.generator)
        for name, seeds in done.seeds.items():
            if len(seeds.tensors["seeds"]):
                self.record(name).up.count(protocol.encoded_size(seeds), seeds)
            self.record(name).down.count(size, done.generator)
        for code, sentence in augmentation.remarks(done.facts):
            self._warn(code, sentence)

    def _begin(self, number: int) -> None:
        """Draw who takes part in a round."""
        federation, names = self.shared.federation, self.clients.names()
        draw = np.random.RandomState(
            stateless_rng.mix(self.shared.training.seed, number, CHOOSE) % 2**32
        )
        wanted = max(1, round(federation.participation * len(names)))
        chosen = sorted(draw.permutation(names)[:wanted].tolist())
        # Drawn for all clients, so that who vanishes does not depend on who was chosen.
        fate = dict(zip(names, draw.random_sample((len(names), 2)).tolist(), strict=True))
        dropped = [name for name in chosen if fate[name][0] < federation.dropout]
        left = [name for name in chosen if name not in dropped]
        late = [name for name in left if fate[name][1] < federation.stragglers]
        self._now = Round(number, "catch_up", [], left, dropped, late)
        newest = -1 if self._newest is None else self._newest.round
        self._now.waiting = [name for name in left if self.clients.seen(name) < newest]
        if not self._now.waiting:
            self._await_replies()

    def _await_replies(self) -> None:
        self._now.stage, self._now.waiting = "train", list(self._now.chosen)

    def _train(self) -> None:
        """Let the next ones train; with the last one, the server aggregates."""
        now = self._now
        replies = self.clients.train(now.number, now.waiting) if now.waiting else []
        for reply in replies:
            now.replies[reply.sender] = reply
            record = self.record(reply.sender)
            record.replies += 1
            if reply.tensors:
                record.up.count(protocol.encoded_size(reply), reply)
        now.waiting = [name for name in now.waiting if name not in now.replies] if replies else []
        if not now.waiting:
            self._aggregate()

    def _aggregate(self) -> None:
        now, federation = self._now, self.shared.federation
        for name in now.dropped:
            self.record(name).dropped += 1
        for name in now.late:
            self.record(name).late += 1
        in_time = [now.replies[name] for name in sorted(now.replies) if name not in now.late]
        self._metrics = self._reply_metrics(in_time)
        if self.method.adapts and self._is_scored(now.number):
            before = self._client_accuracies()
            if before:
                self._metrics["federation/client_accuracy_before"] = _mean(before.values())
        fewest = min(config.fewest_replies(federation.model_dump()), len(self.clients.names()))
        self.server.round = now.number
        if len(in_time) < fewest:
            now.skipped = True
            now.stage = "score"
            self.skipped_rounds += 1
            self._warn(
                "round_skipped",
                f"round {now.number} had {len(in_time)} replies and needs {fewest} "
                "(method.federation.min_clients); it changes nothing",
            )
            return
        tensors = self.method.aggregate(in_time, self.server)
        measured = self.method.round_metrics()
        self._metrics |= {f"federation/{name}": value for name, value in measured.items()}
        self._tell_entropy(measured)
        self._tell_withheld(measured)
        self._publish(tensors, list(now.chosen))

    def _publish(self, tensors: Mapping[str, Tensor], to: Sequence[str]) -> None:
        number = self._now.number
        self._newest = Message(
            method=self.method.name,
            round=number,
            sender=protocol.SERVER,
            classes=self.shared.classes,
            tensors={name: value.detach().clone() for name, value in tensors.items()},
            open_set=self._open_digest(),
        )
        self._now.stage, self._now.waiting = "receive", list(to)
        if not to:
            self._receive()

    def _receive(self) -> None:
        """Give the newest consensus to the next ones."""
        now, newest = self._now, self._newest
        if newest is None:
            raise ValueError("nothing was published yet")
        if now.waiting:
            took = set(self.clients.receive(newest, now.waiting))
            size = protocol.encoded_size(newest) if newest.tensors else 0
            for name in sorted(took):
                if newest.tensors:
                    self.record(name).down.count(size, newest)
            now.waiting = [name for name in now.waiting if name not in took]

    # -- figures -----------------------------------------------------------------------------------

    def _reply_metrics(self, replies: Sequence[Message]) -> dict[str, float]:
        now = self._now
        self._learn_label_counts(replies)
        metrics = {
            "federation/replies": float(len(replies)),
            "federation/dropped": float(len(now.dropped)),
            "federation/late": float(len(now.late)),
        }
        known = [self.label_counts.get(reply.sender) for reply in replies]
        # Who does not say what it holds may hold any label.
        if known and None not in known:
            held = torch.tensor(known).sum(0)
            metrics["federation/labels_without_holder"] = float((held == 0).sum())
        return metrics

    def _learn_label_counts(self, replies: Sequence[Message]) -> None:
        """Keep what clients elsewhere say of their labels, of methods by which they do."""
        if self.method.keeps_record:
            return  # such counts go on through all rounds, and are no numbers of images
        for reply in replies:
            if reply.sender not in self._clients_here and "label_counts" in reply.tensors:
                self.label_counts[reply.sender] = reply.tensors["label_counts"].tolist()

    def labels_without_holder(self) -> list[int]:
        """Return labels that no client has; none where a client does not say what it has."""
        known = [self.label_counts.get(name) for name in self.clients.names()]
        return [] if None in known else partition.without_holder(np.array(known))

    def _score(self) -> None:
        """Score the clients' models, choose which to deliver, and add up the traffic."""
        number = self._now.number
        ups, downs = (
            [getattr(record, way) for record in self.records.values()] for way in ("up", "down")
        )
        self._metrics |= {
            "federation/bytes_up": float(sum(one.encoded_bytes for one in ups)),
            "federation/bytes_down": float(sum(one.encoded_bytes for one in downs)),
        }
        if not self._is_scored(number):
            return
        answers = self._answers()
        if not answers:
            return
        accuracies = self._client_accuracies(answers)
        self.accuracies[number] = accuracies
        self._metrics |= {
            "federation/client_accuracy_mean": _mean(accuracies.values()),
            "federation/client_accuracy_min": min(accuracies.values()),
            "federation/client_accuracy_max": max(accuracies.values()),
        }
        if self.method.ensemble != "none":
            self._metrics["federation/ensemble_accuracy"] = self._ensemble_accuracy(answers)
        if self.method.delivered == "client":
            self._deliver(number, accuracies)

    def _deliver(self, number: int, accuracies: Mapping[str, float]) -> None:
        """Put the weights of the best client into the student."""
        candidates = [name for name in self._scoring.deliverable if name in accuracies]
        if not candidates:
            return
        # The first of equal ones: names are sorted.
        best = max(candidates, key=lambda name: accuracies[name])
        model = self.clients.model(best)
        if model is not None:
            self.best_clients[number] = best
            self._student.load_state_dict(model.state_dict())

    def epsilon(self) -> float | None:
        """Return epsilon for the client that replied most often, or None without privacy."""
        wanted = self.shared.federation.privacy
        if wanted is None:
            return None
        releases = max((record.replies for record in self.records.values()), default=0)
        value = privacy.epsilon(
            noise_multiplier=wanted.noise_multiplier, releases=releases, delta=wanted.delta
        )
        return value if math.isfinite(value) else None

    def _is_scored(self, number: int) -> bool:
        every = self.shared.training.evaluate_every_epochs
        is_last = number >= (self.shared.training.max_steps or self.shared.training.epochs)
        return self._scoring.split is not None and (
            number % every == 0 or is_last or number == self.shared.training.epochs
        )

    def _answers(self) -> dict[str, Float[Tensor, "N C"]]:
        split = self._scoring.split
        return {} if split is None else self.clients.logits(split.every_image())

    def _client_accuracies(self, answers: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        split = self._scoring.split
        found = self._answers() if answers is None else answers
        return {} if split is None else accuracies(found, split.labels)

    def _ensemble_accuracy(self, answers: Mapping[str, Tensor]) -> float:
        if self._scoring.split is None:
            raise ValueError("there is nothing to score on")
        together = ensemble(answers, self.method.ensemble)
        return float((together.argmax(1) == self._scoring.split.labels).double().mean())

    def _tell_entropy(self, measured: Mapping[str, float]) -> None:
        before, after = measured.get("mean_entropy"), measured.get("target_entropy")
        if before is None or after is None or after <= before + ROSE or "entropy" in self._told:
            return
        self._told.add("entropy")
        self._warn(
            "entropy_rose",
            f"the targets of round {self._now.number} have a mean entropy of {after:.3f} nats, and "
            f"the clients' mean {before:.3f}: the aggregation flattens them; lower "
            "method.temperature, or choose aggregation power",
        )

    def _tell_withheld(self, measured: Mapping[str, float]) -> None:
        count = measured.get("withheld_labels", 0.0)
        if not count or "withheld" in self._told:
            return
        self._told.add("withheld")
        self._warn(
            "labels_withheld",
            f"nothing is sent of {count:g} labels, which fewer than {self.method.fewest_holders} "
            f"clients held in round {self._now.number} (method.federation.min_clients): it would "
            "show what single clients say",
        )

    def _open_digest(self) -> str:
        open_set = self.shared.open_set
        return open_set.digest if self.method.uses_open_set and open_set is not None else ""


def accuracies(answers: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Return the share of right answers of each client."""
    return {
        name: float((logits.argmax(1) == labels).double().mean())
        for name, logits in answers.items()
    }


def ensemble(answers: Mapping[str, Tensor], kind: str) -> Float[Tensor, "N C"]:
    """Return the mean of all clients' scores or probabilities."""
    rows = torch.stack([answers[name] for name in sorted(answers)])
    return rows.mean(0) if kind == "scores" else rows.softmax(2).mean(0)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(sum(numbers)) / len(numbers)


def _message_state(message: Message) -> dict[str, Any]:
    return {**vars(message), "metrics": dict(message.metrics)}

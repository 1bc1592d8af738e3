"""One client of a federation: its network, its images, and what it does in a round.

It receives what the server publishes, trains, and says what it sends. It knows no loop and no
other client, so the same class serves a simulation and a program of the data's owner.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config.federation import Federation
from workers.distill.config.training import Training
from workers.distill.data import loader, stateless_rng
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.federated import protocol
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.protocol import Message, Tensors
from workers.distill.functional.federated import privacy
from workers.distill.methods.base import Moment, Terms
from workers.distill.methods.federated.base import (
    FederatedMethod,
    LocalResult,
    LocalStep,
    MakeOptimizer,
)
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision
from workers.distill.training.optimizers import TrainOptimizer
from workers.distill.training.step import DistillationStep
from workers.distill.training.teachers import NoTeacher

EVALUATED = 256
"""Images at a time that are predicted without training."""
STEP, ADAPT, NOISE = 11, 12, 13
"""What random numbers are for."""
DISTRIBUTIONS = ("probabilities", "label_probabilities")
TABLES = (*DISTRIBUTIONS, "scores", "label_scores", "prototypes")
"""Kinds of content that `privacy` clips and adds noise to."""


@dataclass(frozen=True)
class ClientContext:
    """What all clients of a process share."""

    method: FederatedMethod
    training: Training
    preprocess: Preprocessor
    precision: Precision
    classes: int
    open_set: OpenSet | None

    @property
    def federation(self) -> Federation:
        """Return the settings of the federation."""
        return self.method.params.federation

    @property
    def device(self) -> torch.device:
        """Return where networks and images are."""
        return self.precision.device

    def moment(self, number: int) -> Moment:
        """Return where training stands: the schedule counts rounds."""
        return Moment(epoch=number, step=number, steps_per_epoch=1)


@dataclass(frozen=True)
class LocalOutcome:
    """What local training leaves beside the weights."""

    record: Tensors
    losses: Mapping[str, Tensor]
    """Mean of each term over the steps."""
    images: int
    """Images that were seen, several passes counted."""


class LocalClient:
    """A client with its own network and images; `name` decides its random numbers.

    `receive` and `train` take turns: the start (round 0), round 1, its consensus, and so on. Who
    missed rounds receives the newest consensus alone. A round starts with a fresh optimizer.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        images: BatchLoader,
        shared: ClientContext,
        *,
        noise_seed: int | None = None,
    ) -> None:
        """Hold a client's network and images.

        `noise_seed` decides the noise of `privacy`: a secret of the client. Without it, it follows
        from the seed of the job, which the server knows, so that it protects in a simulation only.
        """
        shared.method.check_client(network)
        self.name = name
        self.network = network
        # The same tensors all the time: with many small networks, looking them up is what costs.
        self._state: Tensors = network.state_dict()
        self.shared = shared
        self.seed = seed_of(shared.training.seed, name)
        self._noise_seed = self.seed if noise_seed is None else noise_seed
        self.batches = self._own_batches = images
        self._extra: tuple[Tensor, Tensor] | None = None
        self._record: Tensors | None = None
        self.label_counts = images.label_counts(shared.classes)
        self.memory: Tensors = {}
        self.received: Tensors = {}
        """The newest consensus."""
        self.seen = -1
        """Its round."""
        self.sent: Tensors = {}
        """The last reply, which may be needed to read the consensus that follows."""
        self.sent_round = 0
        self.step = DistillationStep(
            network, shared.method, NoTeacher(shared.device), shared.preprocess, shared.precision
        )

    @property
    def samples(self) -> int:
        """Return the number of training images."""
        return self.batches.count

    # -- a round -----------------------------------------------------------------------------------

    def train(self, number: int) -> Message:
        """Train on the own images in a round (from 1), and return the reply."""
        self.start_training()
        return self.reply(number, self.fit(number))

    def receive(self, consensus: Message) -> None:
        """Keep what the server has published, and train on the open set if the method does."""
        self.keep(consensus)
        targets = self.targets(consensus)
        if targets is not None:
            fit_open(self.step, self.shared, targets, consensus.round, seed=self.seed)

    # -- the parts of a round, which a group of clients takes together -----------------------------

    def start_training(self) -> None:
        """Take over the server's weights, of methods that share them."""
        if self.shared.method.takes_weights:
            self.load(protocol.part(self.received, "weights"))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load some of the network's weights, or all; raises `ValueError` for others."""
        copy_weights(weights, self._state, of=self.network.reference)

    def reply(self, number: int, trained: LocalOutcome) -> Message:
        """Return the reply after local training."""
        method, logits = self.shared.method, None
        self._record = trained.record if method.keeps_record else None
        check_finite(self.name, number, trained.losses)
        if method.uses_open_set and self.shared.open_set is not None:
            logits = self.predict(self.shared.open_set.of_round(number))
        result = LocalResult(
            weights=self._state,
            record=trained.record,
            open_logits=logits,
            label_counts=self.label_counts,
            memory=self.memory,
            round=number,
        )
        tensors = {name: value.detach().clone() for name, value in method.reply(result).items()}
        self.sent, self.sent_round = self._private(tensors, number), number
        return Message(
            method=method.name,
            round=number,
            sender=self.name,
            classes=self.shared.classes,
            tensors=self.sent,
            open_set=self._open_digest,
            samples=self.samples,
        )

    def keep(self, consensus: Message) -> None:
        """Keep what the server has published."""
        sent = self.sent if self.sent_round == consensus.round else {}
        self.memory = self.shared.method.receive(self.memory, consensus.tensors, sent)
        self.received, self.seen = consensus.tensors, consensus.round

    def targets(self, consensus: Message) -> Float[Tensor, "N C"] | None:
        """Return the targets of open images that the client trains on, or None."""
        if not self.shared.method.adapts:
            return None
        return consensus.tensors.get("targets", consensus.tensors.get("scores"))

    def predict(self, images: UInt8[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the client's answers: logits in evaluation mode."""
        return predict(self.model, self.shared.preprocess, images)

    @property
    def model(self) -> Network:
        """Return the network by which the client answers."""
        return self.shared.method.client_model(self.network, self.memory)

    def extend(self, images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"]) -> None:
        """Add training images that somebody has made for this client; the state keeps them."""
        self._extra = (images, labels)
        self.batches = self._own_batches.extended(images, labels)
        self.label_counts = self.batches.label_counts(self.shared.classes)

    def local_step(
        self,
        number: int,
        step: int,
        batch_size: int,
        weights: Mapping[str, Tensor] | None = None,
    ) -> LocalStep:
        """Return what the loss of a step (from 1) may read.

        `weights` are the network's own where the caller has them at hand.
        """
        return LocalStep(
            memory=self.memory,
            received=self.received,
            weights=dict(self.network.named_parameters()) if weights is None else weights,
            draws=self.draws(number, step, batch_size),
            round=number,
        )

    def draws(self, number: int, step: int, batch_size: int) -> Tensors:
        """Return the random numbers of a step (from 1) on the device, of methods that have any."""
        method = self.shared.method
        if not method.draws_numbers:
            return {}
        draw = torch.Generator().manual_seed(stateless_rng.mix(self.seed, number, step, STEP))
        drawn = method.draws(draw, batch_size)
        return {name: value.to(self.shared.device) for name, value in drawn.items()}

    def start_record(self) -> Tensors:
        """Return what the record of a round starts from."""
        if self._record is not None:
            return self._record
        return self.shared.method.start_record(next(self.network.parameters()))

    def epochs(self, number: int) -> range:
        """Return the numbers of the passes over the own images in a round."""
        passes = self.shared.federation.local_epochs
        return range((number - 1) * passes + 1, number * passes + 1)

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "memory": self.memory,
            "received": self.received,
            "seen": self.seen,
            "sent": self.sent,
            "sent_round": self.sent_round,
            "record": self._record,
            "extra": self._extra,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        device = self.shared.device
        self.memory, self.received, self.sent = (
            {name: value.to(device) for name, value in state[part].items()}
            for part in ("memory", "received", "sent")
        )
        self.seen, self.sent_round = state["seen"], state["sent_round"]
        if state["record"] is not None:
            self._record = {name: value.to(device) for name, value in state["record"].items()}
        if state["extra"] is not None:
            self.extend(*state["extra"])

    def fit(self, number: int) -> LocalOutcome:
        """Make the local training of a round."""
        shared, method = self.shared, self.shared.method
        # Dropout draws from torch's own generator: the same numbers whoever was trained before.
        torch.manual_seed(stateless_rng.mix(self.seed, number))
        optimizer = TrainOptimizer([self.network], shared.training, shared.precision)
        record = self.start_record()
        sums: dict[str, Tensor] = {}
        steps = images = 0
        weights = dict(self.network.named_parameters())
        self.network.train()
        for batch in self._batches(number):
            steps += 1
            images += len(batch.labels)
            local = self.local_step(number, steps, shared.training.batch_size, weights)
            features = self.step.forward_student(batch)
            terms = method.local_terms(features, batch, local)
            optimizer.step(terms, shared.moment(number))
            record = method.record(record, detached(features), batch)
            add(sums, terms)
        return LocalOutcome(record, {name: value / steps for name, value in sums.items()}, images)

    def _batches(self, number: int) -> Iterator[Batch]:
        for epoch in self.epochs(number):
            yield from self.batches.epoch(epoch)

    def _private(self, tensors: Tensors, number: int) -> Tensors:
        """Return what is sent, its tables clipped and with noise where that is wanted."""
        wanted = self.shared.federation.privacy
        if wanted is None:
            return tensors
        draw = torch.Generator().manual_seed(stateless_rng.mix(self._noise_seed, number, NOISE))
        changed = {}
        for name, table in tensors.items():
            if name in TABLES:
                change = (
                    privacy.privatize_probabilities if name in DISTRIBUTIONS else privacy.privatize
                )
                changed[name] = change(
                    table,
                    clip=wanted.clip,
                    noise_multiplier=wanted.noise_multiplier,
                    generator=draw,
                )
        return {**tensors, **changed}

    @property
    def _open_digest(self) -> str:
        is_used = self.shared.method.uses_open_set and self.shared.open_set is not None
        return self.shared.open_set.digest if is_used and self.shared.open_set else ""


def seed_of(seed: int, name: str) -> int:
    """Return the seed of a client: its own, whoever else takes part."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return stateless_rng.mix(seed, number)


def load_part(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Load some weights of a network, or all; raises `ValueError` for names or shapes it has not.

    Many times faster than `load_state_dict` for a small network, of which there are many here.
    """
    copy_weights(weights, network.state_dict(), of=network.reference)


def copy_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, of: str) -> None:
    """Copy weights into a network's own; raises `ValueError` for names or shapes it has not."""
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f"{of} has no weights {name} of {list(value.shape)}")
        own[name].copy_(value)


def predict(
    network: Network, preprocess: Preprocessor, images: UInt8[Tensor, "N c h w"]
) -> Float[Tensor, "N C"]:
    """Return a network's logits in evaluation mode, in float32, without a gradient."""
    was_training = network.training
    network.eval()
    try:
        # Not in inference mode: what is predicted here becomes the target of a loss.
        with torch.no_grad():
            parts = [
                network(preprocess(images[first : first + EVALUATED])).float()
                for first in range(0, len(images), EVALUATED)
            ]
    finally:
        network.train(was_training)
    return torch.cat(parts)


def open_batches(
    open_set: OpenSet, number: int, *, batch_size: int, epochs: int, seed: int
) -> Iterator[Int[Tensor, " n"]]:
    """Yield batches of the places of a round's open images, in another order each epoch."""
    count = len(open_set.rows(number))
    for epoch in range(epochs):
        draw = torch.Generator().manual_seed(stateless_rng.mix(seed, number, epoch, ADAPT))
        order = torch.randperm(count, generator=draw).to(open_set.images.device)
        for start, end in loader.bounds(count, batch_size):
            yield order[start:end]


def fit_open(
    step: DistillationStep,
    shared: ClientContext,
    targets: Float[Tensor, "N C"],
    number: int,
    *,
    seed: int,
    make_optimizer: MakeOptimizer | None = None,
) -> None:
    """Train a network on the open images of a round with such targets.

    By the optimizer of the training at its scheduled rate, or by another one.
    """
    if shared.open_set is None:
        raise ValueError("there is no open set to train on")
    torch.manual_seed(stateless_rng.mix(seed, number, ADAPT))
    open_images = shared.open_set.of_round(number)
    moment = shared.moment(max(number, 1))
    scheduled = TrainOptimizer([step.student], shared.training, shared.precision)
    step.student.train()
    batches = list(
        open_batches(
            shared.open_set,
            number,
            batch_size=shared.training.batch_size,
            epochs=shared.method.adapt_epochs,
            seed=seed,
        )
    )
    own = None
    if make_optimizer is not None:
        own = make_optimizer(list(step.student.parameters()), len(batches))
    for places in batches:
        images = open_images[places]
        features = step.forward_student(Batch(images, places, places))
        terms = shared.method.adapt_terms(features, targets[places], None)
        if own is None:
            scheduled.step(terms, moment)
            continue
        own.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
        own.step()


def detached(features: Features) -> Features:
    """Return logits and embedding without their gradient; records read nothing else."""
    return Features(features.logits.detach(), features.pooled.detach())


def add(sums: dict[str, Tensor], terms: Terms) -> None:
    """Add terms to sums, without their gradient."""
    for name, value in terms.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach().clone()


def check_finite(name: str, number: int, losses: Mapping[str, Tensor]) -> None:
    """Raise `Diverged` if a client's loss was not finite in a round."""
    values = {term: float(value) for term, value in losses.items()}
    if all(torch.tensor(value).isfinite() for value in values.values()):
        return
    listed = ", ".join(f"{term} {value:g}" for term, value in values.items())
    raise errors.Diverged(
        f"the loss of {name} was not finite in round {number} ({listed}); lower "
        "training.optimizer.learning_rate, set training.clip_norm, or lower the method's weights",
        round=number,
        client=name,
        terms=values,
    )

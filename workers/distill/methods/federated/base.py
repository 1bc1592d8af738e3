"""What a federated method declares: the loss of a client, what travels, how the server aggregates.

A round: each client that takes part trains on its own images (`local_terms`) and sends `reply`; the
server turns the replies into a consensus (`aggregate`), the same for all, which clients keep in
their memory (`receive`) and may train on (`adapt_terms`). Tensors are named as they travel:
by their kind, such as `targets`, or `weights/<name>` (`config.messages.KINDS`).

A method does no forward pass of a client, no optimizer step of one, and writes no file. What runs
on clients reads no state of the method but its hyper-parameters, so that many clients can be
trained at once (`torch.func.vmap`): no branch depends on data, and a `mean` leaves out padding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from workers.distill.config.descriptions import Exchange, MethodDescription
from workers.distill.config.devices import AcrossDevices
from workers.distill.config.federation import Federation, fewest_replies
from workers.distill.data.types import Batch
from workers.distill.functional.federated import averaging
from workers.distill.methods.base import Method, Need, Terms
from workers.distill.networks.interface import Features, Network

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by the names under which they travel."""
Delivers: TypeAlias = Literal["server", "client"]
MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter], int], torch.optim.Optimizer]
"""Returns an optimizer of some parameters that will make so many steps."""
Ensemble: TypeAlias = Literal["none", "scores", "probabilities"]
"""What the mean over clients is taken of where they answer together."""
Weighting = Annotated[
    averaging.Weighting,
    Field(
        description="How clients count in the mean of their weights: by their numbers of images, "
        "or alike."
    ),
]


class Reply(Protocol):
    """What a client sent in a round."""

    @property
    def sender(self) -> str:
        """Return the client's name."""
        ...

    @property
    def samples(self) -> int:
        """Return the number of its training images."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Return what it sent."""
        ...

    def part(self, kind: str) -> Tensors:
        """Return the tensors of a kind that has several, by their own names."""
        ...


class Server(Protocol):
    """What a method may use of the server while it aggregates."""

    @property
    def network(self) -> Network:
        """Return the server's own model."""
        ...

    @property
    def round(self) -> int:
        """Return the round that ends, from 1; 0 before the first."""
        ...

    @property
    def rounds(self) -> int:
        """Return the number of rounds in all."""
        ...

    @property
    def generator(self) -> torch.Generator:
        """Return random numbers of this round, on the CPU."""
        ...

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights into the server's model."""
        ...

    def open_logits(self, weights: Mapping[str, Tensor]) -> Float[Tensor, "N C"]:
        """Return logits of the round's open images by the student's network with such weights."""
        ...

    def fit_open(
        self, targets: Float[Tensor, "N C"], optimizer: MakeOptimizer | None = None
    ) -> None:
        """Train the server's model on the round's open images by the method's `adapt_terms`.

        By the optimizer of the training, or by another one.
        """
        ...


@dataclass(frozen=True)
class LocalStep:
    """What the loss of a client may read in a step of local training, besides its batch."""

    memory: Mapping[str, Tensor]
    """What `receive` returned last; empty before the first consensus."""
    received: Mapping[str, Tensor]
    """The newest consensus that the client has; empty before the first."""
    weights: Mapping[str, Tensor]
    """The client's trainable parameters as they are in this step, by name."""
    draws: Mapping[str, Tensor]
    """What `draws` returned for this step."""
    round: int
    """From 1."""


@dataclass(frozen=True)
class LocalResult:
    """A client after its local training in a round."""

    weights: Mapping[str, Tensor]
    """Parameters and buffers, by name."""
    record: Mapping[str, Tensor]
    """What `record` added up."""
    open_logits: Float[Tensor, "N C"] | None
    """Of the round's open images, in evaluation mode; None without an open set."""
    label_counts: Int[Tensor, " C"]
    memory: Mapping[str, Tensor]
    round: int


def mean(values: Float[Tensor, " N"], weights: Float[Tensor, " N"] | None) -> Float[Tensor, ""]:
    """Return the mean; rows of weight 0 (padding of a batch) are left out."""
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def named_weights(weights: Mapping[str, Tensor]) -> Tensors:
    """Return weights under the names by which they travel."""
    return {f"weights/{name}": value for name, value in weights.items()}


def average_weights(
    replies: Sequence[Reply], server: Server, *, weighting: averaging.Weighting
) -> Tensors:
    """Load the mean of the clients' weights into the server's model, and return it to be sent."""
    shares = averaging.client_weights(
        torch.tensor([reply.samples for reply in replies]), weighting=weighting
    )
    weights = averaging.average_states([reply.part("weights") for reply in replies], shares)
    server.load(weights)
    return named_weights(weights)


class FederatedMethod(Method):
    """Base of the methods whose data stay with clients."""

    family = "federated"
    across_devices: ClassVar[AcrossDevices] = "one"
    loop = "federated"
    needs: ClassVar[tuple[Need, ...]] = ("labels",)
    accepts_mixed = False
    combines = False
    sends: ClassVar[tuple[str, ...]] = ()
    """Kinds of content of a reply."""
    receives: ClassVar[tuple[str, ...]] = ()
    """Kinds of content of a consensus."""
    uses_open_set: ClassVar[bool] = False
    shares_weights: ClassVar[bool] = False
    """Whether clients start each round from the server's weights, so have the student's network."""
    weights_by: ClassVar[str | None] = None
    """The boolean hyper-parameter by which weights travel besides, if there is one."""
    delivers: ClassVar[Delivers] = "server"
    """Whose model is delivered: the server's, or that of the client with the best validation."""
    adapts: ClassVar[bool] = False
    """Whether clients train on the open set when they receive a consensus."""
    exchanges: ClassVar[bool] = True
    """Whether anything travels at all."""
    pools: ClassVar[bool] = False
    """Whether a single client holds the images of all."""
    ensemble: ClassVar[Ensemble] = "probabilities"
    """How all clients together are scored, beside each alone."""

    class Params(Method.Params):
        """The federation; a caller may set single fields of it."""

        federation: Federation = Field(
            Federation(),
            description="Clients, rounds and the division of the data; single fields may be given.",
        )

        @field_validator("federation", mode="before")
        @classmethod
        def _over_defaults(cls, value: object) -> object:
            if not isinstance(value, dict):
                return value
            return {**cls.model_fields["federation"].default.model_dump(), **value}

    params: Params

    def __init__(self, params: Params, student: Network, teacher: Network | None) -> None:
        super().__init__(params, student, teacher)
        self.classes = student.classes
        self.rounds = 1
        """Rounds in all; the engine sets it."""
        self.exchange = self.declared_exchange().chosen(params.model_dump())
        """What travels with these hyper-parameters."""

    @property
    def takes_weights(self) -> bool:
        """Whether clients start each round from weights of the server."""
        return self.exchange.shares_weights

    @property
    def delivered(self) -> Delivers:
        """Return whose model is delivered."""
        return self.exchange.delivers

    @property
    def sent_kinds(self) -> tuple[str, ...]:
        """Return the kinds of content of a reply, with these hyper-parameters."""
        return self.exchange.sends

    @property
    def received_kinds(self) -> tuple[str, ...]:
        """Return the kinds of content of a consensus, with these hyper-parameters."""
        return self.exchange.receives

    @property
    def fewest_holders(self) -> int:
        """Return how many clients must hold a label before others may see what they say of it."""
        return fewest_replies(self.params.federation.model_dump())

    @property
    def keeps_record(self) -> bool:
        """Whether a client's record goes on through all rounds."""
        return False

    @classmethod
    def declared_exchange(cls) -> Exchange:
        """Return what travels, whatever the hyper-parameters."""
        return Exchange(
            sends=cls.sends,
            receives=cls.receives,
            uses_open_set=cls.uses_open_set,
            shares_weights=cls.shares_weights,
            delivers=cls.delivers,
            weights_by=cls.weights_by,
        )

    @classmethod
    def describe(cls) -> MethodDescription:
        """Return what the rules read of this method, as the catalog exports it."""
        return super().describe().model_copy(update={"exchange": cls.declared_exchange()})

    # -- on clients --------------------------------------------------------------------------------

    def start_record(self, like: Tensor) -> Tensors:
        """Return what `record` adds to, at the start of a round, with the device of `like`."""
        return {}

    def record(self, record: Tensors, student: Features, batch: Batch) -> Tensors:
        """Return the record of a round with one more step's outputs, which have no gradient."""
        return record

    @property
    def draws_numbers(self) -> bool:
        """Whether a step has random numbers of its own."""
        return type(self).draws is not FederatedMethod.draws

    def draws(self, generator: torch.Generator, batch_size: int) -> Tensors:
        """Return the random numbers of a step, for `LocalStep.draws`."""
        return {}

    def local_terms(self, student: Features, batch: Batch, local: LocalStep) -> Terms:
        """Return the weighted terms of a client's loss; here cross-entropy with its labels."""
        return self.label_terms(student, batch)

    def label_terms(self, student: Features, batch: Batch) -> Terms:
        """Return the mean cross-entropy with the labels, in nats, as the `task` term."""
        losses = functional.cross_entropy(student.logits, batch.labels, reduction="none")
        return {"task": mean(losses, batch.weights)}

    def reply(self, result: LocalResult) -> Tensors:
        """Return what a client sends after its local training."""
        return {}

    def receive(
        self,
        memory: Mapping[str, Tensor],
        consensus: Mapping[str, Tensor],
        sent: Mapping[str, Tensor],
    ) -> Tensors:
        """Return a client's memory after a consensus; `sent` is its reply of that round, if any."""
        return dict(memory)

    def check_client(self, network: Network) -> None:
        """Raise `IncompatibleNetworks` for a client's network that does not fit the method."""

    def sent_weights(self, names: Sequence[str]) -> list[str]:
        """Return which of the network's weights a reply has, of methods that send weights."""
        return list(names)

    def client_model(self, network: Network, memory: Mapping[str, Tensor]) -> Network:
        """Return the network by which a client answers; it is evaluated, never trained."""
        return network

    @property
    def adapt_epochs(self) -> int:
        """Return a client's passes over the round's open images after a consensus."""
        return 1

    def adapt_terms(
        self, student: Features, targets: Float[Tensor, "N C"], weights: Float[Tensor, " N"] | None
    ) -> Terms:
        """Return the weighted terms of the loss on open images, of methods that adapt."""
        raise NotImplementedError(f"method {self.name} does not train on the open set")

    # -- at the server -----------------------------------------------------------------------------

    def start(self, server: Server) -> Tensors:
        """Return what clients get before the first round; here the weights, if they are shared."""
        if not self.takes_weights:
            return {}
        return named_weights(server.network.state_dict())

    def aggregate(self, replies: Sequence[Reply], server: Server) -> Tensors:
        """Return the consensus of a round; `replies` are sorted by sender, one at least.

        It may train the method's own modules, and leaves the server's model as it shall be
        validated.
        """
        return {}

    def round_metrics(self) -> dict[str, float]:
        """Return what the last `aggregate` measured, such as `target_entropy` in nats."""
        return {}


class AveragingMethod(FederatedMethod):
    """Base of the methods whose server takes the mean of the clients' weights."""

    sends: ClassVar[tuple[str, ...]] = ("weights",)
    receives: ClassVar[tuple[str, ...]] = ("weights",)
    shares_weights = True

    class Params(FederatedMethod.Params):
        """The federation, and how clients count."""

        weighting: Weighting = "samples"

    params: Params

    def reply(self, result: LocalResult) -> Tensors:
        """Return the client's weights."""
        return named_weights(result.weights)

    def aggregate(self, replies: Sequence[Reply], server: Server) -> Tensors:
        """Return the mean of the clients' weights."""
        return average_weights(replies, server, weighting=self.params.weighting)

"""Who holds the data of a federated job, and how its rounds go.

Each federated method has a federation among its hyper-parameters, as `federation`; a caller changes
single fields of it. A round is an epoch of `training`: schedule, patience and validation count in
rounds (`rounds_as_epochs`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from workers.distill.config.training import Values

REMOTE = "remote"
"""What `clients` says where the clients are other processes that join over HTTP."""
FEWEST_REPLIES = 2
"""Replies that a round needs at least, where nothing else is asked for and there are so many."""
OPEN_SHARE = 0.2
"""Share of the training split that becomes the open set, where nothing else is asked for."""

PartitionKind: TypeAlias = Literal["dirichlet", "shards", "fd", "iid", "given"]
OpenCount: TypeAlias = Annotated[int, Field(ge=0, le=10**9)]
OpenShare: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
EngineChoice: TypeAlias = Literal["auto", "loop", "vmap"]


class Partition(Values):
    """How the training images are divided among clients of one process."""

    kind: PartitionKind = Field(
        "dirichlet",
        description="dirichlet: the shares of each label are drawn from Dir(alpha). shards: sorted "
        "by label, cut into equal shards. fd: samples drawn for each client on its own, few of its "
        "target labels (arXiv 1811.11479). iid: equal parts at random. given: `indices`.",
    )
    alpha: float = Field(
        0.5,
        gt=0,
        le=1e6,
        description="Of dirichlet: the smaller, the fewer labels a client has; 0.05 to 10 are "
        "common.",
    )
    cap: float | None = Field(
        2.0,
        ge=1,
        le=1e6,
        description="Of dirichlet: a client with so many times the mean number of images gets none "
        "of the labels that follow; null has no cap.",
    )
    min_size: int = Field(
        10,
        ge=1,
        le=10**9,
        description="Of dirichlet: images of each client at least; the draw is repeated until all "
        "have them.",
    )
    tries: int = Field(
        1000, ge=1, le=100_000, description="Of dirichlet: draws before the partition is given up."
    )
    shards_per_client: int = Field(2, ge=1, le=1000, description="Of shards: shards of a client.")
    samples: int = Field(
        2000, ge=1, le=10**9, description="Of fd: images drawn for each client; clients may share."
    )
    target_labels: int = Field(
        3, ge=0, le=100_000, description="Of fd: labels of each client that it has few images of."
    )
    target_samples: int = Field(
        5, ge=0, le=10**9, description="Of fd: images that are kept of a target label."
    )
    indices: list[list[Annotated[int, Field(ge=0)]]] | None = Field(
        None,
        max_length=100_000,
        description="Of given: numbers of each client's images in the training split, from 0.",
    )


class ClientNetwork(Values):
    """The network of a client, where it has another one than the student."""

    network: str = Field(
        min_length=1, max_length=160, description="Reference such as `retort/resnet8`."
    )
    arguments: dict[str, Any] = Field(  # Any: JSON, checked by the network's own schema
        default_factory=dict, description="Keyword arguments of the network."
    )


class Privacy(Values):
    """Clipping of what clients send, and noise on it (the Gaussian mechanism)."""

    clip: float = Field(
        1.0, gt=0, le=1e6, description="Largest L2 norm of a table that a client sends."
    )
    noise_multiplier: float = Field(
        1.0, ge=0, le=1e6, description="Standard deviation of the noise over `clip`."
    )
    delta: float = Field(
        1e-5, gt=0, lt=1, description="Probability for which epsilon promises nothing."
    )


class Augmentation(Values):
    """Images that a generator at the server makes for clients, of labels that these lack (FAug)."""

    target_labels: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Labels that a client asks images of: so many with the fewest images. null: "
        "those with less than `scarcity` of its median count.",
    )
    scarcity: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the median count of a client's labels below which it lacks a label.",
    )
    redundant_labels: int = Field(
        2,
        ge=0,
        le=100_000,
        description="Other labels that a client sends seeds of too, at random, as camouflage: with "
        "none the server learns exactly which labels it lacks, and gets seeds only from those who "
        "have few. Published results: 0.",
    )
    seeds_per_label: int = Field(
        5, ge=1, le=10_000, description="Images of each such label that a client sends, if it has."
    )
    generator: Literal["gan", "gaussian"] = Field(
        "gan",
        description="gan: a conditional GAN of dense layers. gaussian: mean and deviation of each "
        "pixel by label, a cheap substitute for small images.",
    )
    oversampled: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Changed copies of the seeds of each label that the generator is trained on; "
        "the paper searched the internet for similar images instead.",
    )
    steps: int = Field(2000, ge=1, le=1_000_000, description="Of gan: steps of both networks.")
    batch_size: int = Field(64, ge=2, le=65_536, description="Of gan: images in a step.")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="Of gan: of both networks' Adam. At 2e-4, which is common, classes are told "
        "apart only after several thousand steps.",
    )
    noise_size: int = Field(100, ge=1, le=65_536, description="Of gan: values of noise.")


class Federation(Values):
    """Clients, rounds, and how the data are divided."""

    clients: Annotated[int, Field(ge=1, le=100_000)] | Literal["remote"] = Field(
        10,
        description="Number of clients among which the training split is divided in this process; "
        "remote: other processes join with data of their own.",
    )
    rounds: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Rounds; null: `training.epochs`. A round is an epoch of `training`.",
    )
    participation: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the clients that is drawn for each round, at least one.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Simulated: probability that a drawn client vanishes for the round, untrained.",
    )
    stragglers: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Simulated: probability that a drawn client trains, but replies too late; its "
        "reply is dropped and counted.",
    )
    min_clients: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Replies that a round needs. With fewer, a simulated round changes nothing and "
        "is counted as skipped; with remote clients the job fails. Of fd and feddistill also: "
        "the clients that must hold a label before its row is sent (feddistill's released_code "
        "sends all). null: 2, or 1 of one client.",
    )
    deadline_seconds: float = Field(
        600, gt=0, le=30 * 86_400, description="Of remote clients: how long a round waits."
    )
    join_seconds: float = Field(
        3600,
        gt=0,
        le=30 * 86_400,
        description="Of remote clients: how long the first round waits until `min_clients` have "
        "joined; then the job fails.",
    )
    local_epochs: int = Field(
        1, ge=1, le=10_000, description="Passes of a client over its own images in a round."
    )
    partition: Partition = Field(Partition(), description="How the training images are divided.")
    open_images: OpenCount | OpenShare | None = Field(
        None,
        description="Images of the training split that are set aside, without their labels, as the "
        "open set that all parties have: their number, or below 1 their share. null: a fifth where "
        "the method needs one, else none. With remote clients the open set is the training split, "
        "or so many images of it.",
    )
    open_images_per_round: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Open images that are predicted in a round, drawn by the server; null: all.",
    )
    networks: list[ClientNetwork] | None = Field(
        None,
        min_length=1,
        max_length=100_000,
        description="Networks of the clients, in turn: client k has number k modulo their count. "
        "null: all have the student's.",
    )
    engine: EngineChoice = Field(
        "auto",
        description="loop: clients are trained one after the other. vmap: those with the same "
        "network at once; what cannot be is trained in the loop, and said. auto: vmap from "
        "4 clients on.",
    )
    privacy: Privacy | None = Field(
        None, description="Clip what clients send, and add noise; null sends it as it is."
    )
    augmentation: Augmentation | None = Field(
        None,
        description="Before the first round, clients send a few images and get others of labels "
        "that they lack (FAug); null sends no image.",
    )


class AugmentedFederation(Federation):
    """A federation whose clients always get generated images."""

    augmentation: Augmentation = Field(
        Augmentation(),
        description="Before the first round, clients send a few images and get others of labels "
        "that they lack.",
    )


Json: TypeAlias = Mapping[str, Any]  # Any: a job's JSON


def rounds_as_epochs(method: object, training: Json) -> dict[str, Any]:
    """Return a caller's training with `epochs` from the method's `federation.rounds`, if given.

    A training that has `epochs` is returned as it is: rules compare the two.
    """
    federation = method.get("federation") if isinstance(method, Mapping) else None
    rounds = federation.get("rounds") if isinstance(federation, Mapping) else None
    if not isinstance(rounds, int) or isinstance(rounds, bool) or "epochs" in training:
        return dict(training)
    return {**training, "epochs": rounds}


def open_images_or_default(asked: int | float | None, *, uses_open_set: bool) -> int | float:
    """Return `open_images`, or what null stands for: a share where the method needs an open set."""
    if asked is not None:
        return asked
    return OPEN_SHARE if uses_open_set else 0


def open_count(asked: int | float, count: int) -> int:
    """Return how many of `count` images `open_images` asks for: so many, or below 1 such a share.

    A share has one image at least.
    """
    return max(1, round(asked * count)) if 0 < asked < 1 else int(asked)


def fewest_replies(federation: Json) -> int:
    """Return how many replies a round of a complete federation needs."""
    if federation["min_clients"] is not None:
        return int(federation["min_clients"])
    clients = federation["clients"]
    return FEWEST_REPLIES if clients == REMOTE else min(FEWEST_REPLIES, int(clients))

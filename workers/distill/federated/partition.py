"""Which client holds which training images: pure functions of labels, settings and a seed.

A partition is a list of indices for each client, with a digest, so that it is known what was
trained on even where the draw would be made differently one day. Labels are [N] numbers of classes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.config.federation import (
    Partition,
    open_count,
    open_images_or_default,
)
from workers.distill.data import stateless_rng

Indices = NDArray[np.int64]
OPEN, PARTS = 1, 2
"""What random numbers are for."""


@dataclass(frozen=True)
class ClientPartition:
    """Sorted indices of the training split: the open set, and each client's part.

    Parts may overlap where clients draw on their own (`fd`, `given`).
    """

    open_set: Indices
    parts: list[Indices]

    def digest(self) -> str:
        """Return the SHA-256 of the index lists, as JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the index lists as JSON: `open_set` and `clients`."""
        content = {
            "open_set": self.open_set.tolist(),
            "clients": [part.tolist() for part in self.parts],
        }
        return json.dumps(content, separators=(",", ":"))

    def label_counts(self, labels: Indices, classes: int) -> NDArray[np.int64]:
        """Return how many images of each class (column) each client (row) holds."""
        return np.stack([np.bincount(labels[part], minlength=classes) for part in self.parts])


def divide(
    labels: Indices, settings: Partition, *, clients: int, open_images: int, classes: int, seed: int
) -> ClientPartition:
    """Set the open set aside, and divide the rest among clients.

    Raises `BadRecipe` where the settings leave a client without images.
    """
    count = len(labels)
    if open_images > count - clients:
        raise errors.BadRecipe(
            f"open_images {open_images} of {count} training images leave fewer than one for each "
            f"of {clients} clients; lower method.federation.open_images or clients",
            field="method/federation/open_images",
        )
    # RandomState, not Generator: NumPy promises that its stream never changes.
    order = _random(seed, OPEN).permutation(count)
    open_set, private = np.sort(order[:open_images]), np.sort(order[open_images:])
    draw = _random(seed, PARTS)
    match settings.kind:
        case "dirichlet":
            parts = dirichlet(
                labels[private], settings, clients=clients, classes=classes, draw=draw
            )
        case "shards":
            parts = shards(labels[private], settings, clients=clients, draw=draw)
        case "fd":
            parts = few_targets(
                labels[private], settings, clients=clients, classes=classes, draw=draw
            )
        case "iid":
            parts = np.array_split(draw.permutation(len(private)), clients)
        case "given":
            return ClientPartition(open_set, _given(settings, count, clients, open_set))
    return ClientPartition(open_set, [private[np.sort(part)] for part in parts])


def open_images_of(asked: int | float | None, *, uses_open_set: bool, count: int) -> int:
    """Return how many of `count` training images become the open set."""
    return open_count(open_images_or_default(asked, uses_open_set=uses_open_set), count)


def dirichlet(
    labels: Indices,
    settings: Partition,
    *,
    clients: int,
    classes: int,
    draw: np.random.RandomState,
) -> list[Indices]:
    """Divide each label by shares drawn from Dir(alpha); draw again until all have `min_size`.

    A client that has `cap` times the mean number of images gets none of the labels that follow;
    where all have, the shares count as they were drawn. Source: the code of FedGen, arXiv
    2105.10056. Differs: the cap never leaves images out. Raises `BadRecipe` after `tries` draws.
    """
    count, closest = len(labels), 0
    needed = settings.min_size
    if needed * clients > count:
        raise errors.BadRecipe(
            f"partition.min_size {needed} for each of {clients} clients asks for "
            f"{needed * clients} images, and {count} are there; lower min_size or clients",
            field="method/federation/partition/min_size",
        )
    most = np.inf if settings.cap is None else settings.cap * count / clients
    rows_by_label = [np.flatnonzero(labels == label) for label in range(classes)]
    for _ in range(settings.tries):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        sizes = np.zeros(clients, dtype=np.int64)
        for rows in rows_by_label:
            shares = _shares(draw, settings.alpha, sizes < most)
            ends = np.floor(np.cumsum(shares) * len(rows)).astype(np.int64)
            ends[-1] = len(rows)
            for client, piece in enumerate(np.split(draw.permutation(rows), ends[:-1])):
                parts[client].append(piece)
                sizes[client] += len(piece)
        if sizes.min() >= needed:
            return [np.concatenate(pieces) for pieces in parts]
        closest = max(closest, int(sizes.min()))
    raise errors.BadRecipe(
        f"no partition with alpha {settings.alpha:g} gives each of {clients} clients "
        f"{needed} of {count} images: in {settings.tries} draws the smallest part had at most "
        f"{closest}; raise partition.alpha, or lower min_size or clients",
        field="method/federation/partition/alpha",
    )


def _shares(
    draw: np.random.RandomState, alpha: float, has_room: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return one draw of Dir(alpha) over the clients that have room, or over all if none has."""
    # Gamma variates of a tiny alpha may all be 0, so one client takes the label then.
    drawn = draw.standard_gamma(alpha, size=len(has_room))
    drawn = np.where(has_room, drawn, 0.0) if (drawn * has_room).sum() > 0 else drawn
    if drawn.sum() == 0:
        drawn[draw.randint(len(drawn))] = 1.0
    shares: NDArray[np.float64] = drawn / drawn.sum()
    return shares


def shards(
    labels: Indices, settings: Partition, *, clients: int, draw: np.random.RandomState
) -> list[Indices]:
    """Sort by label, cut into equal shards, and give each client `shards_per_client` of them.

    A client has about as many labels as shards, more where a shard has two. Source: arXiv
    1602.05629. Raises `BadRecipe` where there are fewer images than shards.
    """
    wanted = clients * settings.shards_per_client
    if wanted > len(labels):
        raise errors.BadRecipe(
            f"{clients} clients with {settings.shards_per_client} shards each need {wanted} "
            f"images, and {len(labels)} are there; lower partition.shards_per_client or clients",
            field="method/federation/partition/shards_per_client",
        )
    # Images of a label in random order, so that a shard depends on the seed as well.
    mixed = draw.permutation(len(labels))
    cut = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], wanted)
    dealt = draw.permutation(wanted).reshape(clients, -1)
    return [np.concatenate([cut[number] for number in numbers]) for numbers in dealt]


def few_targets(
    labels: Indices,
    settings: Partition,
    *,
    clients: int,
    classes: int,
    draw: np.random.RandomState,
) -> list[Indices]:
    """Draw `samples` images for each client, and keep `target_samples` of its target labels.

    Clients draw on their own, so that parts overlap. Source: arXiv 1811.11479, section 3.
    """
    count, parts = len(labels), []
    if settings.samples > count or settings.target_labels > classes:
        raise errors.BadRecipe(
            f"partition fd draws {settings.samples} of {count} images and {settings.target_labels} "
            f"of {classes} labels; lower partition.samples or partition.target_labels",
            field="method/federation/partition/samples",
        )
    for _ in range(clients):
        rows = draw.permutation(count)[: settings.samples]
        kept = np.ones(len(rows), dtype=bool)
        for label in draw.permutation(classes)[: settings.target_labels]:
            kept[np.flatnonzero(labels[rows] == label)[settings.target_samples :]] = False
        parts.append(rows[kept])
    empty = [client for client, part in enumerate(parts) if not len(part)]
    if empty:
        raise errors.BadRecipe(
            f"partition fd leaves client {empty[0]} without images; raise "
            "partition.target_samples or lower partition.target_labels",
            field="method/federation/partition/target_samples",
        )
    return parts


def _given(settings: Partition, count: int, clients: int, open_set: Indices) -> list[Indices]:
    parts = [np.unique(np.array(part, dtype=np.int64)) for part in settings.indices or []]
    field = "method/federation/partition/indices"
    if len(parts) != clients:
        raise errors.BadRecipe(
            f"partition.indices has {len(parts)} lists, and there are {clients} clients",
            field=field,
        )
    for client, part in enumerate(parts):
        if not len(part) or part[-1] >= count:
            found = f"names image {part[-1]}" if len(part) else "is empty"
            raise errors.BadRecipe(
                f"the list of client {client} in partition.indices {found}, and the training "
                f"split has images 0 to {count - 1}",
                field=f"{field}/{client}",
            )
        shared = np.intersect1d(part, open_set)
        if len(shared):
            raise errors.BadRecipe(
                f"image {shared[0]} of client {client} in partition.indices is in the open set; "
                "set open_images to 0, or leave such images out",
                field=f"{field}/{client}",
            )
    return parts


def _random(seed: int, purpose: int) -> np.random.RandomState:
    return np.random.RandomState(stateless_rng.mix(seed, purpose) % 2**32)


def without_holder(counts: NDArray[np.int64]) -> list[int]:
    """Return the labels of which no client has an image, by counts [clients, classes]."""
    missing: Sequence[int] = np.flatnonzero(counts.sum(0) == 0).tolist()
    return list(missing)

"""Finds a network's weights in a checkpoint, under whatever words its program keeps them.

All tensors of a file are written down flat, under the path that leads to them, such as
`state_dict.model.conv1.weight`. A reading is a prefix of such paths below which all keys of the
network are there. The program that wrote the file need not be known for that.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workers.distill.files.pickle_reader import PlainDict, StandIn
from workers.distill.files.torchfile import ArrayRecord, Checkpoint, TensorRecord

MOST_DEPTH = 64
MOST_NODES = 2_000_000
ANCHORS = 8
"""So many keys of a network are looked for at the ends of paths."""
LISTED = 6

AVERAGED_WORDS = frozenset({"ema", "averaged", "average", "swa", "avg", "polyak"})
ROLES = ("student", "teacher")
USUAL_WORDS = frozenset({"model", "state_dict", "module", "_orig_mod"})
"""Words before all keys that need no remark: every program writes one of them."""
TRAINING_STATE = re.compile(
    r"(^|[._])(optim\w*|lr_?sched\w*|scheduler\w*|scaler\w*|amp\w*|rng\w*|random\w*|grad\w*|hooks?"
    r"|callbacks?|loops?|sampler\w*|hyper_?param\w*|args|config|cfg)([._]|$)"
)
"""Parts of a checkpoint that continue a training; they hold tensors, but no network."""
NO_WEIGHTS = re.compile(
    # The parts of a program that are no part of the network it trains.
    r"^(\w+_)?(criterions?|loss(es|_fns?|_funcs?|_functions?)?|metrics?)\."
    r"|^((train|training|val|valid|validation|test|best|top1|top5)_)*"
    r"(acc\w*|metrics?|f1\w*|auroc|precision|recall|confmat|confusion\w*|loss\w*)(\.|$)"
    # Counters of profilers, of averaging, of training; buffers that a network computes anew.
    r"|(^|\.)(total_ops|total_params|n_averaged|num_updates|epoch|step|global_step|iteration"
    r"|best_acc\w*|lr|relative_position_index|attn_mask|position_ids|relative_coords_table)$"
)
"""Keys, after the prefix, of tensors from which a network computes nothing."""


@dataclass(frozen=True)
class Place:
    """One tensor of a file: its record, and how many letters of its path lead to its mapping."""

    record: TensorRecord | ArrayRecord | Tensor
    outer: int


@dataclass
class Contained:
    """All tensors of a file by their path, and what else is known of it."""

    places: dict[str, Place]
    others: set[str] = field(default_factory=set)
    """Paths of objects that stand where tensors could, such as sparse or quantised ones."""
    modules: dict[str, str] = field(default_factory=dict)
    """Classes of whole modules by their path, of which the parameters were found."""
    checkpoint: Checkpoint | None = None

    def tensor(self, path: str) -> Tensor:
        """Return a tensor, mapped from the file."""
        record = self.places[path].record
        if isinstance(record, Tensor):
            return record
        if self.checkpoint is None:
            raise ValueError("the records of a file belong to its checkpoint")
        return self.checkpoint.tensor(record)

    def below(self, prefix: str) -> Iterator[str]:
        """Yield the paths that begin with a prefix."""
        return (path for path in self.places if path.startswith(prefix))

    def largest(self) -> str:
        """Return the path of the mapping with the most tensors, and its dot."""
        counts: dict[str, int] = {}
        for path, place in self.places.items():
            counts[path[: place.outer]] = counts.get(path[: place.outer], 0) + 1
        return max(counts, key=counts.__getitem__) if counts else ""

    def prefixes(self, keys: Iterable[str]) -> list[str]:
        """Return the paths below which one of these keys is found, in the order of the file."""
        # The longest are the rarest: `bias` alone would be found everywhere.
        ordered = sorted(keys, key=lambda key: (-key.count("."), -len(key)))
        step = max(1, len(ordered) // ANCHORS)
        anchors = tuple(ordered[::step][:ANCHORS])
        found: dict[str, None] = {}
        for path in self.places:
            for anchor in anchors:
                prefix = path.removesuffix(anchor)
                if prefix != path and (not prefix or prefix.endswith(".")):
                    found.setdefault(prefix)
        return list(found)


def of_state(state: Mapping[str, Tensor]) -> Contained:
    """Return the tensors of a plain state dictionary."""
    return Contained({key: Place(tensor, 0) for key, tensor in state.items()})


def of_checkpoint(checkpoint: Checkpoint) -> Contained:
    """Return all tensors of a file."""
    contained = Contained({}, checkpoint=checkpoint)
    _Walk(contained).visit(checkpoint.content, "", 0, ())
    return contained


class _Walk:
    """Writes down the tensors of nested containers."""

    def __init__(self, contained: Contained) -> None:
        self._contained = contained
        self._nodes = 0

    # Any: whatever a checkpoint holds.
    def visit(
        self, value: Any, path: str, outer: int, around: tuple[int, ...], *, inner: bool = False
    ) -> None:
        """Write down a value at a path; `around` are the containers that it lies in.

        `inner` is an attribute of a module: its keys go on with those of the module.
        """
        self._nodes += 1
        if self._nodes > MOST_NODES or len(around) > MOST_DEPTH or id(value) in around:
            return
        inside = (*around, id(value))
        if isinstance(value, TensorRecord | ArrayRecord):
            self._contained.places[path] = Place(value, outer)
        elif isinstance(value, PlainDict):
            for key, item in value.items():
                self.visit(item, _joined(path, key), _length(path), inside)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.visit(item, _joined(path, index), _length(path), inside)
        elif isinstance(value, StandIn):
            self._visit_object(value, path, outer if inner else _length(path), inside)

    def _visit_object(self, value: StandIn, path: str, outer: int, inside: tuple[int, ...]) -> None:
        state = value.state
        if isinstance(state, tuple) and state and isinstance(state[0], PlainDict):
            state = state[0]  # of a class with slots
        if not isinstance(state, PlainDict):
            self._contained.others.add(path)
            return
        groups: list[Any] = [state]
        if "_modules" in state:
            if outer == _length(path):
                self._contained.modules[path] = str(value.made_by)
            groups = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
        skipped = state.get("_non_persistent_buffers_set")
        for members in groups:
            for name, item in members.items() if isinstance(members, PlainDict) else ():
                if not isinstance(skipped, list) or name not in skipped:
                    self.visit(item, _joined(path, name), outer, inside, inner=True)


def _joined(path: str, key: Any) -> str:
    text = key if isinstance(key, str) else str(key) if isinstance(key, int) else "?"
    return f"{path}.{text}" if path else text


def _length(path: str) -> int:
    return len(path) + 1 if path else 0


def is_averaged(prefix: str) -> bool:
    """Whether the words of a prefix say that its weights are running averages."""
    words = re.split(r"[._\-]", prefix.lower())
    return bool(AVERAGED_WORDS & set(words))


def role_of(prefix: str) -> str | None:
    """Return whether a prefix names a student or a teacher."""
    words = re.split(r"[._\-]", prefix.lower())
    return next((word for word in reversed(words) if word in ROLES), None)


def name_of(prefix: str) -> str:
    """Return how a caller names the entry of a file with this prefix."""
    return prefix.rstrip(".")


def stacked(tensors: list[Tensor]) -> Tensor:
    """Return tensors behind one another, such as query, key and value."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def listed(names: Iterable[str]) -> str:
    """Return a few names, and how many there are besides."""
    all_names = list(names)
    more = len(all_names) - LISTED
    return ", ".join(all_names[:LISTED]) + (f" and {more} more" if more > 0 else "")

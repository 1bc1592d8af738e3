"""Which of the tensors of a file are a network's weights: all ways to read it, and the choice.

A reading fits when every key of the network is there in its shape, and no weight is left over. Of
several that fit, running averages are taken rather than the last step's weights, and a student
rather than its teacher, with a remark; between others the caller chooses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.config.descriptions import BACKBONE
from workers.distill.networks import backbones, checkpoints, interface, layouts, positions
from workers.distill.networks.checkpoints import Contained, listed, name_of
from workers.distill.networks.layouts import NameLayout

Role = Literal["teacher", "student"]
WHOLE = "."
"""How a caller names weights that lie in the file itself, under no word."""
COUNTER = "num_batches_tracked"
"""Files of very old framework versions have no such counters; nothing is computed from them."""


@dataclass(frozen=True)
class Choice:
    """What a caller says about how a file is to be read."""

    entry: str | None = None
    """Which of several networks in the file, such as `model_ema` or `state_dict.teacher`."""
    strict: bool = True
    """Whether a file with weights that the network does not have is refused."""
    resize_positions: bool = False
    """Whether embeddings of positions for images of another size are interpolated."""


@dataclass(frozen=True)
class WeightsReading:
    """A network's weights as found below one prefix of a file, under one library's names.

    `state` has the network's own keys; `missing` are keys of it, `unexpected` and `aside` keys of
    the file: other weights, and tensors that are none.
    """

    prefix: str
    layout: NameLayout
    state: Mapping[str, Tensor]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[dict[str, Any], ...] = ()
    aside: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every key of the network is there, and no weight too many."""
        return not (self.missing or self.unexpected or self.shapes)

    @property
    def faults(self) -> int:
        """How far it is from fitting."""
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    @property
    def name(self) -> str:
        """How a caller names this entry of the file."""
        return name_of(self.prefix) or WHOLE


def find(network: interface.Network, contained: Contained, choice: Choice) -> list[WeightsReading]:
    """Return the ways to read a file as the weights of a network, by the network's own keys."""
    expected = network.state_dict()
    found: dict[str, WeightsReading] = {}
    for layout in layouts.candidates(expected):
        for prefix in contained.prefixes(_wanted(layout, expected)):
            reading = _read(network, contained, layout, prefix, choice)
            if prefix not in found or reading.faults < found[prefix].faults:
                found[prefix] = reading
    if not found:
        prefix = contained.largest()
        return [_read(network, contained, layouts.OWN, prefix, choice)]
    return _told_apart(list(found.values()), choice)


def compared(
    network: interface.Network,
    prefix: str,
    layout: NameLayout,
    state: Mapping[str, Tensor],
    others: Iterable[str],
    choice: Choice,
) -> WeightsReading:
    """Return the reading of a state under the network's own keys; `others` are left over.

    `others` are keys of the file, after the prefix.
    """
    expected = network.state_dict()
    remarks: list[str] = []
    kept = dict(state)
    shapes = []
    for key, target in expected.items():
        if key not in kept or _essential(target.shape) == _essential(kept[key].shape):
            continue
        interpolated = None
        if choice.resize_positions and positions.are_positions(key):
            interpolated = positions.resized(network, key, kept[key])
        if interpolated is None or interpolated.shape != target.shape:
            shapes.append(
                {"key": key, "expected": list(target.shape), "got": list(kept[key].shape)}
            )
            continue
        remarks.append(
            f"{key} was interpolated from {list(kept[key].shape)} to {list(target.shape)}"
        )
        kept[key] = interpolated
    beside = list(others)
    aside = [key for key in beside if checkpoints.NO_WEIGHTS.search(key)]
    missing = [key for key in expected if key not in kept and not key.endswith(COUNTER)]
    return WeightsReading(
        prefix,
        layout,
        kept,
        missing=tuple(missing),
        unexpected=tuple(key for key in beside if key not in aside),
        shapes=tuple(shapes),
        aside=tuple(aside),
        remarks=tuple(remarks),
    )


def choose(readings: Sequence[WeightsReading], role: Role, choice: Choice) -> WeightsReading:
    """Return the reading that fits; raises `UploadRefused` for none to be preferred.

    `readings` are all of a file, of which at least one fits unless an entry is named.
    """
    fitting = [reading for reading in readings if reading.fits]
    if choice.entry is not None:
        return _named(choice.entry, readings, fitting)
    chosen = _preferred(fitting, role)
    if chosen is None:
        names = [reading.name for reading in fitting]
        raise errors.UploadRefused(
            "ambiguous_entry",
            f"the file holds {len(names)} networks that fit: {', '.join(names)}; choose one with "
            "`entry`",
            entries=names,
        )
    return chosen


def mismatch(
    network: interface.Network,
    readings: Sequence[WeightsReading],
    contained: Contained,
    hint: str = "",
) -> errors.KeysMismatch:
    """Return in what the nearest reading does not fit; `hint` is a way out that is known."""
    nearest = min(readings, key=lambda reading: reading.faults)
    parts = [
        f"{len(keys)} {what} ({listed(keys)})"
        for what, keys in (
            ("missing", nearest.missing),
            ("unexpected", nearest.unexpected),
            ("of another shape", [_shape_words(shape) for shape in nearest.shapes]),
        )
        if keys
    ]
    where = "" if nearest.name == WHOLE else f", read from its entry {nearest.name},"
    sentences = [
        f"the file's tensors{where} are not those of the network: {'; '.join(parts)}.",
        *([hint] if hint else _ways_out(network, nearest, contained)),
    ]
    return errors.KeysMismatch(
        " ".join(sentences),
        missing_keys=nearest.missing,
        unexpected_keys=nearest.unexpected,
        shape_mismatches=nearest.shapes,
    )


def remarks_on(
    chosen: WeightsReading, readings: Sequence[WeightsReading], contained: Contained
) -> list[str]:
    """Return what was chosen, converted and left aside."""
    told: list[str] = []
    others = [reading for reading in readings if reading.fits and reading is not chosen]
    words = chosen.name.split(".")
    if checkpoints.is_averaged(chosen.prefix):
        told.append(f"the averaged weights ({chosen.name}) were taken")
    elif chosen.name != WHOLE and (others or not set(words) <= checkpoints.USUAL_WORDS):
        told.append(f"the weights of the entry {chosen.name} were taken")
    if others:
        names = [reading.name for reading in others]
        told.append(
            f"the file holds other networks that fit as well: {', '.join(names)}; to have one of "
            "them, name it as the entry"
        )
    if chosen.layout.title:
        told.append(f"the names of {chosen.layout.title} were converted")
    told += chosen.remarks
    if chosen.aside:
        told.append(
            f"left aside, since the network computes nothing from them: {listed(chosen.aside)}"
        )
    outside = _outside(chosen, [reading.prefix for reading in others], contained)
    if outside:
        told.append(f"other tensors in the file were left aside: {listed(outside)}")
    dtypes = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in chosen.state.values()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    if dtypes:
        told.append(f"numbers of {' and '.join(sorted(dtypes))} became float32")
    return told


# -- one reading -----------------------------------------------------------------------------------


def _wanted(layout: NameLayout, expected: Mapping[str, Tensor]) -> list[str]:
    return [name for key in expected for name in layout.sources(key) or ()]


def _read(
    network: interface.Network,
    contained: Contained,
    layout: NameLayout,
    prefix: str,
    choice: Choice,
) -> WeightsReading:
    """Return what is found below a prefix; only what lies in the same mapping can be too much."""
    here = {
        path.removeprefix(prefix): path
        for path in contained.below(prefix)
        if contained.places[path].outer <= len(prefix)
    }
    if layout is layouts.OWN:
        state = network.current_names({key: contained.tensor(path) for key, path in here.items()})
        expected = network.state_dict()
        used = {key for key in state if key in expected}
        return compared(
            network,
            prefix,
            layout,
            {key: state[key] for key in used},
            [key for key in state if key not in used],
            choice,
        )
    state, consumed = {}, set()
    for key in network.state_dict():
        names = layout.sources(key)
        if names and all(name in here for name in names):
            parts = [contained.tensor(here[name]) for name in names]
            if len({part.shape[1:] for part in parts}) == 1:
                state[key] = checkpoints.stacked(parts)
                consumed |= set(names)
    others = [key for key in here if key not in consumed]
    return compared(network, prefix, layout, state, others, choice)


def _told_apart(readings: list[WeightsReading], choice: Choice) -> list[WeightsReading]:
    """Return the readings, where weights of another complete network are not unexpected."""
    complete = [r.prefix for r in readings if not (r.missing or r.shapes)]
    apart = []
    for reading in readings:
        within = [p for p in complete if p != reading.prefix and p.startswith(reading.prefix)]
        left = tuple(
            key
            for key in reading.unexpected
            if not any(f"{reading.prefix}{key}".startswith(prefix) for prefix in within)
        )
        if left and not choice.strict:
            said = f"strict is false, so these weights were left aside: {listed(left)}"
            reading, left = replace(reading, remarks=(*reading.remarks, said)), ()
        apart.append(replace(reading, unexpected=left))
    return apart


def _named(
    entry: str, readings: Sequence[WeightsReading], fitting: Sequence[WeightsReading]
) -> WeightsReading:
    """Return the reading that a caller names, or the only one within the entry so called."""
    wanted = entry.strip(".") or WHOLE
    exact = [reading for reading in fitting if reading.name == wanted]
    within = exact or [r for r in fitting if r.name.startswith(f"{wanted}.")]
    if len(within) == 1:
        return within[0]
    names = ", ".join(reading.name for reading in fitting) or "none"
    known = ", ".join(dict.fromkeys(reading.name for reading in readings))
    raise errors.UploadRefused(
        "unknown_entry",
        f"the file has no entry {entry[:200]!r} that fits the network; entries that fit: {names}"
        + ("" if fitting else f" (looked at: {known})"),
        entries=[reading.name for reading in fitting],
    )


def _preferred(fitting: Sequence[WeightsReading], role: Role) -> WeightsReading | None:
    if all(_are_equal(fitting[0], other) for other in fitting[1:]):
        return min(fitting, key=lambda reading: len(reading.prefix))
    pool = [r for r in fitting if checkpoints.is_averaged(r.prefix)] or list(fitting)
    if len(pool) > 1 and all(checkpoints.role_of(reading.prefix) for reading in pool):
        pool = [r for r in pool if checkpoints.role_of(r.prefix) == role] or pool
    return pool[0] if len(pool) == 1 else None


def _are_equal(one: WeightsReading, other: WeightsReading) -> bool:
    return one.state.keys() == other.state.keys() and all(
        torch.equal(tensor, other.state[key]) for key, tensor in one.state.items()
    )


# -- sentences -------------------------------------------------------------------------------------


def _outside(chosen: WeightsReading, told: Sequence[str], contained: Contained) -> list[str]:
    """Return the other parts of a file that hold tensors, but for the state of a training."""
    names: dict[str, None] = {}
    for path, place in contained.places.items():
        if path.startswith(chosen.prefix) and place.outer <= len(chosen.prefix):
            continue
        if any(path.startswith(prefix) for prefix in told):
            continue
        if checkpoints.TRAINING_STATE.search(path) or _is_single(contained, path):
            continue
        shared = _shared_words(path, chosen.prefix)
        names.setdefault(".".join(path.split(".")[: shared + 1]))
    return list(names)


def _is_single(contained: Contained, path: str) -> bool:
    """Whether a path has no further words and holds one number, such as an accuracy."""
    shape = getattr(contained.places[path].record, "shape", None)
    return shape is not None and all(side == 1 for side in shape)


def _shared_words(path: str, prefix: str) -> int:
    count = 0
    for word, other in zip(path.split("."), prefix.split("."), strict=False):
        if word != other:
            break
        count += 1
    return count


def _ways_out(
    network: interface.Network, nearest: WeightsReading, contained: Contained
) -> Iterator[str]:
    moved = [shape["key"] for shape in nearest.shapes]
    if moved and all(positions.are_positions(key) for key in moved) and not nearest.missing:
        explained = positions.explanation(network, moved[0], nearest.state[moved[0]])
        if explained:
            yield explained
            return
    absent = [
        path for path in contained.others if path.removeprefix(nearest.prefix) in nearest.missing
    ]
    if absent:
        yield (
            f"Of the missing ones, {listed(absent)} are in the file, but are no dense tensors "
            "(quantised or sparse ones cannot be used)."
        )
    hint = layouts.hint([*nearest.unexpected, *contained.places])
    if hint:
        yield hint
    removed, own = network.removed_classifier, backbones.classifier_path(network)
    if removed is not None and _all_below(removed, nearest.unexpected):
        yield (
            "These are a classifier, and the model is said to have none: register it as task "
            "classification with its classes, or set strict to false to leave it aside."
        )
        return
    if own is not None and _all_below(own, nearest.missing) and not nearest.unexpected:
        yield (
            "These are the classifier: if the file holds a backbone without one, register it as "
            f"task {BACKBONE}, without classes."
        )
        return
    if nearest.unexpected and not (nearest.missing or nearest.shapes):
        yield (
            "The network itself is complete: with strict false the unexpected ones are left aside."
        )
    yield "Check network, arguments, classes and channels."


def _all_below(path: str, keys: Sequence[str]) -> bool:
    return bool(keys) and all(key.startswith(f"{path}.") for key in keys)


def _essential(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without the two sides of a 1x1 convolution, whose weight is a matrix."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)


def _shape_words(mismatch: Mapping[str, Any]) -> str:
    return f"{mismatch['key']}: expected {mismatch['expected']}, got {mismatch['got']}"

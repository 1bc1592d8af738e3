"""Grids: documents with values `{"grid": [...]}`, expanded to one document per combination.

Pure functions of plain JSON. A fault of an expanded document is reported at the place of its
value in the document that the caller wrote.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models_registry.errors import Fault

GRID = "grid"
MAX_DEPTH = 16
_MAX_VALUES = 1000

# Documents are the caller's JSON: any value may stand anywhere.
Json = Any
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class GridPoint:
    """One expanded document, and which value of each grid it has."""

    document: Json
    chosen: Mapping[Path, int]


def is_grid(node: Json) -> bool:
    """Return whether a value stands for several."""
    return isinstance(node, dict) and GRID in node


def faults_of(document: Json, pointer: str) -> Iterator[Fault]:
    """Yield the faults of a document's grids; `expand` needs a document without faults."""
    yield from _faults(document, pointer, depth=0, inside=False)


def _faults(node: Json, pointer: str, *, depth: int, inside: bool) -> Iterator[Fault]:
    if depth > MAX_DEPTH:
        yield Fault(pointer, "too_deep", f"values are nested at most {MAX_DEPTH} deep")
    elif is_grid(node) and inside:
        yield Fault(pointer, "grid_in_grid", "a grid cannot hold another grid")
    elif is_grid(node):
        yield from _faults_of_grid(node, pointer)
        if isinstance(node[GRID], list):
            node = {GRID: node[GRID][:_MAX_VALUES]}
            yield from _faults_within(node, pointer, depth=depth, inside=True)
    else:
        yield from _faults_within(node, pointer, depth=depth, inside=inside)


def _faults_within(node: Json, pointer: str, *, depth: int, inside: bool) -> Iterator[Fault]:
    for step, value in _entries(node):
        yield from _faults(value, pointer + _written(step), depth=depth + 1, inside=inside)


def _faults_of_grid(node: dict[str, Json], pointer: str) -> Iterator[Fault]:
    for name in sorted(node.keys() - {GRID}):
        detail = f"a grid has no field {name!r}: it is only a list of values"
        yield Fault(pointer + _written(name), "unknown_field", detail)
    values = node[GRID]
    at = f"{pointer}/{GRID}"
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_VALUES:
        yield Fault(at, "bad_grid", f"a grid is a list of 1 to {_MAX_VALUES} values")
        return
    for place, value in enumerate(values):
        if value in values[:place]:
            yield Fault(f"{at}/{place}", "duplicate", f"{value!r} appears twice in the grid"[:200])


def count(document: Json) -> int:
    """Return how many documents a document stands for."""
    return math.prod(len(values) for _, values in find(document))


def find(node: Json, at: Path = ()) -> Iterator[tuple[Path, list[Json]]]:
    """Yield where the grids of a document are, and their values."""
    if is_grid(node):
        yield at, node[GRID]
        return
    for step, value in _entries(node):
        yield from find(value, (*at, step))


def expand(document: Json) -> Iterator[GridPoint]:
    """Yield all documents that a document stands for; the last grid changes fastest."""
    axes = list(find(document))
    for places in itertools.product(*(range(len(values)) for _, values in axes)):
        chosen = {at: place for (at, _), place in zip(axes, places, strict=True)}
        yield GridPoint(_chosen(document, chosen, ()), chosen)


def _chosen(node: Json, chosen: Mapping[Path, int], at: Path) -> Json:
    if at in chosen:
        return node[GRID][chosen[at]]
    if isinstance(node, dict):
        return {key: _chosen(value, chosen, (*at, key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_chosen(value, chosen, (*at, place)) for place, value in enumerate(node)]
    return node


def pointer_into(document: Json, point: GridPoint, pointer: str) -> str:
    """Return a pointer into the point's document as one into the document with the grids."""
    node, written = document, ""
    at: Path = ()
    for step in pointer.split("/")[1:]:
        key = _read(node, step)
        written += f"/{step}"
        if key is None:
            return written + pointer[len(written) :]
        node, at = node[key], (*at, key)
        if at in point.chosen:
            # Inside a grid's value there is no other grid: the rest is as it is.
            return f"{written}/{GRID}/{point.chosen[at]}{pointer[len(written) :]}"
    return written


def _read(node: Json, step: str) -> str | int | None:
    """Return the key or place that a step of a pointer names; None where there is none."""
    if isinstance(node, dict):
        key = step.replace("~1", "/").replace("~0", "~")
        return key if key in node else None
    if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
        return int(step)
    return None


def _entries(node: Json) -> Iterator[tuple[str | int, Json]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from enumerate(node)


def _written(step: str | int) -> str:
    return f"/{str(step).replace('~', '~0').replace('/', '~1')}"

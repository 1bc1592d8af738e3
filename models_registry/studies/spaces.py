"""Spaces: documents with values `{"space": {...}}`, from which a search chooses one for each trial.

Pure functions of plain JSON. A space stands where the value itself would stand, as a grid does.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core.core_schema import ValidationInfo

from models_registry.errors import Fault
from models_registry.studies import grids
from models_registry.studies.grids import Path

SPACE = "space"
MAX_SPACES = 20
MAX_CORNERS = 64
_DIGITS = 6
"""Of a float that is chosen: more would only make it harder to read."""
_TELL_VALUE = ("value_error", "missing", "too_short", "too_long")
"""Kinds of pydantic's errors whose sentences need no value, or have it."""

# Documents are the caller's JSON: any value may stand anywhere.
Json = Any
Bound = TypeVar("Bound", int, float)


class _Space(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FloatSpace(_Space):
    """Any number between two bounds."""

    type: Literal["float"]
    low: Annotated[float, Field(strict=True, description="Smallest value.")]
    high: Annotated[float, Field(strict=True, description="Largest value.")]
    log: bool = Field(False, strict=True, description="Choose evenly by order of magnitude.")

    @field_validator("high")
    @classmethod
    def _high_is_above(cls, high: float, known: ValidationInfo) -> float:
        return _above(high, known)

    @field_validator("log")
    @classmethod
    def _log_needs_positive(cls, log: bool, known: ValidationInfo) -> bool:
        return _loggable(log, known)

    def corners(self) -> dict[str, Json]:
        """Return its outermost values, by the field that gives each."""
        return {"low": self.low, "high": self.high}

    def value_of(self, choice: float) -> Json:
        """Return the value that a sampler's choice stands for: rounded, and within the bounds."""
        return min(max(float(f"{choice:.{_DIGITS}g}"), self.low), self.high)


class IntSpace(_Space):
    """Any whole number between two bounds, which belong to it."""

    type: Literal["int"]
    low: Annotated[int, Field(strict=True, ge=-(2**53), le=2**53, description="Smallest value.")]
    high: Annotated[int, Field(strict=True, ge=-(2**53), le=2**53, description="Largest value.")]
    log: bool = Field(False, strict=True, description="Choose evenly by order of magnitude.")

    @field_validator("high")
    @classmethod
    def _high_is_above(cls, high: int, known: ValidationInfo) -> int:
        return _above(high, known)

    @field_validator("log")
    @classmethod
    def _log_needs_positive(cls, log: bool, known: ValidationInfo) -> bool:
        return _loggable(log, known)

    def corners(self) -> dict[str, Json]:
        """Return its outermost values, by the field that gives each."""
        return {"low": self.low, "high": self.high}

    def value_of(self, choice: int) -> Json:
        """Return the value that a sampler's choice stands for."""
        return choice


class CategoricalSpace(_Space):
    """One of several values, in no order."""

    type: Literal["categorical"]
    choices: list[Json] = Field(min_length=2, max_length=100, description="Values of any kind.")

    @field_validator("choices")
    @classmethod
    def _choices_differ(cls, choices: list[Json]) -> list[Json]:
        for place, choice in enumerate(choices):
            if any(_same(choice, other) for other in choices[:place]):
                raise ValueError(f"{choice!r} appears twice; choices must differ"[:200])
            if next(find(choice), None) is not None or next(grids.find(choice), None) is not None:
                raise ValueError("a choice cannot hold a space or a grid; list its values instead")
        return choices

    def corners(self) -> dict[str, Json]:
        """Return all values, by the place that gives each."""
        return {f"choices/{place}": choice for place, choice in enumerate(self.choices)}

    def value_of(self, choice: int) -> Json:
        """Return the value that a sampler's choice, its place, stands for."""
        return self.choices[choice]


Space: TypeAlias = Annotated[FloatSpace | IntSpace | CategoricalSpace, Field(discriminator="type")]
_ADAPTER: TypeAdapter[FloatSpace | IntSpace | CategoricalSpace] = TypeAdapter(Space)


def _above(high: Bound, known: ValidationInfo) -> Bound:
    low = known.data.get("low")
    if low is not None and high <= low:
        raise ValueError(f"must be greater than low, which is {low:g}, got {high:g}")
    return high


def _loggable(log: bool, known: ValidationInfo) -> bool:
    low = known.data.get("low")
    if log and low is not None and low <= 0:
        raise ValueError(f"needs a low above 0, got {low:g}; raise low or leave log out")
    return log


def _same(one: Json, other: Json) -> bool:
    # In JSON, true is not 1.
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def read(node: Json) -> FloatSpace | IntSpace | CategoricalSpace:
    """Return the space that a node without faults holds."""
    return _ADAPTER.validate_python(node[SPACE])


def is_space(node: Json) -> bool:
    """Return whether a value is to be chosen by a search."""
    return isinstance(node, dict) and SPACE in node


def find(node: Json, at: Path = ()) -> Iterator[tuple[Path, Json]]:
    """Yield where the spaces of a document are, and the nodes that hold them."""
    if is_space(node):
        yield at, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from find(value, (*at, key))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from find(value, (*at, place))


def faults_of(document: Json, pointer: str) -> Iterator[Fault]:
    """Yield the faults of a document's spaces, and its grids, which no search takes."""
    for fault in grids.faults_of(document, pointer):
        if fault.code == "too_deep":
            yield fault
            return
    for at, _ in grids.find(document):
        yield Fault(
            f"{pointer}{written(at)}/{grids.GRID}",
            "grid_in_search",
            'a search takes no grids: write {"space": {"type": "categorical", "choices": [...]}}',
        )
    for at, node in find(document):
        where = pointer + written(at)
        for name in sorted(node.keys() - {SPACE, grids.GRID}):
            detail = f"a value with a space has no field {name!r}: it is only a space"
            yield Fault(where + written((name,)), "unknown_field", detail)
        if at and isinstance(at[-1], int):
            detail = "a space takes the place of a named value, not of an entry in a list"
            yield Fault(f"{where}/{SPACE}", "space_in_list", detail)
        yield from _faults_of_space(node[SPACE], f"{where}/{SPACE}")


def _faults_of_space(space: Json, pointer: str) -> Iterator[Fault]:
    kinds = ("float", "int", "categorical")
    if not isinstance(space, dict) or space.get("type") not in kinds:
        given = space.get("type") if isinstance(space, dict) else space
        detail = f"type must be one of {', '.join(kinds)}, got {given!r}"[:200]
        yield Fault(f"{pointer}/type", "bad_space", detail)
        return
    try:
        _ADAPTER.validate_python(space)
    except ValidationError as error:
        for fault in error.errors():
            place = fault["loc"][1:]  # the first is the kind of space
            name = str(place[-1]) if place else SPACE
            if fault["type"] == "extra_forbidden":
                detail = f"unknown field {name!r} in a space of type {space['type']}"
                yield Fault(pointer + written(place), "unknown_field", detail)
                continue
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in _TELL_VALUE else f", got {fault['input']!r}"
            detail = f"{name}: {message[:1].lower()}{message[1:]}{given}"[:300]
            yield Fault(pointer + written(place), "bad_space", detail)


def written(at: Sequence[str | int]) -> str:
    """Return a path as a JSON Pointer."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in at)


@dataclass(frozen=True)
class Axis:
    """One space of a study: where it is, and what it is called."""

    pointer: str
    """Of the value, in the study's spec; names its choice in a trial."""
    name: str
    """As a study names settings: `temperature`, `training.optimizer.learning_rate`."""
    path: Path
    """Within its method or training."""
    space: FloatSpace | IntSpace | CategoricalSpace


def axes_of(document: Json, pointer: str, *, prefix: str = "") -> list[Axis]:
    """Return the spaces of a document without faults, in order."""
    return [
        Axis(pointer + written(at), prefix + ".".join(map(str, at)), at, read(node))
        for at, node in find(document)
    ]


def fill(document: Json, values: Mapping[Path, Json], at: Path = ()) -> Json:
    """Return a document with values in the places of its spaces; without one, the place goes.

    What is left out has its default then.
    """
    if at in values:
        return values[at]
    if isinstance(document, dict):
        return {
            key: fill(value, values, (*at, key))
            for key, value in document.items()
            if not is_space(value) or (*at, key) in values
        }
    if isinstance(document, list):
        return [fill(value, values, (*at, place)) for place, value in enumerate(document)]
    return document


def corners(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Yield combinations of outermost values: for each axis, by its pointer, which field gives it.

    All of them if they are few; else all of each pair of axes, with the others at their first.
    """
    fields = [list(axis.space.corners()) for axis in axes]
    names = [axis.pointer for axis in axes]
    if math.prod(map(len, fields)) <= MAX_CORNERS:
        for chosen in itertools.product(*fields):
            yield dict(zip(names, chosen, strict=True))
        return
    first = {name: field[0] for name, field in zip(names, fields, strict=True)}
    seen = set()
    for one, other in itertools.combinations(range(len(axes)), 2):
        for chosen in itertools.product(fields[one], fields[other]):
            corner = {**first, names[one]: chosen[0], names[other]: chosen[1]}
            if (key := tuple(corner.values())) not in seen:
                seen.add(key)
                yield corner

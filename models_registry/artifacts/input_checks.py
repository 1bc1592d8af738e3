"""Checks of what callers say about a model or data set: input, classes, names, cards, tags.

Each check yields every fault that it finds, with a JSON Pointer, the value and what to do, so that
one response reports all of them.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from models_registry import errors
from models_registry.errors import Fault
from models_registry.jobs import spec
from workers.distill.config.descriptions import BACKBONE, TAKEN_FROM, WITHOUT_CLASSES
from workers.distill.config.job import Task

TASKS: tuple[str, ...] = get_args(Task)
TASKS_OF_DATASETS = tuple(name for name in TASKS if name not in TAKEN_FROM)
"""The others use the data sets of one of these."""
MIN_CLASSES = 2
MAX_CLASSES = 100_000
MAX_CHANNELS = 1024
MAX_SIDE = 4096
SMALLEST_STD = 1 / 512
"""Half a step of 8-bit pixels; 1/255, for networks that take pixels in 0..255, is larger."""
MAX_PIXEL_VALUE = 65_535
MAX_TAGS = 64
MAX_CARD_CHARACTERS = 100_000
_MAX_NAME_CHARACTERS = 200


def class_names(classes: int | list[str]) -> list[str]:
    """Return the names of the classes: `"0"`, `"1"`, ... where only their number is known."""
    return [str(number) for number in range(classes)] if isinstance(classes, int) else list(classes)


def faults_of_classes(
    classes: int | list[str], task: str, pointer: str = "/classes"
) -> Iterator[Fault]:
    """Yield what is wrong with a number of classes, or with their names, in a task."""
    count = classes if isinstance(classes, int) else len(classes)
    if task in WITHOUT_CLASSES:
        if count:
            detail = (
                f"a model of task {task} has no classifier, so no classes, got {count}: leave "
                "classes out, or register it as task classification"
            )
            yield Fault(pointer, "class_count", detail)
        return
    if count == 0:
        detail = (
            f"classes must be {MIN_CLASSES} to {MAX_CLASSES}, got 0; a network without a "
            f"classifier has the task {BACKBONE}"
        )
        yield Fault(pointer, "class_count", detail)
    elif not MIN_CLASSES <= count <= MAX_CLASSES:
        detail = f"classes must be {MIN_CLASSES} to {MAX_CLASSES}, got {count}"
        yield Fault(pointer, "class_count", detail)
    if isinstance(classes, int) or count > MAX_CLASSES:
        return
    seen: dict[str, int] = {}
    for index, name in enumerate(classes):
        at = f"{pointer}/{index}"
        if not name.strip() or len(name) > _MAX_NAME_CHARACTERS:
            detail = f"a class name has 1 to {_MAX_NAME_CHARACTERS} characters, got {name[:50]!r}"
            yield Fault(at, "bad_class_name", detail)
        elif name in seen:
            detail = f"{name!r} is also the name of class {seen[name]}: names must differ"
            yield Fault(at, "duplicate_class", detail)
        seen.setdefault(name, index)


def faults_of_input(images: dict[str, Any], pointer: str = "/input") -> Iterator[Fault]:
    """Yield what is wrong with what is said about images, where it is given."""
    whole = {
        "channels": MAX_CHANNELS,
        "height": MAX_SIDE,
        "width": MAX_SIDE,
        "max_value": MAX_PIXEL_VALUE,
    }
    for name, most in whole.items():
        if name in images and not 1 <= images[name] <= most:
            detail = f"{name} must be 1 to {most}, got {images[name]}"
            yield Fault(f"{pointer}/{name}", "out_of_range", detail)
    share = images.get("max_bad_share", 0)
    if not 0 <= share <= 1:
        detail = f"max_bad_share is a share of the pictures, 0 to 1, got {share}"
        yield Fault(f"{pointer}/max_bad_share", "out_of_range", detail)
    channels = images.get("channels")
    for name in ("mean", "std"):
        values = images.get(name, ())
        if name in images and channels is not None and len(values) != channels:
            detail = f"{name} needs one value per channel ({channels}), got {len(values)}"
            yield Fault(f"{pointer}/{name}", "wrong_length", detail)
        for index, value in enumerate(values):
            at = f"{pointer}/{name}/{index}"
            if not math.isfinite(value):
                yield Fault(at, "not_finite", f"{name} must be finite, got {value}")
            elif name == "std" and value <= 0:
                detail = f"std must be greater than 0, got {value}: pixels are divided by it"
                yield Fault(at, "out_of_range", detail)
            elif (impossible := _impossible(name, value)) is not None:
                yield Fault(at, "not_of_pixels", impossible)


def _impossible(name: str, value: float) -> str | None:
    """Return why no pictures with pixels in 0..1 have this mean or deviation, and what to do."""
    if 1 < value <= 255:
        return (
            f"{name} {value:g} is of pixels in 0..255, and pixels are scaled to 0..1 here: divide "
            f"it by 255, which gives {value / 255:.6g}"
        )
    if not 0 <= value <= 1:
        return f"{name} must be 0 to 1, as pixels are scaled to 0..1, got {value:g}"
    if name == "std" and value < SMALLEST_STD:
        return (
            f"std {value:g} is smaller than that of any pictures; if it was divided by 255 twice, "
            f"multiply it by 255, which gives {value * 255:.6g}"
        )
    return None


def faults_of_notes(*, card: str | None, tags: dict[str, str] | None) -> Iterator[Fault]:
    """Yield what is wrong with a card's text and with tags; None is not checked."""
    if card is not None and len(card) > MAX_CARD_CHARACTERS:
        detail = f"a card has at most {MAX_CARD_CHARACTERS} characters, got {len(card)}"
        yield Fault("/card", "too_long", detail)
    if tags is not None and len(tags) > MAX_TAGS:
        yield Fault("/tags", "too_many", f"at most {MAX_TAGS} tags, got {len(tags)}")
    for key, value in (tags or {}).items():
        if not 0 < len(key) <= 63 or len(value) > 255:
            detail = f"tag {key[:63]!r}: keys have 1 to 63 characters, values up to 255"
            yield Fault(_below("/tags", key[:63]), "bad_tag", detail)


def printable(text: str) -> str:
    """Return `text` with control characters and surrogates replaced by `?`."""
    return "".join(c if unicodedata.category(c) not in {"Cc", "Cs"} else "?" for c in text)


def faults_of_name(name: str) -> Iterator[Fault]:
    """Yield what is wrong with the name of a model or data set."""
    if not re.fullmatch(spec.NAME_PATTERN, name):
        detail = (
            f"{printable(name[:96])!r} cannot be a name: use 1 to 96 lower-case letters, digits, "
            "'.', '_' and '-', starting with a letter or digit"
        )
        yield Fault("/name", "bad_name", detail)


def faults_of_task(task: str, known: Sequence[str] = TASKS) -> Iterator[Fault]:
    """Yield what is wrong with a task."""
    if task not in known:
        detail = f"task must be one of {', '.join(known)}, got {task[:80]!r}"
        yield Fault("/task", "unknown_task", detail)


def refuse(faults: list[Fault], *, code: str) -> None:
    """Raise Refused with all of `faults`, if there are any."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise errors.Refused(f"{faults[0].detail}{more}", code=code, faults=faults[:50])


def _below(pointer: str, key: str) -> str:
    return f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"

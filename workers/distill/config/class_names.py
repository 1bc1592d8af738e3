"""What the names of classes say about the order of a network's logits.

A network's logits have the order in which its classes were named. Where a data set has the same
names in another order, the logits are put in that order (`networks/class_order.py`). Names that
are the numbers from 0, in order, stand for classes that were only counted.
"""

import re
from collections.abc import Sequence

from workers.distill.config import rules
from workers.distill.config.rules import Violation

SHOWN = 4
"""A message names so many classes of each side."""


def order(model: Sequence[str] | None, dataset: Sequence[str]) -> list[int] | None:
    """Return the logit for each class of a data set; None where the order is the same, or unknown.

    Names count as equal that differ in case, spaces, hyphens and underscores alone.
    """
    if model is None or len(model) != len(dataset):
        return None
    own, wanted = _plain(model), _plain(dataset)
    if own == wanted or sorted(own) != sorted(wanted) or len(set(own)) < len(own):
        return None
    places = {name: place for place, name in enumerate(own)}
    return [places[name] for name in wanted]


def remark(role: str, model: Sequence[str] | None, dataset: Sequence[str]) -> Violation | None:
    """Return what a user should know of the classes of a model and a data set, if anything.

    Not of a model whose classes were only counted: that is told once, when it is registered
    (`note_of_model`), and a wrong order shows as a weak teacher.
    """
    if model is None or len(model) != len(dataset) or _plain(model) == _plain(dataset):
        return None
    field = rules.field_of(role)
    if order(model, dataset) is not None:
        return Violation(
            field,
            "classes_reordered",
            f"the {role}'s classes are the data set's in another order ({_shown(model)}, and "
            f"{_shown(dataset)} there); its logits are put in the data set's order",
        )
    if are_counted(model):
        return None
    if are_counted(dataset):
        return Violation(
            field,
            "class_names_unknown",
            f"the data set's classes have no names, so nothing tells whether its class 0 is "
            f"{model[0]!r}, class 1 {model[1 % len(model)]!r} and so on, as for the {role}; that "
            "is assumed",
        )
    foreign = sorted(set(_plain(model)) - set(_plain(dataset)))
    return Violation(
        field,
        "class_names_differ",
        f"the {role}'s classes ({_shown(model)}) are not those of the data set "
        f"({_shown(dataset)}): {len(foreign)} of {len(model)} names are foreign; logits are "
        "compared by their position, which is right only if the order is the same",
    )


def note_of_model(names: Sequence[str]) -> str | None:
    """Return what a user should know of a model's classes alone, when it is registered."""
    if not names or not are_counted(names):
        return None
    return (
        f"its classes have no names but the numbers 0 to {len(names) - 1}: a job takes logit 0 for "
        "the first class of its data set, and so on; register it with the names of its classes to "
        "have them compared"
    )


def are_counted(names: Sequence[str]) -> bool:
    """Whether names are the numbers from 0, as a model has whose classes were only counted."""
    return list(names) == [str(number) for number in range(len(names))]


def _plain(names: Sequence[str]) -> list[str]:
    return [re.sub(r"[\s_-]+", " ", name).strip().casefold() for name in names]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")

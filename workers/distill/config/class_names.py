"""What the names of classes say about the order of a network's logits.

A network's logits have the order in which its classes were named. Where a data set has the same
names in another order, the logits are put in that order (`networks/class_order.py`). Names that
are the numbers from 0, in order, stand for classes that were only counted.
"""

import re
from collections.abc import Sequence

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
    """Return what a user should know of the classes of a model and a data set, if anything."""
    if model is None or len(model) != len(dataset) or _plain(model) == _plain(dataset):
        return None
    field = "teacher" if role == "teacher" else "student/initial"
    if order(model, dataset) is not None:
        return Violation(
            field,
            "classes_reordered",
            f"the {role}'s classes are the data set's in another order ({_shown(model)}, and "
            f"{_shown(dataset)} there); its logits are put in the data set's order",
        )
    if are_counted(model) or are_counted(dataset):
        which = f"the {role}'s" if are_counted(model) else "the data set's"
        named = dataset if are_counted(model) else model
        return Violation(
            field,
            "class_names_unknown",
            f"{which} classes have no names, so nothing tells whether logit 0 is {named[0]!r}, "
            f"logit 1 {named[1 % len(named)]!r} and so on; that is assumed. Register it with the "
            "names of its classes to have them compared",
        )
    foreign = sorted(set(_plain(model)) - set(_plain(dataset)))
    return Violation(
        field,
        "class_names_differ",
        f"the {role}'s classes ({_shown(model)}) are not those of the data set "
        f"({_shown(dataset)}): {len(foreign)} of {len(model)} names are foreign; logits are "
        "compared by their position, which is right only if the order is the same",
    )


def are_counted(names: Sequence[str]) -> bool:
    """Whether names are the numbers from 0, as a model has whose classes were only counted."""
    return list(names) == [str(number) for number in range(len(names))]


def _plain(names: Sequence[str]) -> list[str]:
    return [re.sub(r"[\s_-]+", " ", name).strip().casefold() for name in names]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")

"""What is chosen for a caller who did not, where that takes several parts of a job together.

How strong the teacher may be (`balance`) follows from the recipe, and with it how much the labels
count in a method that leaves them little; what counts epochs in a method follows from the length of
the training; the learning rate of a recipe follows from the networks and
methods for which its papers use another one. The service writes all of it into the spec that it
keeps. An engine that is given a config without `balance` neither measures nor balances, since such
configs were made by versions that did not.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

PUBLISHED_RECIPES = ("cifar100", "imagenet")
"""Recipes for which papers tuned their weights, so that these reproduce them."""
SHARE = "share_of_epochs"
"""Under which the schema of a hyper-parameter says which share of all epochs null stands for."""
SHARE_TASKS = "share_in_tasks"
"""Under which it names the tasks in which that is so, where it is not so in all."""

BALANCE = (
    "How strong the distillation terms may be beside the labels. published: exactly as their "
    "weights say, as in papers. auto: the norm of their gradient on the student's parameters is "
    "kept at most 1 times that of the task's at weight 1, where the loss compares features or "
    "relations, has no scale of its own (dist, mlld, standardized logits), or is split at the true "
    "class (dkd, nkd); other methods stay as published. A number: at most that many times, "
    "whatever the method. Null takes published with the recipes cifar100 and imagenet, and auto "
    "with all others. Where task_weight is 0 there is nothing to compare with: auto is as "
    "published."
)
Limit: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
Balance: TypeAlias = Annotated[
    Literal["auto", "published"] | Limit | None, Field(description=BALANCE)
]

Json: TypeAlias = Mapping[str, Any]


def balance_of(recipe: str) -> Literal["auto", "published"]:
    """Return the balance that a recipe takes unless another one is asked for."""
    return "published" if recipe in PUBLISHED_RECIPES else "auto"


def epochs_of(share: float, epochs: int) -> int:
    """Return a share of the epochs, rounded up; never 0."""
    # Rounded first, since 240 / 12 may be a little more than 20.
    return max(1, math.ceil(round(share * epochs, 6)))


def method_in(
    method: Json, properties: Json, *, task: str | None, training: Json
) -> dict[str, Any]:
    """Return a method with what follows from its training.

    `properties` is the schema of each hyper-parameter; `method`, or a part of a combination, and
    `training` are complete.
    """
    found = dict(method)
    for name, field in properties.items():
        if found.get(name) is not None:
            continue
        if name == "balance" and name in found:
            found[name] = balance_of(training["recipe"])
        elif SHARE in field and task in field.get(SHARE_TASKS, [task]):
            found[name] = epochs_of(field[SHARE], training["epochs"])
    return found


# -- the weight of the labels ----------------------------------------------------------------------

HELD_LABELS = 1.0
"""Weight of the labels beside a teacher whose gradient is kept within theirs (decision 19)."""


def labels_are_raised(method: Json, recipe: object) -> bool:
    """Return whether labels take weight 1 where a caller's method gives no `task_weight`.

    So it is for methods that leave them 0.1, as published, and are balanced: the teacher is held
    within the labels' gradient at weight 1, and a tenth of it beside would teach too little.
    """
    name, balance = method.get("name"), method.get("balance")
    if balance is None:
        balance = balance_of(str(recipe))
    is_held = balance != "published"
    return is_held and (name == "mlld" or (name == "kd" and is_standardized(method)))


def is_standardized(method: Json) -> bool:
    """Return whether a method divides logits by their deviation, which leaves them no scale."""
    return bool(method.get("standardize", "none") != "none")


def method_with_labels(method: Json, recipe: object) -> dict[str, Any]:
    """Return a caller's method with the weight of its labels, where it gives none."""
    if "task_weight" in method or not labels_are_raised(method, recipe):
        return dict(method)
    return {**method, "task_weight": HELD_LABELS}


# -- learning rates --------------------------------------------------------------------------------

_LIGHT = ("mobilenetv2", "mobilenet_v2", "shufflev1", "shufflev2", "shufflenet")
"""Parts of the names of networks that papers train at a lower rate."""
_LIGHT_RATES = {"cifar100": 0.01}
_METHOD_RATES = {"cifar100": {"mlld": 0.025}}


def published_rate(recipe: object, network: object, method: object) -> tuple[float, str] | None:
    """Return the learning rate that papers have for a network or a method, and whose it is.

    None where a recipe's own rate is theirs too. A network's goes before a method's.
    """
    if any(part in str(network) for part in _LIGHT) and recipe in _LIGHT_RATES:
        return _LIGHT_RATES[str(recipe)], f"student {network}"
    rates = _METHOD_RATES.get(str(recipe), {})
    if str(method) in rates:
        return rates[str(method)], f"method {method}"
    return None


def training_with_rate(training: Json, network: object, method: object) -> dict[str, Any]:
    """Return a caller's training with the published learning rate, where it gives none.

    A training that names an optimizer other than SGD is returned as it is.
    """
    found = published_rate(training.get("recipe"), network, method)
    optimizer = training.get("optimizer", {})
    if found is None or not isinstance(optimizer, Mapping):
        return dict(training)
    if "learning_rate" in optimizer or optimizer.get("name", "sgd") != "sgd":
        return dict(training)
    return {**training, "optimizer": {**optimizer, "learning_rate": found[0]}}

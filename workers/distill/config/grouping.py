"""Which recipes may be trained side by side by one engine process, and why others may not.

A group shares the data pipeline and the teacher's forward pass, so its members have a data set, and
must agree in whatever decides what a batch holds, what the teacher shows of it, and how numbers are
rounded. They may differ in the student, in the method, and in how weights are moved, scored and
kept.

The rule reads plain dictionaries, recipes as they are written with `method` and `training` in full,
so that whoever puts a group together can apply it without loading the engine. That all members use
one data set is not written in a recipe: a group has one folder for it. Only the names and digests
that `provenance` may carry are compared.
"""

import re
from collections.abc import Mapping
from typing import Any

VERSION = 1
SOME_FAILED = 3
"""Exit code: every member has its last line, and for one at least that is a failure."""

AGREE = ("version", "task", "teacher", "teachers", "teacher_weighting", "accelerator")
AGREE_PROVENANCE = ("teacher", "teacher_digest", "dataset", "dataset_digest")
FREE_TRAINING = frozenset(
    {
        *("recipe", "optimizer", "schedule", "clip_norm", "ema_decay"),
        *("evaluate_every_epochs", "patience_epochs", "max_steps", "max_seconds"),
        *("checkpoint_seconds", "keep_best_epochs", "evaluate_sizes"),
    }
)
"""What members may choose for themselves; any other field of `training` must be equal."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


# Any: recipes are JSON.
def refusal(members: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return why these recipes, by key, cannot be a group, or None if they can."""
    if not members:
        return "a group needs at least one member"
    first_key, first = next(iter(members.items()))
    for key, recipe in members.items():
        if not _KEY.fullmatch(key):
            return f"the key {key!r} cannot name a folder; use letters, digits, _ and -"
        if "synthesis" in recipe["method"] and len(members) > 1:
            return f"member {key} synthesizes its own images; run it alone"
        if "federation" in recipe["method"] and len(members) > 1:
            return f"member {key} divides its images among clients; run it alone"
        if recipe.get("devices", 1) > 1 and len(members) > 1:
            return f"member {key} runs on {recipe['devices']} devices; run it alone"
        if recipe.get("baseline"):
            return f"member {key} asks for a baseline, which a group does not train; run it alone"
        if recipe["training"].get("max_seconds") is not None:
            return (
                f"member {key} has max_seconds, and side by side it would get less of them; run "
                "it alone"
            )
        differs = _difference(first, recipe)
        if differs is not None:
            return f"members {first_key} and {key} differ in {differs}; run them apart"
    return None


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    for name in AGREE:
        if one.get(name) != other.get(name):
            return name
    named = one.get("provenance", {}), other.get("provenance", {})
    for name in AGREE_PROVENANCE:
        if all(name in provenance for provenance in named) and named[0][name] != named[1][name]:
            return f"provenance.{name}"
    pair = one["training"], other["training"]
    for name in sorted({*pair[0], *pair[1]} - FREE_TRAINING):
        if pair[0].get(name) != pair[1].get(name):
            return f"training.{name}"
    return None

"""What a job's student is compared with: the same student without what the method adds."""

from collections.abc import Mapping
from typing import Any

from workers.distill.config.descriptions import Exchange
from workers.distill.config.federation import open_images_or_default

LABELS_ALONE: dict[str, Any] = {"name": "ce"}
NOISE = "noise"
"""The method of the baseline where there are no labels: images that show nothing."""
LOCAL = "local"
"""The method of the baseline of clients: each trains alone."""
_STEPS_OF_STUDENT = ("student_steps", "data_scale", "original_images", "calls_per_epoch")


def baseline_of(method: Mapping[str, Any], exchange: Exchange | None = None) -> dict[str, Any]:
    """Return the method that trains the baseline of a complete method.

    That is the labels alone; in a federation, whose `exchange` says what travels, those of each
    client alone, on the same images of the same clients. For a method that
    synthesizes its images there are none: the teacher on images of noise, with as many steps of the
    student and, where the method has one, at the same temperature.
    """
    if "federation" in method:
        # Nothing is sent that could be protected, and nothing is made for clients.
        alone = {**method["federation"], "privacy": None, "augmentation": None}
        if exchange is not None and exchange.uses_open_set:
            # Local training has no open set: it must be told to leave out the same images.
            alone["open_images"] = open_images_or_default(alone["open_images"], uses_open_set=True)
        return {"name": LOCAL, "federation": alone}
    budget = method.get("synthesis")
    if budget is None:
        return dict(LABELS_ALONE)
    same = {name: method[name] for name in ("temperature",) if name in method}
    return {"name": NOISE, **same, "synthesis": {step: budget[step] for step in _STEPS_OF_STUDENT}}

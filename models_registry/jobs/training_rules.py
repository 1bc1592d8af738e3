"""Rules between fields of a complete `training`, which a JSON Schema cannot say.

The engine's own checks (`workers/distill/config/training.py`) are the truth; a test holds these
equal to them, so that a caller hears of a contradiction at submission, with the field.
"""

from collections.abc import Iterator
from typing import Any

from models_registry import errors

Json = dict[str, Any]  # a complete `training`, checked against its schema before


def faults(training: Json) -> Iterator[errors.Fault]:
    """Yield what contradicts itself in a complete training."""
    for rule in (_of_optimizer, _of_limits, _of_teacher_cache):
        for field, code, detail in rule(training):
            yield errors.Fault(f"/training/{field}", code, detail)


def _of_optimizer(training: Json) -> Iterator[tuple[str, str, str]]:
    optimizer = training["optimizer"]
    if optimizer["name"] == "sgd" and optimizer["nesterov"] and optimizer["momentum"] == 0:
        detail = "nesterov needs a momentum greater than 0, got momentum 0"
        yield "optimizer/nesterov", "nesterov_without_momentum", detail
    if optimizer["name"] != "dot":
        return
    momentum, delta = optimizer["momentum"], optimizer["delta"]
    if delta > momentum or momentum + delta >= 1:
        yield (
            "optimizer/delta",
            "delta_out_of_range",
            "dot needs a delta of at most the momentum, and a sum of both below 1, got momentum "
            f"{momentum:g} and delta {delta:g}",
        )
    if training["precision"] == "float16":
        yield (
            "precision",
            "dot_float16",
            "optimizer dot cannot scale two gradients for precision float16; choose bfloat16 or "
            "float32",
        )
    if training["compile"] == "on":
        yield (
            "compile",
            "dot_compile",
            "optimizer dot goes backwards twice through one graph, which a compiled network does "
            "not allow; choose compile off or auto",
        )


def _of_limits(training: Json) -> Iterator[tuple[str, str, str]]:
    patience, every = training["patience_epochs"], training["evaluate_every_epochs"]
    if patience is not None and patience < every:
        yield (
            "patience_epochs",
            "patience_too_short",
            f"patience_epochs {patience} is shorter than evaluate_every_epochs {every}; raise the "
            "first or lower the second",
        )
    warmup = training["schedule"]["warmup_epochs"]
    if warmup > training["epochs"]:
        yield (
            "schedule/warmup_epochs",
            "warmup_too_long",
            f"warmup_epochs {warmup:g} is longer than epochs {training['epochs']}; lower it",
        )


def _of_teacher_cache(training: Json) -> Iterator[tuple[str, str, str]]:
    cache = training["teacher_cache"]
    if cache is None:
        return
    if training["mixing"] is not None:
        yield (
            "mixing",
            "mixing_with_cache",
            "mixing makes new images at every step, which a teacher_cache cannot hold; set one of "
            "both to null",
        )
    if cache["views"] > 1 and training["augmentation"] == "none":
        yield (
            "teacher_cache/views",
            "views_are_equal",
            f"{cache['views']} views would be equal to one another with augmentation none; set "
            "views to 1 or choose an augmentation",
        )
    if cache["per_visit"] > cache["views"] or training["batch_size"] % cache["per_visit"]:
        yield (
            "teacher_cache/per_visit",
            "visit_does_not_fit",
            f"per_visit {cache['per_visit']} must divide batch_size {training['batch_size']} and "
            f"be at most views {cache['views']}",
        )

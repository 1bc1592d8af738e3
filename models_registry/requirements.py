"""Whether method, training and networks of a spec fit together, known before anything is trained.

The engine refuses the same in the first second of a job (`workers/distill/catalog.py: check`, and
each method's constructor); here the caller hears it at submission, with the field.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models_registry import catalog, errors

COMBINE = "combine"
_SHOWN = {
    "stages": "feature maps of its stages",
    "pre_activations": "feature maps before the last activation of every stage",
    "final": "a last feature map whose average is its embedding",
    "norms": "a batch norm before the last activation of every stage",
    "classifier": "a linear classifier on its embedding",
}
_MAPS = {"stages", "pre_activations", "final"}


@dataclass(frozen=True)
class Requirements:
    """What a method, or all parts of a combination together, ask for."""

    name: str
    needs: frozenset[str]
    student_shows: tuple[str, ...]
    teacher_shows: tuple[str, ...]
    has_task: bool
    accepts_mixed: bool
    wants_strong: bool
    smallest_batch: int


def of(method: dict[str, Any]) -> Requirements:
    """Return what a completed method asks for."""
    entries = [catalog.method(part["name"]) for part in parts(method)]
    return Requirements(
        name=method["name"],
        needs=frozenset(need for entry in entries for need in entry["needs"]),
        student_shows=_union(entries, "student_shows"),
        teacher_shows=_union(entries, "teacher_shows"),
        has_task=method["name"] == COMBINE or all(entry["has_task"] for entry in entries),
        accepts_mixed=all(entry["accepts_mixed"] for entry in entries),
        wants_strong=any(entry["wants_strong"] for entry in entries),
        smallest_batch=max(entry["smallest_batch"] for entry in entries),
    )


def parts(method: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the methods of a combination, or the method itself."""
    return list(method["methods"]) if method["name"] == COMBINE else [method]


def faults(
    asked: Requirements, training: dict[str, Any], *, student: str, teacher: str | None
) -> Iterator[errors.Fault]:
    """Yield what does not fit; `student` and `teacher` are references of networks."""
    yield from _of_training(asked, training)
    for role, reference, shows in (
        ("student", student, asked.student_shows),
        ("teacher", teacher, asked.teacher_shows),
    ):
        # What a foreign network shows is known only when it is built; the engine says so then.
        if reference not in catalog.load().networks:
            continue
        for wanted in shows:
            if wanted not in catalog.load().networks[reference]["shows"]:
                yield errors.Fault(
                    "/student/network" if role == "student" else "/teacher",
                    "not_shown",
                    f"method {asked.name} needs {_SHOWN[wanted]}, and the {role}'s network "
                    f"{reference} shows none; choose another {role}, or a method that compares "
                    "logits",
                )


def _of_training(asked: Requirements, training: dict[str, Any]) -> Iterator[errors.Fault]:
    if training["mixing"] is not None and not asked.accepts_mixed:
        yield errors.Fault(
            "/training/mixing",
            "mixing_refused",
            f"method {asked.name} needs one true class for each image, so images cannot be mixed; "
            "leave mixing out or choose a method without that need, such as kd",
        )
    if training["optimizer"]["name"] == "dot" and not asked.has_task:
        yield errors.Fault(
            "/training/optimizer/name",
            "optimizer_refused",
            f"dot keeps one momentum for the labels, and method {asked.name} does not learn from "
            "them; choose sgd or adamw",
        )
    if training["batch_size"] < asked.smallest_batch:
        yield errors.Fault(
            "/training/batch_size",
            "batch_too_small",
            f"method {asked.name} needs at least {asked.smallest_batch} images in a batch, got "
            f"batch_size {training['batch_size']}",
        )
    if training["teacher_cache"] is not None:
        yield from _of_teacher_cache(asked)


def _of_teacher_cache(asked: Requirements) -> Iterator[errors.Fault]:
    where = "/training/teacher_cache"
    if "teacher" not in asked.needs:
        yield errors.Fault(where, "no_teacher", f"method {asked.name} asks no teacher anything")
    elif _MAPS & set(asked.teacher_shows):
        yield errors.Fault(
            where,
            "maps_not_stored",
            f"the cache stores the teacher's logits and embeddings, and method {asked.name} needs "
            "its feature maps; leave teacher_cache out",
        )
    elif asked.wants_strong:
        yield errors.Fault(
            where,
            "strong_not_stored",
            f"method {asked.name} shows the teacher a second view of each image, which the cache "
            "does not store; leave teacher_cache out",
        )


def _union(entries: list[dict[str, Any]], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(shown for entry in entries for shown in entry[key]))

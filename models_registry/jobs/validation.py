"""Whether method, training and networks of a spec fit together, known before anything is trained.

The engine refuses the same in the first second of a job (`methods/catalog.py: check`,
`budgets.py: settle`, and each method's constructor); here the caller hears it at submission, with
the field.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models_registry import catalog, errors

COMBINE = "combine"
DATA_FREE = "datafree"
_SIMPLE_AUGMENTATIONS = ("none", "standard")
_SHOWN = {
    "stages": "feature maps of its stages",
    "pre_activations": "feature maps before the last activation of every stage",
    "final": "a last feature map whose average is its embedding",
    "norms": "a batch norm before the last activation of every stage",
    "classifier": "a linear classifier on its embedding",
}
_MAPS = {"stages", "pre_activations", "final"}
_ONLY_AGAINST_THE_STUDENT = ("dfad", "zskt")
"""Methods whose images are moved by nothing but the student's mistakes."""


@dataclass(frozen=True)
class Requirements:
    """What a method, or all parts of a combination together, ask for."""

    name: str
    tasks: tuple[str, ...]
    is_data_free: bool
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
        tasks=tuple(
            task for task in entries[0]["tasks"] if all(task in entry["tasks"] for entry in entries)
        ),
        is_data_free=is_data_free(method),
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


def is_data_free(method: dict[str, Any]) -> bool:
    """Return whether a method invents its images, so that a data set is for evaluation only."""
    entry = catalog.load().methods.get(method["name"], {})
    return entry.get("family") == DATA_FREE


def faults_of_task(asked: Requirements, task: str) -> Iterator[errors.Fault]:
    """Yield that a method is not for a task, if so."""
    if task not in asked.tasks:
        yield errors.Fault(
            "/method/name",
            "wrong_task",
            f"method {asked.name} is for {' and '.join(asked.tasks)}, and the task is {task}; "
            "choose another method",
        )


def faults_of_method(method: dict[str, Any]) -> Iterator[errors.Fault]:
    """Yield which hyper-parameters of a completed method contradict each other.

    The validators of the engine's methods say the same, in the same words.
    """
    name, budget = method["name"], method.get("synthesis", {})
    if name in _ONLY_AGAINST_THE_STUDENT and budget["warmup_calls"]:
        yield errors.Fault(
            "/method/synthesis/warmup_calls",
            "nothing_to_learn_from",
            "synthesis.warmup_calls must be 0: the generator learns from nothing but the student, "
            f"which is not there during warm-up; got {budget['warmup_calls']}",
        )
    if name == "spaceshipnet" and method["exchange_probability"] > 0 and budget["keep"] != "last":
        yield errors.Fault(
            "/method/synthesis/keep",
            "exchange_not_kept",
            f"synthesis.keep is {budget['keep']}, and channels are exchanged in the last step of a "
            "call; set synthesis.keep to last, or exchange_probability to 0",
        )
    if name == "ssdkd" and method["eviction"] == "lowest" and not method["prioritise"]:
        yield errors.Fault(
            "/method/eviction",
            "no_priorities",
            "eviction lowest follows priorities, which are kept only where prioritise is true; set "
            "eviction to oldest, or prioritise to true",
        )


def faults_of_synthesis(budget: dict[str, Any], *, has_dataset: bool) -> Iterator[errors.Fault]:
    """Yield what a budget contradicts or leaves open, as the engine's `budgets.py` sees it."""
    where = "/method/synthesis"
    if budget.get("average_decay") is not None and budget["reuse"] != "none":
        yield errors.Fault(
            f"{where}/average_decay",
            "nothing_new_to_average",
            f"average_decay {budget['average_decay']:g} makes new images, and reuse "
            f"{budget['reuse']} asks for those of the call; set average_decay to null, or reuse to "
            "none",
        )
    if budget["student_steps"] is not None and budget["data_scale"] is not None:
        yield errors.Fault(
            f"{where}/student_steps",
            "steps_twice",
            f"student_steps {budget['student_steps']} and data_scale {budget['data_scale']:g} both "
            "say how many steps the student makes; set one of them to null",
        )
    if budget["student_steps"] is not None:
        return
    if budget["data_scale"] is None:
        yield errors.Fault(
            f"{where}/student_steps",
            "budget_open",
            "student_steps and data_scale are both null; give one of them",
        )
    elif budget["original_images"] is None and not has_dataset:
        yield errors.Fault(
            f"{where}/original_images",
            "size_unknown",
            "data_scale is a share of the teacher's training set, whose size is not known without "
            "a data set; give original_images, or student_steps instead",
        )


def faults(
    asked: Requirements, training: dict[str, Any], *, student: str, teacher: str | None
) -> Iterator[errors.Fault]:
    """Yield what does not fit; `student` and `teacher` are references of networks."""
    if asked.is_data_free:
        yield from _of_data_free(asked, training)
    else:
        yield from _of_images(asked, training)
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


def _of_data_free(asked: Requirements, training: dict[str, Any]) -> Iterator[errors.Fault]:
    invents = f"method {asked.name} invents its images"
    if training["mixing"] is not None:
        detail = f"{invents}, which are not mixed; set mixing to null"
        yield errors.Fault("/training/mixing", "mixing_refused", detail)
    if training["label_noise"] > 0:
        detail = f"{invents} and has no labels that could be wrong; set label_noise to 0"
        yield errors.Fault("/training/label_noise", "no_labels", detail)
    if training["teacher_cache"] is not None:
        detail = f"{invents}, so that the teacher sees new ones all the time; leave it out"
        yield errors.Fault("/training/teacher_cache", "images_not_fixed", detail)
    if training["augmentation"] not in _SIMPLE_AUGMENTATIONS:
        detail = (
            f"{invents}, for which {training['augmentation']} is not made; choose none or standard"
        )
        yield errors.Fault("/training/augmentation", "augmentation_refused", detail)
    if training["patience_epochs"] is not None:
        detail = (
            f"{invents}, and no student of it is chosen by looking at real ones; leave "
            "patience_epochs out, and limit epochs, max_steps or max_seconds"
        )
        yield errors.Fault("/training/patience_epochs", "never_chosen", detail)
    if training["precision"] == "float16":
        detail = (
            f"{invents} by gradients that float16 cannot hold; choose auto, bfloat16 or float32"
        )
        yield errors.Fault("/training/precision", "precision_refused", detail)


def _of_images(asked: Requirements, training: dict[str, Any]) -> Iterator[errors.Fault]:
    if training["mixing"] is not None and not asked.accepts_mixed:
        yield errors.Fault(
            "/training/mixing",
            "mixing_refused",
            f"method {asked.name} needs one true class for each image, so images cannot be mixed; "
            "leave mixing out or choose a method without that need, such as kd",
        )
    if training["teacher_cache"] is not None:
        yield from _of_teacher_cache(asked)


def _of_training(asked: Requirements, training: dict[str, Any]) -> Iterator[errors.Fault]:
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

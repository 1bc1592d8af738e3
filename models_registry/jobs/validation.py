"""Whether the parts of a spec fit together, known before anything is trained.

The rules themselves are the engine's (`workers/distill/config/rules.py`), which executes the same
ones at preparation. This file says which of them can be decided from a spec alone, and which from
the rows that its references lead to. Not decided here is what only a built network tells: what
networks of other libraries show and how large images must be for them, how many parameters
arguments ask for, and the shapes of feature maps. The engine refuses those in the first second.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models_registry import catalog, errors
from models_registry.persistence import tables
from workers.distill.config import descriptions, rules
from workers.distill.config.descriptions import NetworkDescription
from workers.distill.config.federation import rounds_as_epochs


@dataclass(frozen=True)
class JobInputs:
    """The rows that a spec's references lead to."""

    teacher: tables.ModelVersionRow | None
    initial: tables.ModelVersionRow | None
    dataset: tables.DatasetVersionRow | None

    def all(self) -> list[tuple[str, tables.ModelVersionRow | tables.DatasetVersionRow]]:
        """Return those that are there, each with the field that names it."""
        found = (
            ("/teacher", self.teacher),
            ("/student/initial", self.initial),
            ("/dataset", self.dataset),
        )
        return [(pointer, row) for pointer, row in found if row is not None]


@dataclass(frozen=True)
class SpecParts:
    """What of a spec is checked here; None is what is missing, or at fault by itself."""

    task: str | None
    method: dict[str, Any] | None
    training: dict[str, Any] | None
    network: str | None
    """Reference of the student's network."""
    arguments: dict[str, Any]
    initial: str | None
    has_teacher: bool
    has_dataset: bool
    accelerator: str


@dataclass(frozen=True)
class Document:
    """A spec as it is read without its inputs: its parts in full, and all that is wrong with it."""

    parts: SpecParts
    method: catalog.Reading
    training: catalog.Reading
    student: NetworkDescription
    faults: list[errors.Fault]


def parts(method: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the methods of a combination, or the method itself."""
    return list(method["methods"]) if method["name"] == descriptions.COMBINE else [method]


def is_data_free(method: dict[str, Any]) -> bool:
    """Return whether a method synthesizes its images, so that data are for evaluation only."""
    known = catalog.load().methods
    return method["name"] in known and catalog.describe_method(method["name"]).is_data_free


def read(parts: SpecParts) -> Document:
    """Return what a spec asks for, and what is wrong with it whatever its references lead to."""
    method, training = catalog.Reading({}), catalog.Reading({})
    if parts.method is not None:
        method = catalog.read_method(parts.method)
    if parts.training is not None:
        training = catalog.read_training(rounds_as_epochs(parts.method, parts.training))
    student, wrong = _read_student(parts)
    fitting = catalog.translated(_faults_of_document(parts, method, training))
    others = _faults_of_client_networks(method)
    faults = [*method.faults, *training.faults, *wrong, *others, *fitting]
    return Document(parts, method, training, student, faults)


def _read_student(parts: SpecParts) -> tuple[NetworkDescription, list[errors.Fault]]:
    if parts.network is None:
        return NetworkDescription(""), []
    try:
        catalog.check_network(parts.network, parts.arguments, pointer="/student")
    except errors.Refused as error:
        return NetworkDescription(parts.network), list(error.faults)
    student = catalog.describe_network(parts.network, parts.arguments)
    if parts.task is None:
        return student, []
    return student, list(catalog.translated(rules.of_network_task("student", student, parts.task)))


def _faults_of_client_networks(method: catalog.Reading) -> list[errors.Fault]:
    """Return which networks of a federation's clients do not exist, or take other arguments."""
    if method.description is None or not method.description.is_federated:
        return []
    found: list[errors.Fault] = []
    try:
        networks = method.document["federation"]["networks"] or []
    except rules.FaultyFieldError:
        return []
    for place, one in enumerate(networks):
        pointer = f"/method/federation/networks/{place}"
        try:
            catalog.check_network(one["network"], one.get("arguments", {}), pointer=pointer)
        except errors.Refused as error:
            found += error.faults
    return found


def _faults_of_document(
    parts: SpecParts, method: catalog.Reading, training: catalog.Reading
) -> Iterator[rules.Violation]:
    if parts.training is not None:
        yield from rules.of_precision(training.document, parts.accelerator)
        if parts.task is not None:
            yield from rules.of_task_and_training(parts.task, training.document)
    if method.description is None:
        return
    yield from rules.of_inputs(
        method.description, has_teacher=parts.has_teacher, has_dataset=parts.has_dataset
    )
    if parts.network is not None:
        yield from rules.of_client_networks(
            method.description, method.document, parts.network, parts.arguments
        )
    if parts.task is not None:
        yield from rules.of_task(method.description, parts.task)
    yield from rules.of_original_images(
        method.description, method.document, has_dataset=parts.has_dataset
    )
    if parts.training is not None:
        yield from rules.of_rounds(method.description, method.document, training.document)
        yield from rules.of_method_and_training(method.description, training.document)


def faults_of_inputs(document: Document, inputs: JobInputs) -> list[errors.Fault]:
    """Return what does not fit among inputs that are ready; pending ones are judged later."""
    return [
        *catalog.translated(_faults_of_rows(document, inputs)),
        *_faults_of_start(document, inputs),
    ]


def _faults_of_rows(document: Document, inputs: JobInputs) -> Iterator[rules.Violation]:
    teacher = _described(inputs.teacher)
    start = _described(inputs.initial)
    dataset, task = inputs.dataset, document.parts.task
    if dataset is not None and task is not None:
        yield from rules.of_dataset_task(dataset.task, task)
    ready = dataset is not None and dataset.state == "ready"
    classes = len(dataset.classes) if dataset is not None and ready else None
    channels = (dataset.input or {}).get("channels") if dataset is not None and ready else None
    for role, model in (("teacher", teacher), ("start model", start)):
        if model is not None:
            if task is not None:
                yield from rules.of_network_task(role, model, task)
            yield from rules.of_dataset_classes(role, model, classes)
            yield from rules.of_dataset_channels(role, model.channels, channels)
            yield from rules.of_smallest_side(role, model)
    student = _with_images(document, inputs)
    yield from rules.of_smallest_side("student", student)
    yield from rules.of_label_noise(document.training.document, classes)
    description, method = document.method.description, document.method.document
    if description is None:
        return
    yield from rules.of_classes(description, student.classes)
    yield from rules.of_features(description, "student", student)
    if teacher is not None:
        yield from rules.of_features(description, "teacher", teacher)
        yield from rules.of_batch_norm(description, method, teacher)
        yield from rules.of_generator(description, method, teacher)


def _faults_of_start(document: Document, inputs: JobInputs) -> Iterator[errors.Fault]:
    """Yield why the student cannot start from the weights that it is to start from."""
    initial, parts = inputs.initial, document.parts
    if initial is None:
        return
    description, teacher = document.method.description, inputs.teacher
    if description is not None and description.is_data_free and teacher is not None:
        own, of_teacher = (
            (len(row.classes), row.input["channels"])  # what the shapes of weights follow from
            for row in (initial, teacher)
        )
        if own != of_teacher:
            yield errors.Fault(
                "/student/initial",
                "not_as_teacher",
                "without a data set to train on, a student has its teacher's classes and "
                f"channels, {of_teacher[0]} and {of_teacher[1]}; this model has {own[0]} and "
                f"{own[1]}",
            )
    if (initial.network, initial.arguments) != (parts.network, parts.arguments):
        yield errors.Fault(
            "/student/initial",
            "wrong_network",
            f"{parts.initial} is a {initial.network} {initial.arguments}, the student a "
            f"{parts.network} {parts.arguments}",
        )


def _described(row: tables.ModelVersionRow | None) -> NetworkDescription | None:
    """Return what is known of a model's network."""
    if row is None:
        return None
    known = catalog.describe_network(row.network, row.arguments)
    size = row.input
    return dataclasses.replace(
        known,
        task=row.task,
        classes=len(row.classes),
        channels=size["channels"],
        sides=(size["height"], size["width"]),
    )


def _with_images(document: Document, inputs: JobInputs) -> NetworkDescription:
    """Return what is known of the student, with the images that it is trained on."""
    description = document.method.description
    if description is None:
        return document.student
    source = inputs.teacher if description.is_data_free else inputs.dataset
    if source is None or source.input is None or source.state != "ready":
        return document.student
    size = source.input
    return dataclasses.replace(
        document.student,
        classes=len(source.classes),
        channels=size["channels"],
        sides=(size["height"], size["width"]),
    )

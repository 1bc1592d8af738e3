"""Whether the parts of a spec fit together, known before anything is trained.

The rules themselves are the engine's (`workers/distill/config/rules.py`), which executes the same
ones at preparation. This file says which of them can be decided from a spec alone, and which from
the rows that its references lead to. What only a built network tells (what networks of other
libraries show, which images they take) comes from the inspection of a teacher and from the trial of
a student (`network_trials`). Not decided here are the shapes of feature maps: the engine refuses
those in the first second.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import object_session

from models_registry import catalog, errors
from models_registry.artifacts import references
from models_registry.jobs import measured_methods, network_trials
from models_registry.persistence import tables
from workers.distill.config import (
    chosen,
    class_names,
    descriptions,
    exports,
    pyramids,
    rules,
    teachers,
)
from workers.distill.config.descriptions import NetworkDescription
from workers.distill.config.exports import ExportChoice
from workers.distill.config.federation import rounds_as_epochs

HARM_POINTS = 2.0
"""A method that ended so far below the student alone is told of before it is tried again."""


@dataclass(frozen=True)
class JobInputs:
    """The rows that a spec's references lead to."""

    teacher: tables.ModelVersionRow | None
    initial: tables.ModelVersionRow | None
    dataset: tables.DatasetVersionRow | None
    trial: tables.NetworkTrialRow | None = None
    """Of the student's network, where it is of another library and its images are known."""
    several: tuple[tables.ModelVersionRow, ...] = ()
    """The teachers of a job with several, for which `teacher` is None."""

    @property
    def teachers(self) -> list[tables.ModelVersionRow]:
        """Return all teachers: one, several, or none."""
        return [self.teacher] if self.teacher is not None else list(self.several)

    def all(self) -> list[tuple[str, tables.ModelVersionRow | tables.DatasetVersionRow]]:
        """Return those that are there, each with the field that names it."""
        found = (
            ("/teacher", self.teacher),
            *((f"/teachers/{place}", row) for place, row in enumerate(self.several)),
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
    devices: int = 1
    has_baseline: bool = False
    several: int = 0
    """How many models `teachers` names."""
    has_weighting: bool = False
    exports: tuple[ExportChoice, ...] = ()


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
        recipe = (parts.training or {}).get("recipe", catalog.DEFAULT_RECIPE)
        method = catalog.read_method(chosen.method_with_labels(parts.method, recipe))
    if parts.training is not None:
        wanted = rounds_as_epochs(parts.method, parts.training)
        if parts.method is not None:
            wanted = chosen.training_with_rate(wanted, parts.network, parts.method["name"])
        training = catalog.read_training(wanted)
        if parts.method is not None and not method.faults and not training.faults:
            method = catalog.with_choices(method, task=parts.task, training=training.document)
    student, wrong = _read_student(parts)
    fitting = catalog.translated(_faults_of_document(parts, method, training))
    others = [*_faults_of_client_networks(method), *_faults_of_exports(parts)]
    faults = [*method.faults, *training.faults, *wrong, *others, *fitting]
    return Document(parts, method, training, student, faults)


def _read_student(parts: SpecParts) -> tuple[NetworkDescription, list[errors.Fault]]:
    if parts.network is None:
        return NetworkDescription(""), []
    try:
        catalog.check_network(parts.network, parts.arguments, pointer="/student")
    except errors.Refused as error:
        return NetworkDescription(parts.network), list(error.faults)
    untrainable = list(catalog.translated(rules.of_only_teacher("student", parts.network)))
    if untrainable:
        return NetworkDescription(parts.network), untrainable
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
        for fault in rules.of_only_teacher("student", one["network"]):
            found.append(errors.Fault(f"{pointer}/network", fault.code, fault.message))
    return found


def _faults_of_exports(parts: SpecParts) -> Iterator[errors.Fault]:
    """Yield which exports the student's network cannot have."""
    because = None
    if not parts.has_dataset:
        because = "the job has no dataset"
    elif parts.method is not None and is_data_free(parts.method):
        because = f"method {parts.method['name']} reads no training image"
    for place, choice in enumerate(parts.exports):
        found = list(exports.faults(choice, network=parts.network or "", task=parts.task))
        if because is not None:
            found += exports.fault_without_images(choice, because=because)
        for one in found:
            yield errors.Fault(f"/exports/{place}/{one.field}", one.code, one.message)


def _faults_of_document(
    parts: SpecParts, method: catalog.Reading, training: catalog.Reading
) -> Iterator[rules.Violation]:
    yield from rules.of_teachers(
        has_teacher=parts.has_teacher,
        count=parts.several,
        has_weighting=parts.has_weighting,
    )
    if parts.training is not None:
        yield from rules.of_precision(training.document, parts.accelerator)
        if parts.task is not None:
            yield from rules.of_task_and_training(parts.task, training.document)
        yield from rules.of_sizes_without_dataset(training.document, has_dataset=parts.has_dataset)
    if method.description is None:
        return
    yield from rules.of_inputs(
        method.description,
        has_teacher=parts.has_teacher or parts.several > 0,
        has_dataset=parts.has_dataset,
        has_initial=parts.initial is not None,
    )
    if parts.network is not None:
        yield from rules.of_client_networks(
            method.description, method.document, parts.network, parts.arguments
        )
        if parts.has_baseline:
            yield from rules.of_baseline(
                method.description, method.document, parts.network, parts.arguments
            )
    if parts.task is not None:
        yield from rules.of_task(method.description, parts.task)
        yield from rules.of_params_and_task(method.document, parts.task, catalog.describe_method)
    yield from rules.of_original_images(
        method.description, method.document, has_dataset=parts.has_dataset
    )
    if parts.training is not None:
        yield from rules.of_rounds(method.description, method.document, training.document)
        yield from rules.of_weighed_labels(method.description, method.document, training.document)
        yield from rules.of_method_and_training(method.description, training.document)
        if parts.task is not None:
            yield from rules.of_devices(
                method.description, training.document, parts.task, parts.devices
            )


def wanted_trial(parts: SpecParts, inputs: JobInputs) -> network_trials.Wanted | None:
    """Return what an inspector must try of a student, or None if all is known, or not yet."""
    if parts.network is None or parts.method is None:
        return None
    if catalog.describe_network(parts.network, parts.arguments).shows is not None:
        return None
    seen = next(iter(inputs.teachers), None)
    source = seen if is_data_free(parts.method) else inputs.dataset or seen
    if source is None or source.input is None or source.state != "ready":
        return None
    has_classes = parts.task not in descriptions.WITHOUT_CLASSES
    classes = classes_of(source, seen) if has_classes else []
    if has_classes and not classes:
        return None  # known once the job that is waited for has made the teacher
    size = source.input
    return network_trials.Wanted(
        parts.network,
        parts.arguments,
        classes=len(classes),
        channels=size["channels"],
        height=size["height"],
        width=size["width"],
    )


def classes_of(
    source: tables.ModelVersionRow | tables.DatasetVersionRow,
    teacher: tables.ModelVersionRow | None,
) -> list[str]:
    """Return a student's classes: those of its images, or the teacher's where none has a label."""
    return list(source.classes or (teacher.classes if teacher is not None else ()))


def faults_of_inputs(document: Document, inputs: JobInputs) -> list[errors.Fault]:
    """Return what does not fit among inputs that are ready; pending ones are judged later."""
    return [
        *_faults_of_trial(inputs),
        *catalog.translated(_faults_of_rows(document, inputs)),
        *_faults_of_start(document, inputs),
    ]


def warnings_of_inputs(document: Document, inputs: JobInputs) -> list[errors.Fault]:
    """Return what the submitter should know of inputs that fit; pending ones are judged later."""
    return list(catalog.translated(_warnings_of_rows(document, inputs)))


def _gets_new_classifier(document: Document) -> bool:
    """Whether it does not matter which classes the start weights were made for."""
    description = document.method.description
    return description is not None and description.replaces_classifier


def _warnings_of_rows(document: Document, inputs: JobInputs) -> Iterator[rules.Violation]:
    network = document.parts.network
    if network is not None:
        yield from rules.of_weights_tag(network)
        yield from _published_rate(document, network)
    yield from _raised_labels(document)
    yield from _small_labels(document)
    yield from _measured_below(document)
    task = document.parts.task
    for role, model in (*_teacher_roles(inputs), (rules.START_MODEL, inputs.initial)):
        described = _described(model)
        if described is not None and task is not None:
            yield from rules.of_unused_classifier(role, described, task)
    dataset = inputs.dataset
    if dataset is None or dataset.state != "ready":
        return
    if document.parts.task in descriptions.WITHOUT_CLASSES:
        return
    named = None if _gets_new_classifier(document) else inputs.initial
    for role, model in (*_teacher_roles(inputs), (rules.START_MODEL, named)):
        if model is not None:
            told = class_names.remark(role, model.classes, dataset.classes)
            if told is not None:
                yield told


def _published_rate(document: Document, network: str) -> Iterator[rules.Violation]:
    """Yield that the learning rate is not the recipe's own but that of a paper, if so."""
    method, training = document.method.document, document.training.document
    if not method or not training:
        return
    found = chosen.published_rate(training["recipe"], network, method["name"])
    if found is not None and training["optimizer"].get("learning_rate") == found[0]:
        rate, whose = found
        yield rules.Violation(
            "training/optimizer/learning_rate",
            "published_rate",
            f"learning_rate is {rate:g}, as papers have it for {whose} where recipe "
            f"{training['recipe']} has another one for others; set "
            "training.optimizer.learning_rate to choose it",
        )


def _small_labels(document: Document) -> Iterator[rules.Violation]:
    """Yield that labels weigh little beside a teacher, where their loss is a mean over classes."""
    description, training = document.method.description, document.training.document
    if description is None or not training or "teacher" not in description.needs:
        return
    if training["task_loss"]["name"] == "bce":
        yield rules.Violation(
            "training/task_loss",
            "small_labels",
            "bce is the mean over the classes, as timm has it, and as many times smaller than "
            f"cross-entropy, beside which the weights of method {description.name} were published; "
            "raise method.task_weight, or set method.balance to a number such as 1, which holds "
            "the teacher's gradient within the labels' and measures both",
        )


def _raised_labels(document: Document) -> Iterator[rules.Violation]:
    """Yield that the labels do not have their published weight beside a teacher that is held."""
    method, training = document.method.document, document.training.document
    if not method or not training or method.get("task_weight") != chosen.HELD_LABELS:
        return
    if chosen.labels_are_raised(method, training["recipe"]):
        yield rules.Violation(
            "method/task_weight",
            "raised_labels",
            f"task_weight is {method['task_weight']:g}, where it is 0.1 as published for method "
            f"{method['name']}, because balance {method['balance']} holds the teacher's gradient "
            "within the labels'; set method.task_weight to choose it",
        )


def _measured_below(document: Document) -> Iterator[rules.Violation]:
    """Yield that the method did harm where it was measured in this task, if so."""
    method, task = document.method.document, document.parts.task
    if not method:
        return
    balance = method.get("balance")
    found = measured_methods.of(
        method["name"], balance=None if balance is None else str(balance), task=task
    )
    is_harmful = found is not None and found.difference <= -HARM_POINTS
    if found is not None and is_harmful and not _is_changed(method):
        yield rules.Violation(
            "method/name",
            "measured_below",
            f"method {method['name']} ended {-found.difference:.1f} points below the same student "
            f"without a teacher where it was measured with its defaults "
            f"({measured_methods.measured_on(task)}; seeds: {found.seeds}); retort methods --for "
            "lists what was better, and baseline true tells what it does here",
        )


def _is_changed(method: dict[str, Any]) -> bool:
    """Return whether a method has other values than its defaults, which are what was measured."""
    defaults = catalog.complete_method({"name": method["name"]})
    # What is null is filled in by the recipe; both weights are chosen beside the balance.
    chosen_later = {"balance", "task_weight"}
    return any(
        method[name] != value
        for name, value in defaults.items()
        if value is not None and name not in chosen_later
    )


def _faults_of_rows(document: Document, inputs: JobInputs) -> Iterator[rules.Violation]:
    teacher_models = [(role, _described(row)) for role, row in _teacher_roles(inputs)]
    start = _described(inputs.initial)
    dataset, task = inputs.dataset, document.parts.task
    if dataset is not None and task is not None:
        yield from rules.of_dataset_task(dataset.task, task)
    ready = dataset is not None and dataset.state == "ready"
    # A data set without labels has those of the first teacher.
    first = next(iter(inputs.teachers), None)
    classes = len(classes_of(dataset, first)) or None if dataset is not None and ready else None
    channels = (dataset.input or {}).get("channels") if dataset is not None and ready else None
    for role, model in (*teacher_models, (rules.START_MODEL, start)):
        if model is not None:
            if task is not None:
                yield from rules.of_network_task(role, model, task)
            if role != rules.START_MODEL or not _gets_new_classifier(document):
                yield from rules.of_dataset_classes(role, model, classes, task)
            yield from rules.of_dataset_channels(role, model.channels, channels)
            yield from rules.of_smallest_side(role, model)
    student = _with_images(document, inputs)
    yield from rules.of_smallest_side("student", student)
    if student.shows is not None:  # else the network or its arguments are refused already
        yield from pyramids.of_arguments(
            "student", student.reference, document.parts.arguments, student.sides
        )
        yield from rules.of_evaluated_sizes(document.training.document, student)
    yield from rules.of_label_noise(document.training.document, classes)
    yield from rules.of_class_weights(document.training.document, classes)
    description, method = document.method.description, document.method.document
    if description is None:
        return
    if dataset is not None and ready:
        yield from rules.of_storage(method, is_encoded=dataset.encoded is not None)
        yield from rules.of_labels(
            description,
            document.training.document,
            splits=dataset.splits or {},
            labelled=dataset.labelled,
            has_teacher=document.parts.has_teacher or document.parts.several > 0,
        )
    yield from rules.of_classes(description, student.classes)
    yield from rules.of_features(description, "student", student, task)
    yield from _chosen_features(description, method, "student", student)
    yield from rules.of_several_teachers(description, [row.network for row in inputs.teachers])
    teacher = _as_one([model for _, model in teacher_models if model is not None])
    if teacher is not None:
        yield from rules.of_gradients(description, teacher)
        yield from rules.of_predictions(description, document.training.document, teacher)
        if teacher.predicted is not None and dataset is not None and dataset.state == "ready":
            yield from rules.of_predicted_dataset(
                teacher.predicted, _reference_of(dataset), f"sha256:{dataset.sha256}"
            )
        yield from rules.of_features(description, "teacher", teacher, task)
        yield from _chosen_features(description, method, "teacher", teacher)
        yield from rules.of_batch_norm(description, method, teacher)
        yield from rules.of_generator(description, method, teacher)


def _chosen_features(
    description: descriptions.MethodDescription,
    method: rules.Json,
    role: str,
    network: NetworkDescription,
) -> Iterator[rules.Violation]:
    """Yield what hyper-parameters ask of a network that does not show it, of each part once."""
    parts = [(description, method)]
    if description.name == descriptions.COMBINE:
        parts = [(catalog.describe_method(part["name"]), part) for part in method["methods"]]
    yield from dict.fromkeys(
        fault
        for part, params in parts
        for fault in rules.of_chosen_features(part, params, role, network)
    )


def _teacher_roles(inputs: JobInputs) -> list[tuple[str, tables.ModelVersionRow]]:
    """Return all teachers, each with what it is called in messages."""
    rows = inputs.teachers
    return [(teachers.role_of(place, len(rows)), row) for place, row in enumerate(rows)]


def _reference_of(dataset: tables.DatasetVersionRow) -> str:
    session = object_session(dataset)
    if session is None:
        raise RuntimeError("the reference of a data set whose session has ended")
    line = session.get_one(tables.DatasetRow, dataset.dataset_id)
    return references.write(line.name, dataset.version)


def _as_one(models: list[NetworkDescription]) -> NetworkDescription | None:
    """Return what is known of the teacher, or of several together: they have no features."""
    if len(models) < 2:
        return models[0] if models else None
    return NetworkDescription(
        " + ".join(model.reference for model in models),
        task=models[0].task,
        shows=frozenset(),
        has_batch_norm=False,
        classes=models[0].classes,
        limits=teachers.SEVERAL_LIMITS,
    )


def _faults_of_trial(inputs: JobInputs) -> Iterator[errors.Fault]:
    """Yield why the student's network cannot be built for the images, if so."""
    trial = inputs.trial
    if trial is not None and trial.rejection is not None:
        yield errors.Fault("/student/network", trial.rejection["code"], trial.rejection["message"])


def _faults_of_start(document: Document, inputs: JobInputs) -> Iterator[errors.Fault]:
    """Yield why the student cannot start from the weights that it is to start from."""
    initial, parts = inputs.initial, document.parts
    if initial is None:
        return
    description, teacher = document.method.description, inputs.teacher
    is_known = teacher is not None and bool(teacher.classes and initial.classes)
    if description is not None and description.is_data_free and teacher is not None and is_known:
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
        _with_traits(known, row.traits),
        task=row.task,
        classes=len(row.classes) or None,
        channels=size["channels"] if size else None,
        sides=(size["height"], size["width"]) if size else None,
    )


def _with_traits(known: NetworkDescription, traits: dict[str, Any] | None) -> NetworkDescription:
    """Return a description with what an inspector has found, where the catalog knows nothing."""
    if traits is None or known.shows is not None:
        return known
    shows = frozenset(traits["shows"])
    if known.reference not in teachers.ONLY_TEACHERS:
        # Also of networks that were inspected before this feature had a name.
        shows |= descriptions.OF_EVERY_NETWORK
    return dataclasses.replace(
        known,
        shows=shows,
        has_batch_norm=traits["has_batch_norm"],
        gives_gradients=traits.get("gives_gradients"),
        limits=traits.get("limits"),
    )


def _with_images(document: Document, inputs: JobInputs) -> NetworkDescription:
    """Return what is known of the student, with the images that it is trained on."""
    description = document.method.description
    student = _with_traits(document.student, inputs.trial.traits if inputs.trial else None)
    if description is None:
        return student
    source = inputs.teacher if description.is_data_free else inputs.dataset
    if source is None or source.input is None or source.state != "ready":
        return student
    size = source.input
    return dataclasses.replace(
        student,
        classes=len(classes_of(source, next(iter(inputs.teachers), None))) or None,
        channels=size["channels"],
        sides=(size["height"], size["width"]),
    )

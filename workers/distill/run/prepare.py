"""Preparation: choose the device, read the data set, load the teacher, check that all fit together.

A data-free job has no training split, and its validation and test splits may be absent: what is
read of a data set is decided here, and nowhere else.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import deterministic

from workers.distill import errors
from workers.distill.config import class_names, pyramids, rules, teachers
from workers.distill.config.descriptions import BACKBONE, NetworkDescription
from workers.distill.config.job import Input, JobConfig, NetworkChoice, Task
from workers.distill.data import dataset, encoded_images
from workers.distill.data.lazy_images import shown
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import PixelsAsStored, Preprocessor
from workers.distill.evaluation import evaluate, validation
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.methods import catalog
from workers.distill.networks import catalog as networks
from workers.distill.networks import class_order, pointwise, weights
from workers.distill.networks.ensemble import Ensemble
from workers.distill.networks.interface import Network
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.run import labelling
from workers.distill.run.context import JobContext, JobRequest, Loop, SharedContext
from workers.distill.runtime import signals
from workers.distill.runtime.precision import choose_precision
from workers.distill.runtime.ranks import Ranks
from workers.distill.tasks.base import BaseTask
from workers.distill.tasks.catalog import TASKS


def prepare(
    config: JobConfig,
    workdir: pathlib.Path,
    stop: signals.Stop,
    *,
    loop: Loop,
    strong: bool,
    ranks: Ranks,
) -> SharedContext:
    """Choose the device, read the data set, load the teacher, and check that they fit.

    Of the config it reads what all members of a group agree in. `strong` asks for a second view.
    Of each batch, the loader yields what is this rank's of `ranks`.
    """
    encoded_images.share_cores(ranks.count)
    device, task = choose_device(config.accelerator, rank=ranks.share.rank), TASKS[config.task]
    precision = choose_precision(config.training, device)
    stored = dataset.load(workdir / "dataset")
    size = stored.record.input
    check_task(stored.record.task, config.task)
    train = task.open_split(stored, "train")
    held_back, tested = (
        scored_split(task, stored, name, config) for name in ("validation", "test")
    )
    classes = classes_of(stored.record, config)
    for role, choice in teachers_of(config):
        check_classes(role, choice, len(classes), config.task)
    check_storage(config, is_encoded=stored.record.encoded is not None)
    check_labels(config, stored.record.sizes(), stored.record.labelled)
    check_label_noise(config, len(classes))
    check_class_weights(config, len(classes))
    fewest = ranks.share.fewest_rows
    if len(train.labels) < fewest:
        on = "" if ranks.count == 1 else f" on {ranks.count} devices"
        raise errors.BadDataset(
            f"the train split holds {len(train.labels)} images; at least {fewest} are needed to "
            f"learn{on}"
        )
    network, teacher_preprocessor = load_teachers(config, workdir, device, classes, size)
    predicted = predictions_of(network, config, stored.record)
    answers = None
    if network is not None and teacher_preprocessor is not None:
        answers = labelling.TeacherAnswers(
            task, network, teacher_preprocessor, precision, device, stop, predicted
        )
    labels = labelling.of_training(task, train, answers, config.training.pseudo_labels)
    scored, test = (
        labelling.of_scores(task, name, split, answers)
        for name, split in (("validation", held_back), ("test", tested))
    )

    def references(name: str, scored: labelling.ScoredSplit) -> LabelledImages | None:
        # Where the teacher's answers are the labels, nothing is told apart.
        if scored.by_teacher:
            return None
        ratio = config.training.crop_ratio
        return evaluate.references(task, stored, name, device, crop_ratio=ratio)

    validation_split = validation.ValidationSplit(
        on_device(scored.content, device, scored.predicted, references("validation", scored)),
        task,
        len(classes),
        precision,
        stop.check,
    )
    teacher_scores = None
    covered = not isinstance(network, PredictionsNetwork) or "validation" in predicted
    if network is not None and teacher_preprocessor is not None and covered:
        teacher_scores = validation.TeacherScores(validation_split, network, teacher_preprocessor)
    return SharedContext(
        loop=loop,
        stop=stop,
        task=task,
        device=device,
        precision=precision,
        classes=classes,
        size=size,
        flip=may_flip(config, stored.record),
        known_images=len(train.labels),
        labelling=labelling.Labelling(labels, scored, test, stored.record),
        train_data=BatchLoader(
            train.images,
            task.add_label_noise(
                labels.used,
                config.training.label_noise,
                classes=len(classes),
                seed=config.training.seed,
            ),
            training=config.training,
            flip=may_flip(config, stored.record),
            strong=strong,
            device=device,
            crop_targets=task.crop_targets,
            class_weights=task.class_weights(
                train.labels, config.training.class_weights, len(classes)
            ),
            has_all_labels=labels.has_all,
            share=ranks.share,
        ),
        validation=validation_split,
        test=on_device(test.content, device, test.predicted, references("test", test)),
        teacher_preprocessor=teacher_preprocessor,
        teacher=network,
        teacher_scores=teacher_scores,
        ranks=ranks,
    )


def prepare_without_data(
    config: JobConfig, workdir: pathlib.Path, stop: signals.Stop, *, loop: Loop, ranks: Ranks
) -> SharedContext:
    """Choose the device and load the teacher; of a data set, read what is only evaluated on.

    Images have the size, the channels and the normalisation that the teacher's record states.
    """
    if config.teacher is None:
        raise ValueError("the config names no teacher")
    device, task = choose_device(config.accelerator), TASKS[config.task]
    precision = choose_precision(config.training, device)
    size = config.teacher.input
    teacher_preprocessor = Preprocessor("teacher", config.teacher.input, size, device)
    classes = config.class_names or [str(label) for label in range(config.teacher.classes)]
    validation_split = test = teacher_scores = record = stored = None
    if (workdir / "dataset").is_dir():
        stored = dataset.load(workdir / "dataset")
        record = stored.record
        check_task(record.task, config.task)
        classes = classes_of(record, config)
    check_classes("teacher", config.teacher, len(classes), config.task)
    network = load_teacher(config.teacher, workdir / "teacher", device, config.task, classes)
    network.enable_gradients()
    scored = labelling.Labelling(None, None, None)
    if record is not None and stored is not None:
        for role, choice in (("teacher", config.teacher), ("student", config.student)):
            # Refuses channels that cannot be adapted.
            Preprocessor(role, choice.input, record.input, device)
        answers = labelling.TeacherAnswers(
            task, network, teacher_preprocessor, precision, device, stop
        )
        held_back, tested = (
            labelling.of_scores(task, name, scored_split(task, stored, name, config), answers)
            for name in ("validation", "test")
        )
        scored = labelling.Labelling(None, held_back, tested, record)
        validation_split = validation.ValidationSplit(
            on_device(held_back.content, device), task, len(classes), precision, stop.check
        )
        test = on_device(tested.content, device)
        teacher_scores = validation.TeacherScores(validation_split, network, teacher_preprocessor)
    return SharedContext(
        loop=loop,
        stop=stop,
        task=task,
        device=device,
        precision=precision,
        classes=classes,
        size=size,
        flip=may_flip(config, record),
        train_data=None,
        known_images=None if record is None else record.splits["train"],
        labelling=scored,
        validation=validation_split,
        test=test,
        teacher_preprocessor=teacher_preprocessor,
        teacher=network,
        teacher_scores=teacher_scores,
        ranks=ranks,
    )


def scored_split(
    task: BaseTask, stored: dataset.StoredDataset, name: str, config: JobConfig
) -> dataset.ImageSplit:
    """Return the validation or test split, its images cut as the training says."""
    return as_scored(task.open_split(stored, name), config)


def as_scored(split: dataset.ImageSplit, config: JobConfig) -> dataset.ImageSplit:
    """Return a split, its images cut as the training says that networks are scored."""
    images = shown(split.images, config.training.crop_ratio)
    return dataset.ImageSplit(images, split.labels, split.scales)


def classes_of(record: dataset.DatasetRecord, config: JobConfig) -> list[str]:
    """Return the names of the classes: the data set's, else, where it has none, the teacher's."""
    if record.classes or not config.all_teachers:
        return list(record.classes)
    first = config.all_teachers[0]
    return first.class_names or [str(label) for label in range(first.classes)]


def check_storage(config: JobConfig, *, is_encoded: bool) -> None:
    """Raise `BadRecipe` for a method that does not read pictures which are stored encoded."""
    method, params = catalog.find(config.method)
    described = {**params.model_dump(), "name": method.describe().name}
    errors.refuse(rules.of_storage(described, is_encoded=is_encoded))


def check_labels(
    config: JobConfig, splits: Mapping[str, int], labelled: Mapping[str, int] | None
) -> None:
    """Raise `BadRecipe` for what cannot be learned from images without labels.

    `splits` has the images of each split, `labelled` those with a label, None where all have one.
    """
    method, _ = catalog.find(config.method)
    errors.refuse(
        rules.of_labels(
            method.describe(),
            config.training.model_dump(),
            splits=splits,
            labelled=labelled,
            has_teacher=bool(config.all_teachers),
        )
    )


def may_flip(config: JobConfig, record: dataset.DatasetRecord | None) -> bool:
    """Return whether mirrored images keep their labels: as the job says, else as its data set."""
    if config.training.flip is not None:
        return config.training.flip
    return record is not None and record.flip


def job_context(shared: SharedContext, request: JobRequest) -> JobContext:
    """Return the context of one job beside what it shares, and check that it fits there."""
    config = request.config
    check_classes("student", config.student, len(shared.classes), config.task)
    if shared.train_data is not None:
        check_labels(config, shared.labelling.splits, shared.labelling.labelled)
    fields = {field.name: getattr(shared, field.name) for field in dataclasses.fields(shared)}
    return JobContext(
        **fields,
        config=config,
        workdir=request.workdir,
        reporter=request.reporter,
        student_preprocessor=Preprocessor(
            "student", config.student.input, shared.size, shared.device
        ),
    )


def choose_device(accelerator: str, *, rank: int = 0) -> torch.device:
    """Return the device to work on, and set it up for repeatable or fast work.

    Of several graphics cards, each rank has its own. Raises `MachineFailed`.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise errors.MachineFailed(
            "accelerator cuda was asked for, and this machine has no CUDA device; ask for any or "
            "cpu",
            fault="no_device",
        )
    if accelerator != "cpu" and torch.cuda.is_available():
        found = torch.cuda.device_count()
        if rank >= found:
            raise errors.MachineFailed(
                f"the job needs {rank + 1} CUDA devices or more, and this machine shows {found}; "
                "lower resources.devices, or start a worker where there are more",
                fault="no_device",
            )
        torch.backends.cudnn.benchmark = True
        torch.cuda.set_device(rank)
        return torch.device("cuda", rank)
    # Every CPU run must end with the same bytes; filling fresh memory would only cost time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    return torch.device("cpu")


def on_device(
    split: dataset.ImageSplit,
    device: torch.device,
    predicted: Tensor | None = None,
    references: LabelledImages | None = None,
) -> LabelledImages:
    """Return a split as tensors on the device; the CPU reads it from its mapped file.

    `predicted` is what a table of predictions says of its images, [N, C].
    """
    return LabelledImages(split.images.to(device), split.labels.to(device), predicted, references)


def check_task(of_dataset: Task, wanted: Task) -> None:
    """Raise `BadRecipe` unless a data set is for the task of the recipe."""
    errors.refuse(rules.of_dataset_task(of_dataset, wanted), task=wanted, dataset_task=of_dataset)


def check_config(config: JobConfig, *, has_dataset: bool) -> None:
    """Raise `BadRecipe` for what a config contradicts, before anything that it names is read."""
    method, params = catalog.find(config.method)
    description, training = method.describe(), config.training.model_dump()
    catalog.check_task(config.method, config.task)
    errors.refuse(rules.of_task_and_training(config.task, training))
    # A folder that is not there is no fault of the config: reading it says so.
    errors.refuse(
        rules.of_inputs(
            description,
            has_teacher=bool(config.all_teachers),
            has_dataset=True,
            has_initial=config.initial,
        )
    )
    catalog.check(method, config.training)
    errors.refuse(rules.of_rounds(description, params.model_dump(), training))
    errors.refuse(rules.of_weighed_labels(description, params.model_dump(), training))
    student = config.student
    errors.refuse(
        rules.of_client_networks(
            description, params.model_dump(), student.network, student.arguments
        )
    )
    if config.baseline:
        errors.refuse(
            rules.of_baseline(description, params.model_dump(), student.network, student.arguments)
        )
    errors.refuse(rules.of_precision(training, config.accelerator))
    errors.refuse(rules.of_devices(description, training, config.task, config.devices))
    given = teachers_of(config)
    errors.refuse(rules.of_several_teachers(description, [one.network for _, one in given]))
    for role, choice in (*given, ("student", config.student)):
        check_network(role, choice, config.task)
        if choice.network == teachers.PREDICTIONS:
            errors.refuse(rules.of_predictions(description, training, described(choice)))
    errors.refuse(rules.of_student_classes(config.task, config.student.classes))
    if student.network in networks.NETWORKS:
        known = networks.described(student.network, student.arguments)
        errors.refuse(rules.of_evaluated_sizes(training, known))
    errors.refuse(rules.of_sizes_without_dataset(training, has_dataset=has_dataset))
    errors.refuse(
        rules.of_original_images(description, params.model_dump(), has_dataset=has_dataset)
    )


def teachers_of(config: JobConfig) -> list[tuple[str, NetworkChoice]]:
    """Return all teachers, each with what it is called in messages."""
    found = config.all_teachers
    return [(teachers.role_of(place, len(found)), one) for place, one in enumerate(found)]


def check_classes(role: str, choice: NetworkChoice | None, classes: int, task: Task) -> None:
    """Raise `IncompatibleNetworks` unless a network tells apart the data set's classes."""
    if choice is not None:
        errors.refuse(
            rules.of_dataset_classes(role, described(choice), classes, task),
            errors.IncompatibleNetworks,
            **{f"{role}_classes": choice.classes, "dataset_classes": classes},
        )


def check_label_noise(config: JobConfig, classes: int) -> None:
    """Raise `BadRecipe` where wrong labels are wanted, and there is no second class for them."""
    errors.refuse(rules.of_label_noise(config.training.model_dump(), classes))


def check_class_weights(config: JobConfig, classes: int) -> None:
    """Raise `BadRecipe` unless there are as many weights as classes, where they are listed."""
    errors.refuse(rules.of_class_weights(config.training.model_dump(), classes))


def described(choice: NetworkChoice) -> NetworkDescription:
    """Return what a config says of a network."""
    size = choice.input
    return NetworkDescription(
        choice.network,
        classes=choice.classes or None,
        channels=size.channels,
        sides=(size.height, size.width),
        predicted=choice.arguments if choice.network == teachers.PREDICTIONS else None,
    )


def check_network(role: str, choice: NetworkChoice, task: Task) -> None:
    """Raise what is wrong with a network as far as that is known before it is built.

    Of networks of other libraries that is the task alone. Nothing is built here, not even without
    memory: torch's meta device takes seconds to load.
    """
    if role == "student":
        errors.refuse(rules.of_only_teacher(role, choice.network), errors.IncompatibleNetworks)
    sides = (choice.input.height, choice.input.width)
    if choice.network in networks.NETWORKS:
        description = networks.described(choice.network, choice.arguments)
        placed_in = dataclasses.replace(description, sides=sides)
        errors.refuse(rules.of_smallest_side(role, placed_in), errors.IncompatibleNetworks)
        with field_of(role):
            networks.check_arguments(choice.network, choice.arguments)
        errors.refuse(
            pyramids.of_arguments(role, choice.network, choice.arguments, sides),
            errors.UnknownNetwork,
        )
    elif not networks.is_foreign(choice.network):
        return  # building it says that there is none
    own_task = networks.task(choice.network)
    if not choice.classes and own_task == "classification":
        own_task = BACKBONE
    known = NetworkDescription(choice.network, task=own_task)
    refuse_other_task(role, known, task)


def build(role: str, choice: NetworkChoice, task: Task) -> Network:
    """Build a network with fresh weights.

    Raises `IncompatibleNetworks` if its images are too small for it, or if it has another task.
    """
    check_network(role, choice, task)
    network = _built(role, choice)
    refuse_other_task(role, NetworkDescription(choice.network, task=network.task), task)
    network.task = task
    return network


def _built(role: str, choice: NetworkChoice) -> Network:
    with field_of(role):
        return networks.build(
            choice.network,
            classes=choice.classes,
            channels=choice.input.channels,
            height=choice.input.height,
            width=choice.input.width,
            arguments=choice.arguments,
        )


@contextlib.contextmanager
def field_of(role: str) -> Iterator[None]:
    """Name the field of the job's spec in what is raised about a network."""
    try:
        yield
    except errors.UnknownNetwork as error:
        argument = error.details.get("argument")
        of_student = f"student/arguments/{argument}" if argument else "student/network"
        field = of_student if role == "student" else rules.field_of(role)
        raise errors.UnknownNetwork(error.message, **{**error.details, "field": field}) from error


def refuse_other_task(role: str, network: NetworkDescription, task: Task) -> None:
    """Raise `IncompatibleNetworks` for a network whose logits have not the shape of a task."""
    if network.task != TASKS[task].network_task:
        errors.refuse(
            rules.of_network_task(role, network, task),
            errors.IncompatibleNetworks,
            task=task,
            **{f"{role}_task": network.task},
        )


def load_teachers(
    config: JobConfig,
    workdir: pathlib.Path,
    device: torch.device,
    classes: Sequence[str],
    stored: Input,
) -> tuple[Network | None, Preprocessor | None]:
    """Return the teacher, or several as one, with what prepares its images; None without any."""
    choices = config.all_teachers
    if not choices:
        return None, None
    loaded = [
        load_teacher(
            choice,
            workdir / teachers.folder_of(place, len(choices)),
            device,
            config.task,
            classes,
        )
        for place, choice in enumerate(choices)
    ]
    preprocessors = [
        Preprocessor(role, choice.input, stored, device) for role, choice in teachers_of(config)
    ]
    if len(loaded) == 1:
        return loaded[0], preprocessors[0]
    weighting = config.teacher_weighting or "probabilities"
    shape = (stored.channels, stored.height, stored.width)
    joined = Ensemble(loaded, preprocessors, weighting, shape)
    return joined.eval().requires_grad_(False), PixelsAsStored()


def predictions_of(
    network: Network | None, config: JobConfig, record: dataset.DatasetRecord
) -> dict[str, Tensor]:
    """Return the predicted logits [N, C] of the splits for evaluation, where they were uploaded.

    Raises `TeacherLoad` for a table that has not a row for each image.
    """
    if not isinstance(network, PredictionsNetwork) or config.teacher is None:
        return {}
    digest = config.provenance.get("dataset_digest")
    if digest is not None:
        reference = str(config.provenance.get("dataset"))
        arguments = config.teacher.arguments
        errors.refuse(rules.of_predicted_dataset(arguments, reference, str(digest)))
    found: dict[str, Tensor] = {}
    for split, count in record.splits.items():
        table = network.table(split)
        if table is None:
            continue
        if len(table) != count:
            raise errors.TeacherLoad(
                f"the teacher predicts {len(table)} images of the {split} split, which has {count}",
                field="teacher",
            )
        found[split] = table[:, 0]
    return found


def load_teacher(
    choice: NetworkChoice,
    folder: pathlib.Path,
    device: torch.device,
    task: Task,
    classes: Sequence[str],
) -> Network:
    """Return the teacher with its weights, frozen; its logits have the order of `classes`."""
    network = build("teacher", choice, task)
    load(network, folder / teachers.file_of(choice.network), choice, errors.TeacherLoad)
    order_classes(network, choice, classes)
    network.eval().requires_grad_(False)
    return placed(network, device)


def order_classes(network: Network, choice: NetworkChoice, classes: Sequence[str]) -> None:
    """Put the logits of weights that were just loaded in the order of the data set's classes."""
    order = class_names.order(choice.class_names, classes)
    if order is not None:
        class_order.reorder(network, order)


def load(
    network: Network,
    path: pathlib.Path,
    choice: NetworkChoice,
    failure: type[errors.DistillError],
) -> None:
    """Load weights strictly, and name the network they do not fit."""
    try:
        weights.load_into(network, path)
    except (errors.KeysMismatch, errors.UploadRefused, OSError) as error:
        raise failure(
            f"the weights in {path.parent.name}/{path.name} do not fit {choice.network}: {error}",
            **getattr(error, "details", {}),
        ) from error


def differs_in_classifier(config: JobConfig) -> bool:
    """Whether one of the student and its start weights is a backbone, and the other none."""
    names = config.student.class_names
    return config.initial and names is not None and (not names) != (config.student.classes == 0)


def load_features(network: Network, path: pathlib.Path, choice: NetworkChoice) -> None:
    """Load all weights but those of the classifier, which may be one for other classes, or none."""
    classes = choice.classes if choice.class_names is None else len(choice.class_names)
    started = choice.model_copy(update={"classes": classes})
    trained = _built(rules.START_MODEL, started)
    load(trained, path, choice, errors.InitialLoad)
    classifier = network.pooled_classifier() or trained.pooled_classifier()
    names = {
        name
        for one in (network, trained)
        for name, part in one.named_modules()
        if part is classifier
    }
    kept = {
        key: value
        for key, value in trained.state_dict().items()
        if key.rpartition(".")[0] not in names
    }
    network.load_state_dict(kept, strict=False)


def placed(network: Network, device: torch.device) -> Network:
    """Return the network on the device, channels last."""
    if device.type == "cpu":
        pointwise.subsample(network)
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stub

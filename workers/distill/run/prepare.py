"""What stays fixed while recipes are carried out: device, data, teacher, and views of the images.

A data-free recipe has no training split, and its validation and test splits may be absent: what is
read of a data set is decided here, and nowhere else. `Ground` is what all members of a group stand
on; a `Setting` adds what one of them is asked for.
"""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils import deterministic

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.baseline import baseline_of
from workers.distill.config.descriptions import NetworkDescription
from workers.distill.config.job import Input, JobConfig, NetworkChoice, Task
from workers.distill.config.synthesis import Synthesis, resolve_budget
from workers.distill.data import dataset
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import validation
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.methods import catalog
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks import weights
from workers.distill.networks.interface import Network
from workers.distill.runtime import events, signals
from workers.distill.training import optimizers

SAMPLE_SEED = 0


@dataclass(frozen=True)
class JobRequest:
    """A recipe, where its files are, and to whom to report; `key` names a member of a group."""

    recipe: JobConfig
    workdir: pathlib.Path
    reporter: events.Reporter
    key: str | None = None


@dataclass(frozen=True)
class SharedContext:
    """What all students of a process share."""

    stop: signals.Stop
    device: torch.device
    precision: optimizers.Precision
    classes: list[str]
    size: Input
    """The images as stored, or as invented."""
    flip: bool
    source: BatchLoader | None
    """The training split; None where images are invented, and no image of it is read."""
    known_images: int | None
    """How many training images the record states, where there is one."""
    held: validation.ValidationSplit | None
    test: LabelledImages | None
    """Both None where a data-free recipe came without a data set."""
    teacher_view: Preprocessor | None
    teacher: Network | None
    """As loaded; what runs beside the student is a folded copy."""
    example: validation.TeacherScores | None

    @property
    def split_to_learn(self) -> BatchLoader:
        """Return the training split; only for those who have one."""
        if self.source is None:
            raise ValueError("a data-free recipe has no training split")
        return self.source

    def sample(self, count: int) -> UInt8[Tensor, "N c h w"]:
        """Return some images to try networks on: real ones, or made-up ones without data."""
        if self.test is not None and self.source is not None:
            return self.test.images[:count]
        shape = (count, self.size.channels, self.size.height, self.size.width)
        generator = torch.Generator().manual_seed(SAMPLE_SEED)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(self.device)


@dataclass(frozen=True)
class JobContext(SharedContext):
    """What stays fixed while one recipe is carried out."""

    recipe: JobConfig
    workdir: pathlib.Path
    reporter: events.Reporter
    student_view: Preprocessor

    @property
    def phases(self) -> list[str]:
        """Return the phases of training, in order."""
        return ["student", "baseline"] if self.trains_baseline else ["student"]

    @property
    def trains_baseline(self) -> bool:
        """Whether a baseline is wanted that is not the student itself."""
        return self.recipe.baseline and catalog.find(self.recipe.method) != catalog.find(
            self.method_of("baseline")
        )

    @property
    def budget(self) -> Synthesis | None:
        """Return how images are invented, or None where they are not."""
        _, params = catalog.find(self.recipe.method)
        if not isinstance(params, DataFreeMethod.Params):
            return None
        batch_size = self.recipe.training.batch_size
        return resolve_budget(
            params.synthesis, batch_size=batch_size, known_images=self.known_images
        )

    @property
    def steps(self) -> int:
        """Return the steps of one phase."""
        budget = self.budget
        if budget is None:
            per_epoch = self.split_to_learn.steps_per_epoch
        else:
            per_epoch = (budget.student_steps or 0) * budget.calls_per_epoch
        return self.recipe.training.steps(per_epoch)

    def mirrors(self, budget: Synthesis) -> bool:
        """Whether mirrored images mean the same: as the budget says, else as the data set does."""
        return self.flip if budget.flip is None else budget.flip

    def method_of(self, phase: str) -> dict[str, Any]:
        """Return the method of a phase: what was asked for, or its baseline."""
        budget = self.budget
        if phase == "student":
            return self.recipe.method
        _, params = catalog.find(self.recipe.method)
        complete = params.model_dump()
        if budget is not None:
            complete["synthesis"] = {**budget.model_dump(), "data_scale": None}
        return baseline_of(complete)


def prepare(
    asked: JobConfig, workdir: pathlib.Path, stop: signals.Stop, *, strong: bool
) -> SharedContext:
    """Choose the device, read the data set, load the teacher, and check that they fit.

    Of the recipe it reads what all members of a group agree in. `strong` asks for a second view.
    """
    if issubclass(catalog.find(asked.method)[0], DataFreeMethod):
        return prepare_without_data(asked, workdir, stop)
    device = choose_device(asked.accelerator)
    found = dataset.load(workdir / "dataset")
    size = found.record.input
    train, held_out, test = (found.split(name) for name in dataset.SPLITS)
    check_task(found.record.task, asked.task)
    classes = list(found.record.classes)
    check_classes("teacher", asked.teacher, len(classes))
    if len(train.labels) < 2:
        raise errors.BadDataset(
            f"the train split holds {len(train.labels)} images; at least 2 are needed to learn"
        )
    teacher_view = (
        Preprocessor("teacher", asked.teacher.input, size, device) if asked.teacher else None
    )
    network = load_teacher(asked.teacher, workdir, device, asked.task) if asked.teacher else None
    precision = optimizers.choose_precision(asked.training, device)
    held = validation.ValidationSplit(on_device(held_out, device), precision, stop.check)
    example = None
    if network is not None and teacher_view is not None:
        example = validation.TeacherScores(held, network, teacher_view)
    return SharedContext(
        stop=stop,
        device=device,
        precision=precision,
        classes=classes,
        size=size,
        flip=found.record.flip,
        known_images=len(train.labels),
        source=BatchLoader(
            train.images,
            train.labels,
            training=asked.training,
            classes=len(classes),
            flip=found.record.flip,
            strong=strong,
            device=device,
        ),
        held=held,
        test=on_device(test, device),
        teacher_view=teacher_view,
        teacher=network,
        example=example,
    )


def prepare_without_data(
    asked: JobConfig, workdir: pathlib.Path, stop: signals.Stop
) -> SharedContext:
    """Choose the device and load the teacher; of a data set, read what is only evaluated on.

    Images have the size, the channels and the normalisation that the teacher's record states.
    """
    check_teacher(asked)
    if asked.teacher is None:
        raise ValueError("the config names no teacher")
    device = choose_device(asked.accelerator)
    size = asked.teacher.input
    precision = optimizers.choose_precision(asked.training, device)
    network = load_teacher(asked.teacher, workdir, device, asked.task)
    teacher_view = Preprocessor("teacher", asked.teacher.input, size, device)
    classes = asked.class_names or [str(label) for label in range(asked.teacher.classes)]
    held = test = example = record = None
    if (workdir / "dataset").is_dir():
        found = dataset.load(workdir / "dataset")
        record = found.record
        check_task(record.task, asked.task)
        classes = list(record.classes)
        for role, choice in (("teacher", asked.teacher), ("student", asked.student)):
            # Refuses channels that cannot be adapted.
            Preprocessor(role, choice.input, record.input, device)
        held = validation.ValidationSplit(
            on_device(found.split("validation"), device), precision, stop.check
        )
        test = on_device(found.split("test"), device)
        example = validation.TeacherScores(held, network, teacher_view)
    check_classes("teacher", asked.teacher, len(classes))
    return SharedContext(
        stop=stop,
        device=device,
        precision=precision,
        classes=classes,
        size=size,
        flip=record is not None and record.flip,
        source=None,
        known_images=None if record is None else record.splits["train"],
        held=held,
        test=test,
        teacher_view=teacher_view,
        teacher=network,
        example=example,
    )


def settle(ground: SharedContext, asked: JobRequest) -> JobContext:
    """Return the setting of one recipe on the ground it shares, and check that it fits there."""
    check_config(asked.recipe, classes=len(ground.classes), known_images=ground.known_images)
    check_classes("student", asked.recipe.student, len(ground.classes))
    shared = {field.name: getattr(ground, field.name) for field in dataclasses.fields(ground)}
    return JobContext(
        **shared,
        recipe=asked.recipe,
        workdir=asked.workdir,
        reporter=asked.reporter,
        student_view=Preprocessor(
            "student", asked.recipe.student.input, ground.size, ground.device
        ),
    )


def choose_device(accelerator: str) -> torch.device:
    """Return the device to work on, and set it up for repeatable or fast work."""
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise errors.BadRecipe(
            "accelerator cuda was asked for, and this machine has no CUDA device; ask for any or "
            "cpu"
        )
    if accelerator != "cpu" and torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda", 0)
    # Every CPU run must end with the same bytes; filling fresh memory would only cost time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    return torch.device("cpu")


def on_device(split: dataset.Split, device: torch.device) -> LabelledImages:
    """Return a split as tensors on the device."""
    images = split.images.to(device).contiguous(memory_format=torch.channels_last)
    return LabelledImages(images, split.labels.to(device))


def check_task(of_dataset: Task, asked: Task) -> None:
    """Raise `BadRecipe` unless a data set is for the task of the recipe."""
    errors.refuse(rules.of_dataset_task(of_dataset, asked), task=asked, dataset_task=of_dataset)


def check_teacher(config: JobConfig) -> None:
    """Raise `BadRecipe` where a method needs a teacher and the config names none."""
    method, _ = catalog.find(config.method)
    errors.refuse(
        rules.of_inputs(method.describe(), has_teacher=config.teacher is not None, has_dataset=True)
    )


def check_classes(role: str, choice: NetworkChoice | None, classes: int) -> None:
    """Raise `IncompatibleNetworks` unless a network tells apart the data set's classes."""
    if choice is not None:
        errors.refuse(
            rules.of_dataset_classes(role, described(choice), classes),
            errors.IncompatibleNetworks,
            **{f"{role}_classes": choice.classes, "dataset_classes": classes},
        )


def check_config(config: JobConfig, *, classes: int, known_images: int | None) -> None:
    """Raise `BadRecipe` for what a config contradicts, alone and with the data at hand."""
    method, params = catalog.find(config.method)
    description, training = method.describe(), config.training.model_dump()
    catalog.check(method, config.training)
    errors.refuse(rules.of_label_noise(training, classes))
    errors.refuse(rules.of_precision(training, config.accelerator))
    errors.refuse(
        rules.of_original_images(
            description, params.model_dump(), has_dataset=known_images is not None
        )
    )


def described(choice: NetworkChoice) -> NetworkDescription:
    """Return what a config says of a network."""
    size = choice.input
    return NetworkDescription(
        choice.network,
        classes=choice.classes,
        channels=size.channels,
        sides=(size.height, size.width),
    )


def build(role: str, choice: NetworkChoice, task: Task) -> Network:
    """Build a network with fresh weights.

    Raises `IncompatibleNetworks` if its images are too small for it, or if it has another task.
    """
    size = choice.input
    known = dataclasses.replace(
        networks.described(choice.network, choice.arguments), sides=(size.height, size.width)
    )
    errors.refuse(rules.of_smallest_side(role, known), errors.IncompatibleNetworks)
    network = networks.build(
        choice.network,
        classes=choice.classes,
        channels=choice.input.channels,
        height=size.height,
        width=size.width,
        arguments=choice.arguments,
    )
    errors.refuse(
        rules.of_network_task(role, NetworkDescription(choice.network, task=network.task), task),
        errors.IncompatibleNetworks,
        task=task,
        **{f"{role}_task": network.task},
    )
    return network


def load_teacher(
    choice: NetworkChoice, workdir: pathlib.Path, device: torch.device, task: Task
) -> Network:
    """Return the teacher with its weights, frozen."""
    network = build("teacher", choice, task)
    load(network, workdir / "teacher" / "model.safetensors", choice, errors.TeacherLoad)
    network.eval().requires_grad_(False)
    return placed(network, device)


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


def placed(network: Network, device: torch.device) -> Network:
    """Return the network on the device, channels last."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stub

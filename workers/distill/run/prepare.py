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
from workers.distill.tasks.base import BaseTask
from workers.distill.tasks.catalog import TASKS
from workers.distill.training import optimizers

BASELINE: dict[str, Any] = {"name": "ce", "task_weight": 1.0}
NOISE = "noise"
"""The method of the baseline where there are no labels: images that show nothing."""
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
    task: BaseTask
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
        """Return the method of a phase: what was asked for, or the baseline.

        The baseline learns from the labels alone; without data, from the teacher on noise, with
        as many steps and, where the method has one, at the same temperature.
        """
        budget = self.budget
        if phase == "student":
            return self.recipe.method
        if budget is None:
            return BASELINE
        _, params = catalog.find(self.recipe.method)
        temperature = getattr(params, "temperature", None)
        steps = {
            "student_steps": budget.student_steps,
            "calls_per_epoch": budget.calls_per_epoch,
        }
        same = {} if temperature is None else {"temperature": temperature}
        return {"name": NOISE, **same, "synthesis": steps}


def prepare(
    asked: JobConfig, workdir: pathlib.Path, stop: signals.Stop, *, strong: bool
) -> SharedContext:
    """Choose the device, read the data set, load the teacher, and check that they fit.

    Of the recipe it reads what all members of a group agree in. `strong` asks for a second view.
    """
    if issubclass(catalog.find(asked.method)[0], DataFreeMethod):
        return prepare_without_data(asked, workdir, stop)
    device, task = choose_device(asked.accelerator), TASKS[asked.task]
    found = dataset.load(workdir / "dataset")
    size = found.record.input
    check_task(found.record.task, asked.task)
    train, held_out, test = (task.read_split(found, name) for name in dataset.SPLITS)
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
    held = validation.ValidationSplit(
        on_device(held_out, device), task, len(classes), precision, stop.check
    )
    example = None
    if network is not None and teacher_view is not None:
        example = validation.TeacherScores(held, network, teacher_view)
    return SharedContext(
        stop=stop,
        task=task,
        device=device,
        precision=precision,
        classes=classes,
        size=size,
        flip=found.record.flip,
        known_images=len(train.labels),
        source=BatchLoader(
            train.images,
            task.add_label_noise(
                train.labels,
                asked.training.label_noise,
                classes=len(classes),
                seed=asked.training.seed,
            ),
            training=asked.training,
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
    if asked.teacher is None:
        raise errors.BadRecipe("a data-free method needs a teacher, and the recipe has none")
    device, task = choose_device(asked.accelerator), TASKS[asked.task]
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
            on_device(task.read_split(found, "validation"), device),
            task,
            len(classes),
            precision,
            stop.check,
        )
        test = on_device(task.read_split(found, "test"), device)
        example = validation.TeacherScores(held, network, teacher_view)
    check_classes("teacher", asked.teacher, len(classes))
    return SharedContext(
        stop=stop,
        task=task,
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
    method, _ = catalog.find(asked.recipe.method)
    catalog.check(method, asked.recipe.training)
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
    if of_dataset != asked:
        raise errors.BadRecipe(
            f"task: the recipe asks for {asked}, and the data set is for {of_dataset}; name that "
            "task, or another data set",
            task=asked,
            dataset_task=of_dataset,
        )


def check_classes(role: str, choice: NetworkChoice | None, classes: int) -> None:
    """Raise `IncompatibleNetworks` unless a network tells apart the data set's classes."""
    if choice is not None and choice.classes != classes:
        raise errors.IncompatibleNetworks(
            f"the {role} {choice.network} has {choice.classes} classes and the data set has "
            f"{classes}; choose a {role} made for this data set",
            **{f"{role}_classes": choice.classes, "dataset_classes": classes},
        )


def build(role: str, choice: NetworkChoice, task: Task) -> Network:
    """Build a network with fresh weights; raises `IncompatibleNetworks` if it has another task."""
    network = networks.build(
        choice.network,
        classes=choice.classes,
        channels=choice.input.channels,
        height=choice.input.height,
        width=choice.input.width,
        arguments=choice.arguments,
    )
    if not TASKS[task].accepts(network):
        raise errors.IncompatibleNetworks(
            f"the {role} {choice.network} is for {network.task}, and the recipe's task is {task}; "
            f"choose a {role} for {task}",
            task=task,
            **{f"{role}_task": network.task},
        )
    network.task = task
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

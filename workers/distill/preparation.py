"""What stays fixed while recipes are carried out: device, data, teacher, and views of the images.

`Ground` is what all members of a group stand on; a `Setting` adds what one of them is asked for.
"""

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import deterministic

from workers.distill import (
    catalog,
    errors,
    optimizers,
    recipe,
    report,
    stopping,
    validation,
    weights,
)
from workers.distill.data import batches, stored
from workers.distill.evaluate import Labelled
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network

BASELINE: dict[str, Any] = {"name": "ce", "task_weight": 1.0}


@dataclass(frozen=True)
class Asked:
    """A recipe, where its files are, and to whom to report; `key` names a member of a group."""

    recipe: recipe.Recipe
    workdir: pathlib.Path
    reporter: report.Reporter
    key: str | None = None


@dataclass(frozen=True)
class Ground:
    """What all students of a process share."""

    stop: stopping.Stop
    device: torch.device
    precision: optimizers.Precision
    classes: list[str]
    size: recipe.Input
    """The images as stored."""
    source: batches.Batches
    held: validation.Split
    test: Labelled
    teacher_view: batches.View | None
    teacher: Network | None
    """As loaded; what runs beside the student is a folded copy."""
    example: validation.Example | None


@dataclass(frozen=True)
class Setting(Ground):
    """What stays fixed while one recipe is carried out."""

    recipe: recipe.Recipe
    workdir: pathlib.Path
    reporter: report.Reporter
    student_view: batches.View

    @property
    def phases(self) -> list[str]:
        """Return the phases of training, in order."""
        return ["student", "baseline"] if self.trains_baseline else ["student"]

    @property
    def trains_baseline(self) -> bool:
        """Whether a baseline is wanted that is not the student itself."""
        return self.recipe.baseline and catalog.find(self.recipe.method) != catalog.find(BASELINE)

    @property
    def steps(self) -> int:
        """Return the steps of one phase."""
        return self.recipe.training.steps(self.source.steps_per_epoch)


def prepare(
    asked: recipe.Recipe, workdir: pathlib.Path, stop: stopping.Stop, *, strong: bool
) -> Ground:
    """Choose the device, read the data set, load the teacher, and check that they fit.

    Of the recipe it reads what all members of a group agree in. `strong` asks for a second view.
    """
    device = choose_device(asked.accelerator)
    found = stored.load(workdir / "dataset")
    size = found.record.input
    train, held_out, test = (found.split(name) for name in stored.SPLITS)
    classes = list(found.record.classes)
    check_classes("teacher", asked.teacher, len(classes))
    if len(train.labels) < 2:
        raise errors.BadDataset(
            f"the train split holds {len(train.labels)} images; at least 2 are needed to learn"
        )
    teacher_view = (
        batches.View("teacher", asked.teacher.input, size, device) if asked.teacher else None
    )
    network = load_teacher(asked.teacher, workdir, device) if asked.teacher else None
    precision = optimizers.choose_precision(asked.training, device)
    held = validation.Split(on_device(held_out, device), precision, stop.check)
    example = None
    if network is not None and teacher_view is not None:
        example = validation.Example(held, network, teacher_view)
    return Ground(
        stop=stop,
        device=device,
        precision=precision,
        classes=classes,
        size=size,
        source=batches.Batches(
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


def settle(ground: Ground, asked: Asked) -> Setting:
    """Return the setting of one recipe on the ground it shares, and check that it fits there."""
    method, _ = catalog.find(asked.recipe.method)
    catalog.check(method, asked.recipe.training)
    check_classes("student", asked.recipe.student, len(ground.classes))
    shared = {field.name: getattr(ground, field.name) for field in dataclasses.fields(ground)}
    return Setting(
        **shared,
        recipe=asked.recipe,
        workdir=asked.workdir,
        reporter=asked.reporter,
        student_view=batches.View(
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


def on_device(split: stored.Split, device: torch.device) -> Labelled:
    """Return a split as tensors on the device."""
    images = split.images.to(device).contiguous(memory_format=torch.channels_last)
    return Labelled(images, split.labels.to(device))


def check_classes(role: str, choice: recipe.NetworkChoice | None, classes: int) -> None:
    """Raise `IncompatibleNetworks` unless a network tells apart the data set's classes."""
    if choice is not None and choice.classes != classes:
        raise errors.IncompatibleNetworks(
            f"the {role} {choice.network} has {choice.classes} classes and the data set has "
            f"{classes}; choose a {role} made for this data set",
            **{f"{role}_classes": choice.classes, "dataset_classes": classes},
        )


def build(choice: recipe.NetworkChoice) -> Network:
    """Build a network with fresh weights."""
    return networks.build(
        choice.network,
        classes=choice.classes,
        channels=choice.input.channels,
        height=choice.input.height,
        width=choice.input.width,
        arguments=choice.arguments,
    )


def load_teacher(
    choice: recipe.NetworkChoice, workdir: pathlib.Path, device: torch.device
) -> Network:
    """Return the teacher with its weights, frozen."""
    network = build(choice)
    load(network, workdir / "teacher" / "model.safetensors", choice, errors.TeacherLoad)
    network.eval().requires_grad_(False)
    return placed(network, device)


def load(
    network: Network,
    path: pathlib.Path,
    choice: recipe.NetworkChoice,
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

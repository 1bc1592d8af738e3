"""How good networks are on a split, by the metrics of its task.

Runs alone as well: `python -m workers.distill.evaluation.evaluate STUDENT --dataset digits`
rebuilds a student from its file and prints one JSON line.
"""

import argparse
import contextlib
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.job import Input
from workers.distill.data import catalog as datasets
from workers.distill.data import dataset
from workers.distill.data.lazy_images import StoredImages, resized, select, shown
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.networks import weights
from workers.distill.networks.interface import Features, Network
from workers.distill.networks.predictions import PredictionsNetwork
from workers.distill.tasks.base import BaseTask, SplitMetrics
from workers.distill.tasks.catalog import TASKS

Networks: TypeAlias = Mapping[str, tuple[Network, Preprocessor]]
"""Networks by role, each with what prepares its images."""
CPU = torch.device("cpu")
TEACHER = "teacher"
"""The role whose output agreement is measured against."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels as the task stores them, on the device, in stored order.

    On the CPU the images are those of the split's mapped file; or they are made on demand.
    """

    images: StoredImages
    labels: Shaped[Tensor, "N *T"]
    predicted: Float[Tensor, "N C"] | None = None
    """What a teacher that is a table of predictions says of these images."""
    references: "LabelledImages | None" = None
    """Labelled training images that the task's metrics look at first, if it has such metrics."""
    rows: Int[Tensor, " N"] | None = None
    """Which of `images` these are; None: all, in their order."""

    def every_image(self) -> UInt8[Tensor, "N c h w"]:
        """Return all images, channels last; where they are made on demand, in memory."""
        return self.some_images(slice(None))

    def some_images(self, rows: slice | Int[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return some of the images, channels last."""
        return self.images[rows].contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one network on a split, and the pooled features that were asked for."""

    metrics: SplitMetrics
    pooled: Float[Tensor, "K D"]


def evaluate_split(
    task: BaseTask,
    networks: Networks,
    split: LabelledImages,
    *,
    classes: int,
    feature_rows: Int[Tensor, " K"] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Evaluation]:
    """Show all networks the same batches, in evaluation mode, and return what each one scores.

    `feature_rows` are the images, in rising order, whose pooled features are kept; without them
    the features are not computed. A large split would not fit, so no other features are kept.
    `on_batch` runs before each batch.
    """
    images, labels = split.images, split.labels
    batch_size = batch_size_for(task, networks, split, classes)
    metrics = {role: task.metrics(classes, images.device) for role in networks}
    pooled: dict[str, list[Tensor]] = {role: [] for role in networks}
    with inference(networks):
        if split.references is not None:
            _add_references(metrics, networks, split.references, batch_size, on_batch)
        for first in range(0, len(images), batch_size):
            on_batch()
            rows = slice(first, first + batch_size)
            batch = split.some_images(rows)
            outputs: dict[str, Features] = {}
            for role, (network, preprocessor) in networks.items():
                if isinstance(network, PredictionsNetwork):
                    outputs[role] = Features.from_logits(_predicted(split, rows))
                    continue
                inputs = preprocessor(batch)
                if feature_rows is None and task.uses_logits_only:
                    outputs[role] = Features.from_logits(network(inputs))
                    continue
                outputs[role] = network.observe(inputs)
                if feature_rows is not None:
                    pooled[role].append(_kept(outputs[role].pooled, feature_rows, first))
            for role, output in outputs.items():
                reference = None if role == TEACHER else outputs.get(TEACHER)
                metrics[role].update(output, labels[rows], reference)
    return {
        role: Evaluation(
            metrics[role], torch.cat(pooled[role]) if pooled[role] else torch.empty(0, 0)
        )
        for role in networks
    }


def _add_references(
    metrics: Mapping[str, SplitMetrics],
    networks: Networks,
    references: LabelledImages,
    batch_size: int,
    on_batch: Callable[[], None],
) -> None:
    labels = references.labels
    for first in range(0, len(labels), batch_size):
        on_batch()
        rows = slice(first, first + batch_size)
        chosen = rows if references.rows is None else references.rows[rows]
        batch = references.some_images(chosen).to(labels.device)
        for role, (network, preprocessor) in networks.items():
            output = network.observe(preprocessor(batch))
            metrics[role].add_references(output, labels[rows])


def _predicted(split: LabelledImages, rows: slice) -> Float[Tensor, "n C"]:
    if split.predicted is None:
        raise ValueError("the teacher's predictions do not cover this split")
    return split.predicted[rows]


@contextlib.contextmanager
def inference(networks: Networks) -> Iterator[None]:
    """Put networks into evaluation mode without gradients, and back into their modes."""
    was_training = {role: network.training for role, (network, _) in networks.items()}
    try:
        for network, _ in networks.values():
            network.eval()
        with torch.inference_mode():
            yield
    finally:
        for role, (network, _) in networks.items():
            network.train(was_training[role])


def batch_size_for(task: BaseTask, networks: Networks, split: LabelledImages, classes: int) -> int:
    """Return how many images of a split the networks may see at a time."""
    sizes = [math.prod(split.images.shape[2:])]
    sizes += [math.prod(network.image_shape[1:]) for network, _ in networks.values()]
    return task.evaluation_batch_size(classes, max(sizes))


def check_side(network: Network, preprocessor: Preprocessor, images: Tensor, side: int) -> None:
    """Raise `IncompatibleNetworks` where a network takes no square images of `side` pixels.

    Tried on some images, since of networks of other libraries it is not known otherwise.
    """
    try:
        preprocessor = preprocessor.at_size(side, side)
        with inference({"student": (network, preprocessor)}):
            network(preprocessor(images))
    except torch.OutOfMemoryError:
        raise  # nothing that the network is to blame for
    except (RuntimeError, ValueError, AssertionError) as error:
        raise errors.IncompatibleNetworks(
            f"{rules.evaluated_size(network.reference, side)} ({error})",
            field="training/evaluate_sizes",
        ) from error


def evaluate_file(
    student: pathlib.Path, folder: pathlib.Path, split: str, *, side: int | None = None
) -> dict[str, Any]:
    """Rebuild a student from its file alone, and return its scores on a split.

    `side` scores it on square images of another size than its own. Raises `IncompatibleNetworks`
    where it is for another task than the data set.
    """
    network, header = weights.rebuild(student)
    expected = Input.model_validate(header["input"])
    network.to(memory_format=torch.channels_last)
    stored = dataset.load(folder)
    # Students of old files name no task; theirs is that of their network.
    student_task = header.get("task", network.task)
    if next(rules.of_dataset_task(stored.record.task, student_task), None) is not None:
        raise errors.IncompatibleNetworks(
            f"the student {network.reference} is for {student_task}, and the data set for "
            f"{stored.record.task}",
            student_task=student_task,
            dataset_task=stored.record.task,
        )
    task = TASKS[student_task]
    preprocessor = Preprocessor("student", expected, stored.record.input, torch.device("cpu"))
    content = task.open_split(stored, split)
    known = ~task.unlabelled(content.labels)
    if not bool(known.any()):
        raise errors.BadDataset(
            f"no image of the {split} split has a label; name a split that has some with --split"
        )
    if not bool(known.all()):
        content = dataset.ImageSplit(
            select(content.images, known),
            content.labels[known],
            None if content.scales is None else content.scales[known],
        )
    # A student is scored on what its job has scored it on.
    ratio = header.get("crop_ratio")
    images = shown(content.images, ratio)
    if side is not None:
        if student_task != "classification":
            raise errors.IncompatibleNetworks(
                f"--side {side} scores classifiers alone, and the student {network.reference} is "
                f"for {student_task}; leave --side out",
                field="side",
            )
        check_side(network, preprocessor, images[:1], side)
        images = resized(images, side, side)
        preprocessor = preprocessor.at_size(side, side)
    first = references(task, stored, split, crop_ratio=ratio)
    evaluation = evaluate_split(
        task,
        {"student": (network, preprocessor)},
        LabelledImages(images, content.labels, references=first),
        classes=network.classes or len(stored.record.classes),
    )["student"]
    return {**evaluation.metrics.test_scores(), "correct": evaluation.metrics.correct}


def references(
    task: BaseTask,
    stored: dataset.StoredDataset,
    split: str,
    device: torch.device = CPU,
    *,
    crop_ratio: float | None = None,
) -> LabelledImages | None:
    """Return the labelled training images that the metrics of a split look at first, if any.

    Of more than the task asks for, as many are taken, evenly spread. They are shown as those of the
    split are, with `crop_ratio`.
    """
    most = task.reference_images.get(split, 0)
    if not most:
        return None
    train = task.open_split(stored, "train")
    rows = (~task.unlabelled(train.labels)).nonzero().flatten()
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).round().long()]
    if not len(rows):
        return None
    # The images stay where they are stored: they may be many.
    return LabelledImages(shown(train.images, crop_ratio), train.labels[rows].to(device), rows=rows)


def main(arguments: Sequence[str]) -> int:
    """Print one JSON line with the scores of a student's file."""
    parser = argparse.ArgumentParser(prog="python -m workers.distill.evaluation.evaluate")
    parser.add_argument("student", type=pathlib.Path, help="student.safetensors")
    parser.add_argument("--dataset", required=True, help="prepared folder, or a built-in name")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--side", type=int, help="of square images, instead of the student's own")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(options.dataset)
        if options.dataset in datasets.DATASETS and not folder.is_dir():
            folder = pathlib.Path(scratch)
            datasets.DATASETS[options.dataset].write(folder)
        try:
            line = evaluate_file(options.student, folder, options.split, side=options.side)
        except errors.DistillError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


def _kept(
    pooled: Float[Tensor, "n D"], rows: Int[Tensor, " K"], first: int
) -> Float[Tensor, "k D"]:
    """Return the features of those images of a batch, which begins at `first`, that are kept."""
    inside = rows[(rows >= first) & (rows < first + len(pooled))] - first
    return pooled[inside.to(pooled.device)].float()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Answers how good a network is on a split, and how sure one can be of that.

Runs alone as well: `python -m workers.distill.evaluation.evaluate STUDENT --dataset digits`
rebuilds a student from its file and prints one JSON line. Dense networks are scored by pixels,
which are counted batch by batch.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.data import catalog as datasets
from workers.distill.data import dataset
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import analysis, segmentation_metrics
from workers.distill.networks import weights
from workers.distill.networks.interface import Network

BATCH = 256
"""Images at a time; part of the result, since sums in another order round differently."""
DENSE_LOGITS = 1 << 23
"""Numbers that dense logits of one batch may have: 32 MiB."""
Z95 = 1.959963984540054


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, classes or masks, on the device, in stored order."""

    images: UInt8[Tensor, "N c h w"]
    labels: Integer[Tensor, "N *S"]


@dataclass(frozen=True)
class Predictions:
    """The logits of all images, and the pooled features of those that were asked for."""

    logits: Float[Tensor, "N C"]
    pooled: Float[Tensor, "K D"]


def predict(
    network: Network,
    view: Preprocessor,
    images: UInt8[Tensor, "N c h w"],
    *,
    between: Callable[[], None] = lambda: None,
) -> Float[Tensor, "N C"]:
    """Return the logits of all images, in evaluation mode; `between` runs before each batch."""
    return survey(network, view, images, between=between).logits


def survey(
    network: Network,
    view: Preprocessor,
    images: UInt8[Tensor, "N c h w"],
    *,
    keep: Int[Tensor, " K"] | None = None,
    between: Callable[[], None] = lambda: None,
) -> Predictions:
    """Return logits, and in the same pass the pooled features of the images in `keep`.

    `keep` holds rows of `images` in rising order. Of features only those are kept: a large split
    would not fit.
    """
    training = network.training
    network.eval()
    logits, pooled = [], []
    try:
        with torch.inference_mode():
            for first in range(0, len(images), BATCH):
                between()
                seen = view(images[first : first + BATCH])
                if keep is None:
                    logits.append(network(seen).float())
                    continue
                shown = network.observe(seen)
                here = keep[(keep >= first) & (keep < first + BATCH)] - first
                logits.append(shown.logits.float())
                pooled.append(shown.pooled[here.to(shown.pooled.device)].float())
        return Predictions(torch.cat(logits), torch.cat(pooled) if pooled else torch.empty(0, 0))
    finally:
        network.train(training)


def scores(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    teacher_logits: Float[Tensor, "N D"] | None = None,
) -> dict[str, Any]:
    """Return accuracy with its interval, calibration error, loss, and agreement with a teacher."""
    logits, labels = logits.cpu(), labels.cpu()
    samples = len(labels)
    correct = int((logits.argmax(1) == labels).sum())
    found: dict[str, Any] = {
        "accuracy": correct / samples,
        "accuracy_interval": list(wilson(correct, samples)),
        "ece": analysis.reliability(logits.numpy(), labels.numpy()).error,
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "samples": samples,
    }
    if teacher_logits is not None:
        same = teacher_logits.cpu().argmax(1) == logits.argmax(1)
        found["agreement"] = int(same.sum()) / samples
    return found


def count_pixels(
    network: Network,
    view: Preprocessor,
    images: UInt8[Tensor, "N c h w"],
    masks: Integer[Tensor, "N i j"],
    *,
    classes: int,
    teacher: tuple[Network, Preprocessor] | None = None,
    between: Callable[[], None] = lambda: None,
) -> segmentation_metrics.Counts:
    """Count what a dense network takes the pixels for, in evaluation mode.

    A teacher sees the same batches; `between` runs before each.
    """
    asked = [(network, view)] if teacher is None else [(network, view), teacher]
    was_training = [one.training for one, _ in asked]
    counts = segmentation_metrics.Counts(classes, images.device)
    largest = max(math.prod(one.image_shape[1:]) for one, _ in asked)
    batch = DENSE_LOGITS // (classes * max(largest, masks[0].numel()))
    batch = max(1, min(batch, BATCH))
    try:
        for one, _ in asked:
            one.eval()
        with torch.inference_mode():
            for first in range(0, len(images), batch):
                between()
                here = slice(first, first + batch)
                found = [one(sees(images[here])) for one, sees in asked]
                counts.add(found[0], masks[here], *found[1:])
    finally:
        for (one, _), training in zip(asked, was_training, strict=True):
            one.train(training)
    return counts


def dense_scores(
    network: Network,
    view: Preprocessor,
    images: UInt8[Tensor, "N c h w"],
    masks: Integer[Tensor, "N i j"],
    *,
    classes: int,
    teacher: tuple[Network, Preprocessor] | None = None,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return pixel accuracy, IoU by class, their mean, and agreement with a teacher.

    Pixels of `stored.IGNORED` count nowhere. `iou` has None for a class that neither the masks nor
    the answers have; it is left out of `miou`.
    """
    counts = count_pixels(
        network, view, images, masks, classes=classes, teacher=teacher, between=between
    )
    return pixel_scores(counts, samples=len(images))


def pixel_scores(counts: segmentation_metrics.Counts, *, samples: int) -> dict[str, Any]:
    """Return what counts of the pixels of so many images amount to."""
    confusion = counts.confusion
    found: dict[str, Any] = {
        "accuracy": segmentation_metrics.accuracy(confusion),
        "miou": segmentation_metrics.miou(confusion),
        "iou": segmentation_metrics.iou(confusion),
        "samples": samples,
        "pixels": int(confusion.sum()),
    }
    if counts.agreement is not None:
        found["agreement"] = counts.agreement
    return found


def wilson(correct: int, samples: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share."""
    share = correct / samples
    spread = Z95**2 / samples
    middle = share + spread / 2
    half = Z95 * math.sqrt(share * (1 - share) / samples + spread / (4 * samples))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    # Rounding may leave a share of 0 or 1 just outside its own interval.
    return max(min(low, share), 0.0), min(max(high, share), 1.0)


def score_file(student: pathlib.Path, folder: pathlib.Path, split: str) -> dict[str, Any]:
    """Rebuild a student from its file alone and count what it gets right on a split.

    Raises `IncompatibleNetworks` where it is for another task than the data set.
    """
    network, header = weights.rebuild(student)
    expected = Input.model_validate(header["input"])
    network.to(memory_format=torch.channels_last)
    found = dataset.load(folder)
    if network.task != found.record.task:
        raise errors.IncompatibleNetworks(
            f"the student {network.reference} is for {network.task}, and the data set for "
            f"{found.record.task}",
            student_task=network.task,
            dataset_task=found.record.task,
        )
    view = Preprocessor("student", expected, found.record.input, torch.device("cpu"))
    held = found.split(split)
    if found.record.task == "segmentation":
        return dense_scores(network, view, held.images, held.labels, classes=network.classes)
    correct = int((predict(network, view, held.images).argmax(1) == held.labels).sum())
    samples = len(held.labels)
    return {"accuracy": correct / samples, "correct": correct, "samples": samples}


def main(arguments: Sequence[str]) -> int:
    """Print one JSON line with what a student's file gets right."""
    parser = argparse.ArgumentParser(prog="python -m workers.distill.evaluation.evaluate")
    parser.add_argument("student", type=pathlib.Path, help="student.safetensors")
    parser.add_argument("--dataset", required=True, help="prepared folder, or a built-in name")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(asked.dataset)
        if asked.dataset in datasets.DATASETS and not folder.is_dir():
            folder = pathlib.Path(scratch)
            datasets.DATASETS[asked.dataset].write(folder)
        line = score_file(asked.student, folder, asked.split)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

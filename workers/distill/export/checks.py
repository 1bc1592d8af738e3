"""Compare an export with the network it was made of: outputs, decisions, the deciding metric."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.export import boxes, graph
from workers.distill.networks.interface import Features
from workers.distill.runtime import device
from workers.distill.tasks.base import BaseTask, SplitMetrics

Run: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]
"""Runs an export on a batch, as `ExportedGraph.forward` runs the original."""

MOST_IMAGES = 10_000
MOST_SECONDS = 900.0
"""Of a comparison, by the time that one image takes: the process has an hour for everything."""
NOISE_IMAGES = 64
BATCH = 64
UNITS = {"classification": "images", "segmentation": "pixels", "detection": "locations"}
"""What has a decision of its own, by task."""


@dataclass(frozen=True)
class CheckImages:
    """Images that an export is compared on, with labels where there are any."""

    images: UInt8[Tensor, "N c h w"]
    labels: Shaped[Tensor, "N *T"] | None
    stored: Input
    """Shape of the images; they are brought to the network's as in the evaluation."""
    classes: int


class Inputs:
    """Turns stored images into what a graph takes."""

    def __init__(self, module: graph.ExportedGraph, expected: Input, stored: Input) -> None:
        self._pixels = module.takes_pixels
        if self._pixels:  # a normalisation that changes nothing of 0..255
            count = expected.channels
            plain = {"mean": [0.0] * count, "std": [1 / 255] * count}
            expected = expected.model_copy(update=plain)
        self._preprocessor = Preprocessor("model", expected, stored, torch.device("cpu"))

    def __call__(self, images: UInt8[Tensor, "N c h w"]) -> Shaped[Tensor, "N C H W"]:
        """Return a batch in the graph's own type."""
        inputs = self._preprocessor(images).contiguous()
        return inputs.round().clamp(0, 255).to(torch.uint8) if self._pixels else inputs


def noise(expected: Input, classes: int) -> CheckImages:
    """Return images to compare on where no data set is known."""
    shape = (NOISE_IMAGES, expected.channels, expected.height, expected.width)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return CheckImages(images, None, expected, classes)


def some(count: int, most: int) -> Tensor:
    """Return up to `most` of so many places, at equal distances."""
    if count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most).long()


@torch.inference_mode()
def compare(
    task: BaseTask,
    module: graph.ExportedGraph,
    run: Run,
    inputs: Inputs,
    given: CheckImages,
) -> dict[str, Any]:  # Any: JSON
    """Return `checks` of an export: differences, equal decisions, the metric of both."""
    steps = graph.post_processing(module.network)
    metrics = [task.metrics(given.classes, torch.device("cpu")) for _ in range(2)]
    largest, equal, decided = [0.0] * len(module.output_names), 0, 0
    for rows in _batches(task, module, given):
        images = inputs(given.images[rows])
        originals, original = _original(module, images, steps)
        exported = run(images)
        for place, (one, other) in enumerate(zip(originals, exported, strict=True)):
            if not bool(torch.isfinite(other).all()):
                raise errors.NotExportable(
                    f"the export's {module.output_names[place]} are not finite for some images: "
                    "its precision is too small for this network; choose another"
                )
            largest[place] = max(largest[place], float((one - other).abs().max()))
        same = _decisions(originals[0], steps) == _decisions(exported[0], steps)
        equal, decided = equal + int(same.sum()), decided + same.numel()
        if given.labels is not None:
            labels = given.labels[rows]
            metrics[0].update(original, labels)
            metrics[1].update(_features(exported, steps, module.shape), labels)
    found: dict[str, Any] = {
        "images": len(given.images),
        "largest_logit_difference": largest[0],
        **({"largest_box_difference": largest[1]} if steps else {}),
        "decisions_equal": equal,
        "decisions": decided,
        "decisions_of": UNITS[task.name],
        "metric": task.primary_metric,
        "accuracy": None,
        "original_accuracy": None,
        "drop": None,
    }
    if given.labels is not None:
        before, after = (_score(task, one) for one in metrics)
        found |= {"accuracy": after, "original_accuracy": before, "drop": before - after}
    return found


def latency(run: Run, image: Tensor) -> dict[str, Any]:  # Any: JSON
    """Return the median time of one image in milliseconds, on all threads of this processor."""

    def forward() -> None:
        run(image)

    seconds = device.call_seconds(forward, torch.device("cpu"), device.MEASURE_SECONDS)
    threads = torch.get_num_threads()
    measured = device.timing(seconds, threads)
    return {"ms": measured.p50_ms, "device": "cpu", "batch": 1, "threads": threads}


def _batches(task: BaseTask, module: graph.ExportedGraph, given: CheckImages) -> Iterator[slice]:
    positions = max(module.shape[1] * module.shape[2], given.stored.height * given.stored.width)
    size = min(BATCH, task.evaluation_batch_size(given.classes, positions))
    for start in range(0, len(given.images), size):
        yield slice(start, start + size)


def _original(
    module: graph.ExportedGraph, images: Tensor, steps: Mapping[str, Any] | None
) -> tuple[tuple[Tensor, ...], Features]:
    """Return the original's outputs, and what its metric looks at."""
    if steps is None:
        outputs = module(images)
        return outputs, Features.from_logits(outputs[0])
    features = module.network.observe(module.normalised(images))
    return module.located(features), features


def _decisions(output: Tensor, steps: Mapping[str, Any] | None) -> Tensor:
    """Return the class of each image or pixel; of a detector, of each location."""
    return output.argmax(1 if steps is None else 2)


def _features(
    outputs: Sequence[Tensor], steps: Mapping[str, Any] | None, shape: tuple[int, int, int]
) -> Features:
    if steps is None:
        return Features.from_logits(outputs[0])
    found = tuple(
        boxes.choose(scores, corners, steps)
        for scores, corners in zip(outputs[0], outputs[1], strict=True)
    )
    chosen = boxes.ChosenDetections((shape[1], shape[2]), found)
    empty = outputs[0].new_empty(len(outputs[0]), 0)
    return Features(logits=outputs[0].transpose(1, 2), pooled=empty, detector=chosen)


def _score(task: BaseTask, metrics: SplitMetrics) -> float:
    return float(metrics.validation_scores()[task.primary_metric])

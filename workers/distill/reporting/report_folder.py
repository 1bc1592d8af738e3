"""Writes the folder that explains a finished run: numbers as JSON, each picture as PNG and SVG.

`index.json` lists what there is and how to read it. The same run gives the same files, but for
t-SNE, which another kind of processor rounds differently, and for times. Without a test split
there is what happened in training alone; with one, the topics that the task names follow.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from workers.distill.evaluation import embedding as projection
from workers.distill.evaluation.examples import Examples
from workers.distill.functional import calibration as calibration_bins
from workers.distill.functional import detection_metrics, segmentation_metrics, similarity
from workers.distill.reporting import (
    detection_report,
    examples_report,
    federation_report,
    figures,
    synthesis_report,
)
from workers.distill.runtime import events
from workers.distill.tasks.base import ReportTopic

FOLDER = "report"
MOST_CLASSES_DRAWN = 1000
MOST_CLASSES_IN_MATRICES = 200
LARGEST = 20
DIGITS = 6


@dataclass(frozen=True)
class Outputs:
    """What one network showed of the test split; features of the images to map alone.

    Of a task that keeps no logits they are empty, [0, 0].
    """

    logits: Float[np.ndarray, "N C"]
    pooled: Float[np.ndarray, "K D"]


@dataclass(frozen=True)
class Evidence:
    """Everything a report is made from; networks in the order in which they are shown.

    What a task or a job does not have is empty: without a test split everything about it, without
    one class for each image `labels` and `mapped`, where logits are not kept `outputs`.
    """

    topics: Sequence[ReportTopic]
    """What the task wants to be shown of the test split."""
    unit: str
    """What a confusion matrix counts: `images`, `pixels`."""
    primary_metric: str
    classes: list[str]
    networks: Sequence[str]
    """Those that were evaluated on the test split."""
    test_images: int
    labels: Int[np.ndarray, " N"]
    mapped: Int[np.ndarray, " K"]
    outputs: Mapping[str, Outputs]
    confusions: Mapping[str, Int[np.ndarray, "C C"]]
    """Of each network, counts by true class (row) and predicted class (column)."""
    histories: Mapping[str, Sequence[Mapping[str, int | float]]]
    best_epochs: Mapping[str, int]
    teacher_score: float | None
    """The teacher's primary metric on the validation split."""
    synthesis: synthesis_report.SynthesisEvidence | None = None
    federation: federation_report.FederationEvidence | None = None
    detections: Mapping[str, detection_metrics.Detections] = field(default_factory=dict)
    """Of each network, true and detected boxes of all test images."""
    examples: Examples | None = None
    """Test images to show, of tasks that name this topic."""


@dataclass(frozen=True)
class Topic:
    """One question: its numbers, and pictures by file stem with a word on how to read each."""

    name: str
    numbers: dict[str, Any]  # Any: JSON
    pictures: dict[str, tuple[Figure, str]]


def write(workdir: Path, evidence: Evidence) -> list[str]:
    """Write the whole folder or nothing, and return its files, relative to the working folder."""
    folder, unfinished = workdir / FOLDER, workdir / f"{FOLDER}.tmp"
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir()
    listed = []
    for topic in topics(evidence):
        _json(unfinished / f"{topic.name}.json", {"version": 1, **topic.numbers})
        pictures = []
        for stem, (figure, about) in topic.pictures.items():
            files = [path.name for path in figures.save(figure, unfinished, stem)]
            pictures.append({"files": files, "about": about})
        listed.append({"topic": topic.name, "numbers": f"{topic.name}.json", "pictures": pictures})
    facts = {
        "version": 1,
        "classes": evidence.classes,
        "test_images": evidence.test_images,
        "networks": list(evidence.networks),
        "topics": listed,
    }
    if evidence.synthesis is not None:
        facts["training_images_read"] = evidence.synthesis.training_images_read
    _json(unfinished / "index.json", facts)
    unfinished.replace(folder)
    return [f"{FOLDER}/{path.name}" for path in sorted(folder.iterdir())]


def topics(evidence: Evidence) -> list[Topic]:
    """Return what can be shown: training, synthesis, and what the task wants of the test split."""
    entries: list[Topic | None] = [curves(evidence)]
    if evidence.synthesis is not None:
        entries.append(
            Topic(
                "synthesis",
                synthesis_report.numbers(evidence.synthesis, evidence.classes),
                synthesis_report.pictures(
                    evidence.synthesis, evidence.classes, evidence.histories["student"]
                ),
            )
        )
    if evidence.federation is not None:
        entries.append(
            Topic(
                "federation",
                federation_report.numbers(evidence.federation, evidence.classes),
                federation_report.pictures(
                    evidence.federation, evidence.classes, evidence.histories["student"]
                ),
            )
        )
    if evidence.networks:
        entries += [TOPICS[name](evidence) for name in evidence.topics]
    return [topic for topic in entries if topic is not None]


def curves(evidence: Evidence) -> Topic:
    """Return loss terms, and validation scores, epoch by epoch."""
    histories = evidence.histories
    keys = {key for history in histories.values() for entry in history for key in entry}
    pictures = {
        "losses": (
            figures.losses(histories["student"], histories.get("baseline")),
            "Mean of each weighted loss term over an epoch; the total is their sum. Terms of "
            "different methods cannot be compared.",
        )
    }
    if "train/agreement" in keys:
        pictures["agreement"] = (
            figures.agreement(histories),
            "How often the student answers as the teacher does on the images it learns from, while "
            "it still moves. New images that it does not know yet let it fall again.",
        )
    if "balance/ratio" in keys:
        pictures["balance"] = (
            figures.balance(histories["student"]),
            "Running means of the norms of two gradients on the student's parameters: how many "
            "times the task's that of the distillation terms is at their published weights, and "
            "what those terms are multiplied by (`method.balance`).",
        )
    primary = evidence.primary_metric
    for name in dict.fromkeys((primary, "accuracy")):
        if f"validation/{name}" in keys:
            pictures[name] = (
                figures.metric_curve(
                    histories,
                    name,
                    teacher=evidence.teacher_score if name == primary else None,
                    best_epochs=evidence.best_epochs,
                ),
                _about_metric(evidence, name),
            )
    if "validation/cka" in keys:
        pictures["cka"] = (
            figures.likeness(histories),
            "Unbiased linear CKA of pooled features on up to 512 validation images: 1 is alike up "
            "to rotation and scale, 0 is unrelated.",
        )
    numbers = {
        "histories": {phase: list(history) for phase, history in histories.items()},
        "best_epochs": dict(evidence.best_epochs),
        f"teacher_validation_{primary}": evidence.teacher_score,
    }
    return Topic("curves", numbers, pictures)


def confusion(evidence: Evidence) -> Topic:
    """Return which classes the images, or their pixels, are taken for."""
    counts, unit = evidence.confusions, evidence.unit
    student = counts["student"]
    right, tested = int(student.trace()), int(student.sum())
    picture = figures.confusion(
        student,
        evidence.classes,
        title=f"The student's answers: {right:,} of {tested:,} test {unit} right "
        f"({right / max(1, tested):.1%})",
        kept=_kept(student.sum(1)),
    )
    numbers = {
        "entries": f"[true class, predicted class, {unit}], where there are {unit}",
        "classes": evidence.classes,
        "networks": {
            name: [[*map(int, place), int(matrix[tuple(place)])] for place in np.argwhere(matrix)]
            for name, matrix in counts.items()
        },
        "students_most_frequent_errors": _errors(student, evidence.classes),
    }
    about = f"Each row is a true class; numbers are test {unit}, colours shares of the row."
    return Topic("confusion", numbers, {"confusion": (picture, about)})


def overlap(evidence: Evidence) -> Topic:
    """Return how well predicted and true areas of each class overlap ."""
    counted = {name: torch.from_numpy(counts) for name, counts in evidence.confusions.items()}
    overlaps = {name: segmentation_metrics.iou(counts) for name, counts in counted.items()}
    numbers = {
        "classes": evidence.classes,
        "networks": {
            name: {
                "intersection_over_union": [
                    None if value is None else round(value, DIGITS) for value in values
                ],
                "mean": round(segmentation_metrics.miou(counted[name]), DIGITS),
            }
            for name, values in overlaps.items()
        },
    }
    drawn = {name: np.array(values, dtype=np.float64) for name, values in overlaps.items()}
    picture = figures.overlap(drawn, evidence.classes)
    about = (
        "Of the pixels that have a class or are taken for it, the share that is both. Classes are "
        "sorted by the student's share; those that occur nowhere have no bar, and are left out of "
        "the mean."
    )
    return Topic("overlap", numbers, {"overlap": (picture, about)})


def calibration(evidence: Evidence) -> Topic:
    """Return how far confidence can be trusted."""
    reliabilities = {
        name: calibration_bins.reliability(outputs.logits, evidence.labels)
        for name, outputs in evidence.outputs.items()
    }
    numbers = {
        "bins": calibration_bins.CALIBRATION_BINS,
        "networks": {
            name: {
                "counts": bins.counts.tolist(),
                "confidence": _rounded(bins.confidence),
                "accuracy": _rounded(bins.accuracy),
                "expected_calibration_error": round(bins.error, DIGITS),
            }
            for name, bins in reliabilities.items()
        },
    }
    about = (
        "Test images in 15 bins by confidence, and how many fall into each. Below the diagonal a "
        "network is surer than it should be; bins of a few images are hollow. ECE is the mean gap."
    )
    return Topic(
        "calibration", numbers, {"calibration": (figures.calibration(reliabilities), about)}
    )


def correlation(evidence: Evidence) -> Topic | None:
    """Return how the correlations between classes' logits differ from the teacher's, if any."""
    if "teacher" not in evidence.outputs:
        return None
    kept = _kept(np.bincount(evidence.labels, minlength=len(evidence.classes)))
    matrices = {
        name: similarity.correlation(outputs.logits[:, kept])
        for name, outputs in evidence.outputs.items()
    }
    differences = {
        name: matrix - matrices["teacher"] for name, matrix in matrices.items() if name != "teacher"
    }
    names = [evidence.classes[place] for place in kept]
    few = len(kept) <= MOST_CLASSES_IN_MATRICES
    numbers = {
        "classes": names,
        "matrices": {n: _rounded(m) for n, m in matrices.items()} if few else None,
        "mean_size_of_difference": {
            name: round(float(np.nanmean(np.abs(matrix))), DIGITS)
            if np.isfinite(matrix).any()
            else None
            for name, matrix in differences.items()
        },
        "largest_differences": {name: _largest(m, names) for name, m in differences.items()},
    }
    about = (
        "Pearson's correlation of every two classes' logits over the test split, less the "
        "teacher's. Paler is closer to the teacher; red pairs rise together more than the "
        "teacher's do, blue pairs less."
    )
    picture = figures.correlation_difference(differences, names)
    return Topic("correlation", numbers, {"correlation": (picture, about)})


def embedding(evidence: Evidence) -> Topic | None:
    """Return the networks' pooled features in two dimensions; None of too few images, or labels.

    A teacher that gives logits alone is left out.
    """
    outputs = {name: one for name, one in evidence.outputs.items() if one.pooled.shape[1]}
    if not outputs or not all(projection.can_be_mapped(one.pooled) for one in outputs.values()):
        return None
    labels = evidence.labels[evidence.mapped]
    planes = {name: projection.pca(one.pooled) for name, one in outputs.items()}
    spots = {name: projection.tsne(one.pooled) for name, one in outputs.items()}
    mapped, every = len(np.unique(labels)), len(np.unique(evidence.labels))
    part = f", {mapped} of {every} classes" if mapped < every else ""
    what = f"of {len(labels)} test images{part}"
    axis_names = {
        name: (
            f"first component ({plane.shares[0]:.0%} of variance)",
            f"second component ({plane.shares[1]:.0%})",
        )
        for name, plane in planes.items()
    }
    pictures = {
        "tsne": (
            figures.embedding(
                spots,
                labels,
                evidence.classes,
                title=f"Pooled features {what}, by t-SNE",
                axis_names=dict.fromkeys(spots, ("", "")),
            ),
            "Images near each other have similar features. Sizes of groups and distances between "
            "far groups mean nothing, nor does the orientation.",
        ),
        "pca": (
            figures.embedding(
                {name: plane.points for name, plane in planes.items()},
                labels,
                evidence.classes,
                title=f"Pooled features {what}, by PCA",
                axis_names=axis_names,
            ),
            "The plane in which the features vary most; groups that overlap here may be apart in "
            "other directions.",
        ),
    }
    numbers = {
        "images": evidence.mapped.tolist(),
        "labels": labels.tolist(),
        "pca": {
            name: {"points": _rounded(plane.points), "shares": _rounded(np.array(plane.shares))}
            for name, plane in planes.items()
        },
        "tsne": {name: np.round(points, 3).tolist() for name, points in spots.items()},
    }
    return Topic("embedding", numbers, pictures)


def detection(evidence: Evidence) -> Topic:
    """Return how good the networks' boxes are, and what is wrong with the others."""
    assessed = {
        name: detection_report.assess(detections)
        for name, detections in evidence.detections.items()
    }
    return Topic(
        "detection",
        detection_report.numbers(assessed, evidence.classes),
        detection_report.pictures(assessed, evidence.classes),
    )


def examples(evidence: Evidence) -> Topic | None:
    """Return test images beside what the networks say of them, if any were chosen."""
    if evidence.examples is None:
        return None
    return Topic(
        "examples",
        examples_report.numbers(evidence.examples),
        examples_report.pictures(evidence.examples, evidence.classes),
    )


TOPICS: dict[ReportTopic, Callable[[Evidence], Topic | None]] = {
    "confusion": confusion,
    "overlap": overlap,
    "calibration": calibration,
    "correlation": correlation,
    "embedding": embedding,
    "detection": detection,
    "examples": examples,
}


def _about_metric(evidence: Evidence, metric: str) -> str:
    name = figures.metric_words(metric)
    chosen = figures.metric_words(evidence.primary_metric)
    about = (
        f"The epoch with the highest validation {chosen} is delivered. "
        if evidence.synthesis is None
        else "The last epoch is delivered: no image of the data set chooses between epochs. "
    )
    if any(f"train/{metric}" in entry for entry in evidence.histories["student"]):
        about += f"Train {name} is measured on augmented images while the network still moves. "
    if metric == "accuracy" and evidence.unit != "images":
        about += f"{figures.capitalized(name)} is the share of {evidence.unit}. "
    return about.strip()


def _kept(counts: Int[np.ndarray, " C"]) -> list[int]:
    """Return the classes to draw, in order: all, or those with the most test images."""
    most = np.argsort(-counts, kind="stable")[:MOST_CLASSES_DRAWN]
    return [int(place) for place in np.sort(most)]


def _largest(matrix: Float[np.ndarray, "C C"], names: list[str]) -> list[list[str | float]]:
    """Return the pairs of classes with the largest entries by size, each pair once."""
    rows, columns = np.triu_indices(len(matrix), 1)
    values = matrix[rows, columns]
    order = np.argsort(-np.nan_to_num(np.abs(values)), kind="stable")[:LARGEST]
    return [
        [names[rows[place]], names[columns[place]], round(float(values[place]), DIGITS)]
        for place in order
        if np.isfinite(values[place])
    ]


def _errors(counts: Int[np.ndarray, "C C"], names: list[str]) -> list[list[str | int]]:
    """Return true class, predicted class and images of the most frequent errors."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LARGEST]
    places = (divmod(int(place), len(names)) for place in order)
    return [
        [names[true], names[predicted], int(wrong[true, predicted])]
        for true, predicted in places
        if wrong[true, predicted]
    ]


def _rounded(values: Float[np.ndarray, "..."]) -> Any:  # Any: lists as deep as the array
    return np.round(values, DIGITS).tolist()


def _json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(events.portable(content), allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")

"""The report on synthetic images: numbers for JSON, and pictures with how to read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from workers.distill.reporting import figures, synthesis_figures
from workers.distill.reporting.figures import History
from workers.distill.synthesis import snapshots

DIGITS = 6
NAME_WIDTH = 24
BUFFER_LABELS = {
    "buffer/images": "images",
    "buffer/classes": "classes that are present",
    "buffer/class_entropy": "evenness of classes (1: even)",
    "buffer/confidence": "the teacher's mean confidence",
    "buffer/kl": "KL of student from teacher (nats)",
    "buffer/effective_share": "effective share of the draws",
}
ABOUT_SHEET = (
    "The newest images of up to 20 classes, up to 8 of each, before the student's augmentation. A "
    "row holds what the teacher takes for its class; below the name stands how many such images "
    "the buffer holds."
)
ABOUT_CLASSES = (
    "What the teacher takes the images for. Of classes that are missing, the student learns only "
    "what the teacher says of them beside others."
)
ABOUT_DIFFICULTY = (
    "1 minus the teacher's confidence, in 20 bins: on the left are images that it is sure of, on "
    "the right those that it cannot tell."
)
ABOUT_PRIORITY = (
    "Left, where the method draws by priority: the images sorted by how often they are drawn, 1 is "
    "evenly. Right: the images sorted by how far the student is from the teacher there."
)
Pictures = dict[str, tuple[Figure, str]]
"""By file stem, with a word on how to read each."""


@dataclass(frozen=True)
class SynthesisEvidence:
    """How a data-free method made its images.

    Seconds are those spent until the end of each epoch, all attempts together.
    """

    method: str
    snapshots: Sequence[snapshots.Snapshot]
    synthesis_seconds: Sequence[float]
    distillation_seconds: Sequence[float]
    images: int
    calls: int
    training_images_read: int
    """Images of a training split that anything of the job has looked at."""


def numbers(evidence: SynthesisEvidence, classes: Sequence[str]) -> dict[str, Any]:  # Any: JSON
    """Return everything that the pictures show but the images and the histories."""
    return {
        "method": evidence.method,
        "classes": list(classes),
        "training_images_read": evidence.training_images_read,
        "images_invented": evidence.images,
        "calls": evidence.calls,
        "seconds_until_the_end_of_each_epoch": {
            "synthesis": [round(value, 3) for value in evidence.synthesis_seconds],
            "distillation": [round(value, 3) for value in evidence.distillation_seconds],
        },
        "difficulty_edges": _rounded(np.linspace(0, 1, snapshots.BINS + 1)),
        "quantiles": _rounded(np.linspace(0, 1, snapshots.QUANTILES)),
        "snapshots": [_snapshot_numbers(shot) for shot in evidence.snapshots],
    }


def pictures(evidence: SynthesisEvidence, classes: Sequence[str], history: History) -> Pictures:
    """Return what there is to see; without snapshots, what the history and the clock tell."""
    drawings: Pictures = {}
    for shot in evidence.snapshots:
        drawings[stem(shot)] = (_sheet(shot, classes, evidence.method), ABOUT_SHEET)
    if evidence.snapshots:
        drawings |= _buffer_pictures(evidence.snapshots, classes)
    drawings |= _epoch_pictures(history)
    if evidence.synthesis_seconds:
        drawings["time-split"] = (
            _time_split(evidence),
            "Seconds until the end of each epoch, attempts added up; pauses, validation and the "
            "report are left out. Calls before the first epoch count for it.",
        )
    return drawings


def stem(shot: snapshots.Snapshot) -> str:
    """Return the name of a snapshot's sheet, without its ending."""
    return f"sheet-epoch-{shot.epoch:04}"


def _snapshot_numbers(shot: snapshots.Snapshot) -> dict[str, Any]:  # Any: JSON
    return {
        "epoch": shot.epoch,
        "call": shot.call,
        "images": shot.count,
        "class_counts": _rounded(shot.class_counts.numpy()),
        "difficulty": shot.difficulty.tolist(),
        "drawn_evenly": shot.is_even,
        "draws_against_even": _rounded(shot.shares.numpy()),
        "effective_share": round(shot.effective, DIGITS),
        "kl": _rounded(shot.kl.numpy()),
        "sheet": {
            "stem": stem(shot),
            "taken_for": shot.classes.tolist(),
            "meant_to_show": shot.targets.tolist(),
        },
    }


def _sheet(shot: snapshots.Snapshot, classes: Sequence[str], method: str) -> Figure:
    taken = shot.classes.numpy()
    rows = [
        (
            f"{figures.short(classes[number], NAME_WIDTH)}\n"
            f"{float(shot.class_counts[number]):,.0f} of {shot.count:,}",
            np.flatnonzero(taken == number).tolist(),
        )
        for number in np.unique(taken)
    ]
    return synthesis_figures.sheet(
        shot.images.numpy(),
        rows,
        title=f"Synthetic images of {method}, after epoch {shot.epoch}",
        about=f"The newest of {shot.count:,} in the buffer, by the class that the teacher sees",
    )


def _buffer_pictures(shots: Sequence[snapshots.Snapshot], classes: Sequence[str]) -> Pictures:
    """Return first, middle and last snapshot side by side."""
    three = [shots[place] for place in sorted({0, len(shots) // 2, len(shots) - 1})]
    names = {shot.epoch: f"after epoch {shot.epoch}" for shot in three}
    shares = {
        f"{names[shot.epoch]}: {shot.count:,} images, {int((shot.class_counts > 0).sum())} of "
        f"{len(classes)} classes": shot.class_counts.numpy() / shot.count
        for shot in three
    }
    return {
        "class-histogram": (
            synthesis_figures.class_histograms(shares, classes),
            ABOUT_CLASSES,
        ),
        "difficulty": (
            synthesis_figures.difficulties(
                {names[shot.epoch]: shot.difficulty.numpy() for shot in three}
            ),
            ABOUT_DIFFICULTY,
        ),
        "priority": (
            synthesis_figures.draws(
                {
                    f"{names[shot.epoch]} (effective share {shot.effective:.0%})": (
                        shot.shares.numpy()
                    )
                    for shot in three
                    if not shot.is_even
                },
                {names[shot.epoch]: shot.kl.numpy() for shot in three},
            ),
            ABOUT_PRIORITY,
        ),
    }


def _epoch_pictures(history: History) -> Pictures:
    """Return the losses of synthesis, and the buffer's numbers, epoch by epoch."""
    keys = {key for entry in history for key in entry}
    terms = sorted(key for key in keys if key.startswith("synthesis/"))
    terms.sort(key=lambda key: key != "synthesis/total")
    drawings: Pictures = {}
    if terms:
        drawings["synthesis-losses"] = (
            synthesis_figures.panels(
                history,
                {key: key.removeprefix("synthesis/") for key in terms},
                title="Loss of image synthesis, mean of an epoch",
            ),
            "Each weighted term of the loss that images are moved against, on a scale of its own; "
            "the total is their sum. Terms that reward something are below 0.",
        )
    labels = {key: label for key, label in BUFFER_LABELS.items() if key in keys}
    if labels:
        drawings["buffer"] = (
            synthesis_figures.panels(history, labels, title="The buffer after each epoch"),
            "An effective share of 0.6 means: the draws vary as if 60 % of the images were drawn "
            "evenly, and the others never.",
        )
    return drawings


def _time_split(evidence: SynthesisEvidence) -> Figure:
    synthesis, distillation = evidence.synthesis_seconds, evidence.distillation_seconds
    share = synthesis[-1] / max(1e-9, synthesis[-1] + distillation[-1])
    title = f"Where the time went: {share:.0%} synthesis, {1 - share:.0%} distillation"
    return synthesis_figures.time_split(synthesis, distillation, title=title)


def _rounded(values: Float[np.ndarray, " K"]) -> list[float]:
    rounded: list[float] = np.round(values.astype(np.float64), DIGITS).tolist()
    return rounded

"""Take the validation and test splits from the training split where an upload lacks them.

Images are drawn class by class with a fixed seed: the same upload gives the same splits on every
machine, and each class has the same share of every split, as far as whole images allow. Images
with masks or boxes have many classes each and are drawn regardless of class. Where only some images
have a class, only those are drawn: students are scored by labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors
from workers.distill.data.dataset import UNLABELLED

SEED = 20240611
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """Indices into the given training split: images that stay, and those for the missing splits."""

    train: Indices
    validation: Indices | None
    test: Indices | None
    notes: tuple[str, ...]


def divide(
    labels: NDArray[np.int64] | NDArray[np.uint8], *, has_validation: bool, has_test: bool
) -> Division:
    """Return how to take the missing splits from the training split, with notes for its owner.

    `labels` are classes [N], or have more dimensions, such as masks [N, H, W]. Raises
    `UploadRefused` when there are fewer images than splits to fill.
    """
    known = labels != UNLABELLED if labels.ndim == 1 else np.ones(len(labels), dtype=np.bool_)
    is_partial = bool(known.any()) and not known.all()
    rows = np.flatnonzero(known) if is_partial else np.arange(len(labels))
    count = len(rows)
    what = "images with a label" if is_partial else "images"
    required = (not is_partial) + (not has_validation) + (not has_test)
    if count < required:
        raise errors.UploadRefused(
            "no_images",
            f"the training split has {count} {what}; it takes at least {required} to train and to "
            "make the missing splits",
        )
    validation = 0 if has_validation else max(1, round(count * VALIDATION_SHARE))
    test = 0 if has_test else max(1, round(count * TEST_SHARE))
    has_classes = labels.ndim == 1 and bool(known.any())
    strata = labels[rows].astype(np.int64, copy=False) if has_classes else np.zeros(count, np.int64)
    sizes = (count - validation - test, validation, test)
    train_rows, validation_rows, test_rows = (rows[part] for part in stratified(strata, sizes))
    if is_partial:
        train_rows = np.sort(np.concatenate([train_rows, np.flatnonzero(~known)]))
    how = "class by class" if has_classes else "at random"
    made = [(name, size) for name, size in (("validation", validation), ("test", test)) if size]
    notes = tuple(
        f"the {name} split was missing: {size} of the {count} training {what} were set aside for "
        f"it, {how}, with seed {SEED}"
        for name, size in made
    )
    return Division(
        train_rows,
        validation_rows if validation else None,
        test_rows if test else None,
        notes,
    )


def stratified(
    labels: NDArray[np.int64], sizes: Sequence[int], *, seed: int = SEED
) -> list[Indices]:
    """Return disjoint, sorted indices: one array for each of `sizes`, classes in proportion.

    `sizes` must add up to the number of labels [N].
    """
    # RandomState, not Generator: NumPy promises that its stream never changes.
    draw = np.random.RandomState(seed)
    # Each class is spread evenly over 0..1, so cutting that range keeps the share of each class.
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + draw.random_sample()) / len(members)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(sizes)
    return [
        np.sort(order[end - size : end]).astype(np.int64)
        for end, size in zip(ends, sizes, strict=True)
    ]

"""Which images train, choose and judge, when a data set does not say so itself.

Shares are drawn class by class with a fixed seed, so the same upload gives the same splits
on every machine, and every class is represented as evenly as whole images allow. Images with
masks have many classes each: they are drawn without regard to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.distill import errors

SEED = 20240611
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """Images of the given training split that train, and those that fill the missing splits."""

    train: Indices
    validation: Indices | None
    test: Indices | None
    notes: tuple[str, ...]


def divide(
    labels: NDArray[np.int64] | NDArray[np.uint8], *, has_validation: bool, has_test: bool
) -> Division:
    """Take the missing splits from the training split, and note what was done.

    `labels` are one class an image, or one mask [H, W] an image.
    Raises `UploadRefused` when there are too few images to share.
    """
    count = len(labels)
    wanted = 1 + (not has_validation) + (not has_test)
    if count < wanted:
        raise errors.UploadRefused(
            "no_images",
            f"the training split has {count} images; it takes at least {wanted} to train and to "
            "make the missing splits",
        )
    validation = 0 if has_validation else max(1, round(count * VALIDATION_SHARE))
    test = 0 if has_test else max(1, round(count * TEST_SHARE))
    is_dense = labels.ndim > 1
    alike = np.zeros(count, dtype=np.int64) if is_dense else labels.astype(np.int64, copy=False)
    train, chosen, judged = stratified(alike, (count - validation - test, validation, test))
    how = "at random" if is_dense else "class by class"
    made = [(name, size) for name, size in (("validation", validation), ("test", test)) if size]
    notes = tuple(
        f"the {name} split was missing: {size} of the {count} training images were set aside for "
        f"it, {how}, with seed {SEED}"
        for name, size in made
    )
    return Division(train, chosen if validation else None, judged if test else None, notes)


def stratified(
    labels: NDArray[np.int64], sizes: Sequence[int], *, seed: int = SEED
) -> list[Indices]:
    """Return disjoint sorted indices, one array a size, each class shared in proportion.

    `sizes` must add up to the number of labels.
    """
    # RandomState, not Generator: NumPy promises that its stream never changes.
    draw = np.random.RandomState(seed)
    # Each class is spread evenly over 0..1, so cutting that line keeps every class's share.
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

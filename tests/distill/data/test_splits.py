"""Missing splits are drawn class by class, the same each time."""

import numpy as np
import pytest

from workers.distill import errors
from workers.distill.data import splits


def labels_of(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts).astype(np.int64)


class TestStratified:
    def test_parts_are_disjoint_complete_and_sorted(self) -> None:
        parts = splits.stratified(labels_of(50, 30, 20), (70, 10, 20))
        assert [len(part) for part in parts] == [70, 10, 20]
        assert sorted(np.concatenate(parts).tolist()) == list(range(100))
        assert all((np.diff(part) > 0).all() for part in parts)

    def test_every_class_keeps_its_share_to_one_image(self) -> None:
        labels = labels_of(50, 30, 20)
        for part, share in zip(
            splits.stratified(labels, (70, 10, 20)), (0.7, 0.1, 0.2), strict=True
        ):
            counts = np.bincount(labels[part], minlength=3)
            assert (abs(counts - share * np.array([50, 30, 20])) <= 1).all()

    def test_equal_seeds_give_equal_parts_and_others_do_not(self) -> None:
        labels = labels_of(50, 50)
        first, again = (splits.stratified(labels, (80, 20)) for _ in range(2))
        other = splits.stratified(labels, (80, 20), seed=1)
        assert np.array_equal(first[1], again[1])
        assert not np.array_equal(first[1], other[1])


class TestDivide:
    @pytest.mark.parametrize(
        ("has_validation", "has_test", "sizes"),
        [
            (True, True, (100, 0, 0)),
            (False, True, (90, 10, 0)),
            (True, False, (80, 0, 20)),
            (False, False, (70, 10, 20)),
        ],
    )
    def test_takes_what_is_missing_and_says_so(
        self, has_validation: bool, has_test: bool, sizes: tuple[int, int, int]
    ) -> None:
        division = splits.divide(
            labels_of(50, 50), has_validation=has_validation, has_test=has_test
        )
        parts = (division.train, division.validation, division.test)
        assert tuple(0 if part is None else len(part) for part in parts) == sizes
        assert len(division.notes) == (not has_validation) + (not has_test)
        assert all("seed" in note for note in division.notes)

    def test_images_with_masks_are_drawn_without_regard_to_their_classes(self) -> None:
        masks = np.zeros((50, 2, 2), dtype=np.uint8)
        masks[:25] = 1
        division, other = (
            splits.divide(given, has_validation=False, has_test=False)
            for given in (masks, 1 - masks)
        )
        parts = (division.train, division.validation, division.test)
        assert [0 if part is None else len(part) for part in parts] == [35, 5, 10]
        assert sorted(np.concatenate([part for part in parts if part is not None])) == list(
            range(50)
        )
        assert division.train.tolist() != list(range(35))
        assert np.array_equal(division.train, other.train)
        assert all("at random, with seed" in note for note in division.notes)

    def test_three_images_make_three_splits(self) -> None:
        division = splits.divide(labels_of(3), has_validation=False, has_test=False)
        assert division.validation is not None
        assert division.test is not None
        assert len(division.train) == len(division.validation) == len(division.test) == 1

    def test_too_few_images_are_refused(self) -> None:
        with pytest.raises(errors.UploadRefused) as caught:
            splits.divide(labels_of(2), has_validation=False, has_test=False)
        assert caught.value.refusal == "no_images"

import numpy as np
import pytest

from benchmarks import photographs
from workers.distill.data import dataset


@pytest.fixture
def places():
    """A picture each of whose pixels is its own place, 320 x 210."""
    return np.arange(320 * 210).reshape(320, 210)


class TestCells:
    def test_have_no_pixel_in_two_splits(self, places):
        cells = photographs.cells_of(places)
        assert [cell.shape for cell in cells] == [(106, 105)] * 6
        parts = photographs.divided(cells, np.random.RandomState(0))
        assert {name: len(found) for name, found in parts.items()} == {
            "test": 2,
            "validation": 1,
            "train": 3,
        }
        taken = np.concatenate([cell.ravel() for found in parts.values() for cell in found])
        assert len(np.unique(taken)) == len(taken)

    def test_with_a_flat_middle_are_left_out(self):
        flat = np.zeros((110, 110), np.uint8)
        noisy = [np.tile(np.array([0, 200], np.uint8), (110, 55)) for _ in range(3)]
        parts = photographs.divided([flat, *noisy], np.random.RandomState(0))
        assert all(cell.std() for found in parts.values() for cell in found)


class TestPatch:
    def test_has_the_contrast_of_all(self):
        cell = np.tile(np.array([100, 120], np.uint8), (110, 55))
        patch = photographs.patch_of([cell], np.random.RandomState(0))
        assert patch.shape == (96, 96)
        assert (patch.mean(), patch.std()) == pytest.approx((127.5, 50), abs=0.6)

    def test_is_not_sought_for_ever(self):
        with pytest.raises(ValueError, match="no place with contrast"):
            photographs.patch_of([np.zeros((110, 110), np.uint8)], np.random.RandomState(0))


class TestWrite:
    def test_makes_a_data_set_of_each_photograph(self, tmp_path, monkeypatch):
        monkeypatch.setattr(photographs, "PHOTOGRAPHS", photographs.PHOTOGRAPHS[:2])
        record = photographs.write(tmp_path)
        assert record.classes == ["astronaut", "brick"]
        stored = dataset.load(tmp_path)
        assert stored.split("train").labels.bincount().tolist() == [50, 50]
        assert stored.split("test").images.shape == (40, 1, 96, 96)

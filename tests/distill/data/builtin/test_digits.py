"""The built-in digits are real, complete, and the same on every machine."""

import hashlib
from pathlib import Path

import torch

from workers.distill.data import catalog, dataset
from workers.distill.data.builtin import digits


class TestWrite:
    def test_splits_have_the_fixed_sizes_and_every_digit(self, tmp_path: Path) -> None:
        record = digits.write(tmp_path)
        assert record.splits == {"train": 1257, "validation": 180, "test": 360}
        assert record.flip is False
        stored = dataset.load(tmp_path)
        for name in dataset.SPLITS:
            counts = torch.bincount(stored.split(name).labels, minlength=10)
            # 1,797 digits are 174 to 183 of each kind.
            assert counts.max() - counts.min() <= 8

    def test_pixels_are_those_of_scikit_learn_scaled_to_a_byte(self, tmp_path: Path) -> None:
        from sklearn import datasets  # takes every process that collects tests a second

        digits.write(tmp_path)
        stored = dataset.load(tmp_path)
        ours = torch.cat([stored.split(name).images for name in dataset.SPLITS])
        pixels = torch.from_numpy(datasets.load_digits().data).reshape(-1, 1, 8, 8)
        theirs = (pixels * 255 / 16).round().to(torch.uint8)
        assert ours.shape == theirs.shape
        assert sorted(map(bytes, ours.numpy())) == sorted(map(bytes, theirs.numpy()))

    def test_bytes_are_the_same_each_time(self, tmp_path: Path) -> None:
        sums = []
        for name in ("1", "2"):
            digits.write(tmp_path / name)
            files = sorted((tmp_path / name).iterdir())
            sums.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        assert sums[0] == sums[1]
        assert len(sums[0]) == 4


class TestCatalog:
    def test_describes_the_digits_without_writing_them(self) -> None:
        line = catalog.describe()[0]
        assert line["name"] == "digits"
        assert line["splits"] == {"train": 1257, "validation": 180, "test": 360}
        assert {"title", "source", "input", "classes", "task"} <= set(line)

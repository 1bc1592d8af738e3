"""IDX files as MNIST is published become a prepared data set."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset

IMAGES: NDArray[np.int64] = np.arange(20 * 6 * 5).reshape(20, 6, 5) % 251
LABELS: NDArray[np.int64] = np.arange(20) % 4


def idx(values: NDArray[np.int64]) -> bytes:
    head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


def mnist(labels: NDArray[np.int64] = LABELS, prefix: str = "MNIST/raw/") -> dict[str, bytes | str]:
    return {
        f"{prefix}train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES)),
        f"{prefix}train-labels-idx1-ubyte.gz": gzip.compress(idx(labels)),
        f"{prefix}t10k-images-idx3-ubyte": idx(IMAGES[:8]),
        f"{prefix}t10k-labels-idx1-ubyte": idx(labels[:8]),
    }


class TestConvert:
    def test_splits_are_kept(self, tmp_path: Path) -> None:
        uploads.archive(tmp_path, mnist())
        record = uploads.convert("idx", tmp_path)
        assert record.splits == {"train": 18, "validation": 2, "test": 8}
        assert record.classes == ["0", "1", "2", "3"]
        assert not record.flip
        test = dataset.load(tmp_path / "dataset").split("test")
        assert torch.equal(test.images[:, 0].long(), torch.from_numpy(IMAGES[:8]))
        assert torch.equal(test.labels, torch.from_numpy(LABELS[:8]))

    def test_labels_from_one_are_told(self, tmp_path: Path) -> None:
        uploads.archive(tmp_path, mnist(LABELS + 1, "gzip/emnist-letters-"))
        record = uploads.convert("idx", tmp_path)
        assert record.classes == ["1", "2", "3", "4"]
        assert record.notes[0].startswith("labels count from 1 to 4: label 1 is class 0")

    def test_compressed_twins_count_once(self, tmp_path: Path) -> None:
        files = mnist()
        files |= {name.removesuffix(".gz"): idx(IMAGES) for name in files if "images" in name}
        files |= {name.removesuffix(".gz"): idx(LABELS) for name in files if "train-l" in name}
        uploads.archive(tmp_path, {**files, "MNIST/raw/t10k-images-idx3-ubyte": idx(IMAGES[:8])})
        record = uploads.convert("idx", tmp_path)
        assert record.splits["train"] == 18
        twins = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz"
        assert record.notes[0] == f"files that are not needed were left out: {twins}"


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"train-labels-idx1-ubyte.gz": b""}, "train-labels.*is no IDX file"),
            ({"train-labels-idx1-ubyte.gz": idx(LABELS)[:-1]}, "its header says"),
            ({"train-labels-idx1-ubyte.gz": idx(LABELS[:9])}, "labels \\[N\\]"),
            ({"train-labels-idx1-ubyte.gz": idx(LABELS * 0)}, "two classes"),
            ({"train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES))[:-9]}, "cut short"),
            ({"train-images-idx3-ubyte.gz": b"\0\0\x0d\3" + bytes(12)}, "no IDX file of bytes"),
            ({"other-train-images-idx3-ubyte": idx(IMAGES)}, "same part of two data sets"),
        ],
    )
    def test_are_named(self, tmp_path: Path, changes: dict[str, bytes], words: str) -> None:
        files = mnist(prefix="") | changes
        if words == "two classes":
            files["t10k-labels-idx1-ubyte"] = idx(LABELS[:8] * 0)
        uploads.archive(tmp_path, files)
        with pytest.raises(errors.UploadRefused, match=words):
            uploads.convert("idx", tmp_path)

    def test_labels_must_be_there(self, tmp_path: Path) -> None:
        error = uploads.refused(
            "idx", tmp_path, {"train-images-idx3-ubyte": b""}, task="classification"
        )
        assert "no labels for train-images-idx3-ubyte" in error.message

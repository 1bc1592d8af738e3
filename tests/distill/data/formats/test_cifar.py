"""CIFAR archives in their published layout are read, and their pickles run nothing."""

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.data.formats import cifar

NAMES = [f"class{number}".encode() for number in range(10)]

# What NumPy of that time and Python 2 wrote for {"data": uint8 array of [1, 3], "labels": [7]}:
# strings as bytes, the old module names, protocol 2.
PYTHON2_PICKLE = (
    b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x07aU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct"
    b"\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x08"
    b"U\x02u1K\x00K\x01\x87Rq\t(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03"
    b"\x01\x02\xfftbu."
)


def a_batch(count: int, *, seed: int, key: bytes = b"labels", classes: int = 10) -> dict[Any, Any]:
    draw = np.random.RandomState(seed)
    return {
        b"batch_label": b"testing batch",
        b"data": draw.randint(0, 256, (count, 3072)).astype(np.uint8),
        key: [index % classes for index in range(count)],
        b"filenames": [b"x.png"] * count,
    }


def cifar10(count: int = 20) -> dict[str, Any]:
    folder = "cifar-10-batches-py/"
    return {
        **{f"{folder}data_batch_{number}": a_batch(count, seed=number) for number in range(1, 6)},
        f"{folder}test_batch": a_batch(count, seed=9),
        f"{folder}batches.meta": {b"label_names": NAMES, b"num_vis": 3072},
        f"{folder}readme.html": "not a pickle",
    }


def an_archive(path: Path, files: dict[str, Any], protocol: int = 2) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            text = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return path


def convert(
    tmp_path: Path, files: dict[str, Any], name: str = "cifar10", protocol: int = 2
) -> dataset.DatasetRecord:
    an_archive(tmp_path / "upload", files, protocol)
    return uploads.convert(name, tmp_path)


def refusal(tmp_path: Path, files: dict[str, Any], name: str = "cifar10") -> errors.UploadRefused:
    with pytest.raises(errors.UploadRefused) as caught:
        convert(tmp_path, files, name)
    return caught.value


class TestConvert:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_cifar10_keeps_its_test_split_and_names(self, tmp_path: Path, protocol: int) -> None:
        record = convert(tmp_path, cifar10(), protocol=protocol)
        assert record.splits == {"train": 90, "validation": 10, "test": 20}
        assert record.classes == [name.decode() for name in NAMES]
        assert record.flip
        assert len(record.notes) == 1
        test = dataset.load(tmp_path / "dataset").split("test")
        expected = a_batch(20, seed=9)
        assert test.labels.tolist() == expected[b"labels"]
        rows = torch.from_numpy(expected[b"data"])
        # The published rows are the red, green and blue planes, row by row.
        assert torch.equal(test.images.reshape(20, -1), rows)

    def test_cifar100_takes_the_fine_labels(self, tmp_path: Path) -> None:
        folder = "cifar-100-python/"
        train = a_batch(200, seed=1, key=b"fine_labels", classes=100)
        train[b"coarse_labels"] = [0] * 200
        files = {
            f"{folder}train": train,
            f"{folder}test": a_batch(100, seed=2, key=b"fine_labels", classes=100),
            f"{folder}meta": {b"fine_label_names": [str(number) for number in range(100)]},
        }
        record = convert(tmp_path, files, "cifar100")
        assert record.splits == {"train": 180, "validation": 20, "test": 100}
        assert len(record.classes) == 100
        test = dataset.load(tmp_path / "dataset").split("test")
        assert test.labels.tolist() == list(range(100))

    @pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
    def test_binary_archives(self, tmp_path: Path, name: str, label_bytes: int) -> None:
        rows = np.random.RandomState(0).randint(0, 10, (20, label_bytes + 3072)).astype(np.uint8)
        rows[:, label_bytes - 1] = np.arange(20) % 10
        train, meta = ("data_batch_1", "batches.meta.txt"), [f"c{number}" for number in range(10)]
        if name == "cifar100":
            train, meta = ("train", "fine_label_names.txt"), [str(number) for number in range(100)]
        files = {
            f"bin/{train[0]}.bin": rows.tobytes(),
            f"bin/{'test_batch' if label_bytes == 1 else 'test'}.bin": rows[:10].tobytes(),
            f"bin/{train[1]}": ("\n".join(meta) + "\n\n").encode(),
        }
        record = convert(tmp_path, files, name)
        assert record.splits == {"train": 18, "validation": 2, "test": 10}
        assert record.classes == meta
        test = dataset.load(tmp_path / "dataset").split("test")
        assert test.labels.tolist() == list(range(10))
        expected = torch.from_numpy(rows[:10, label_bytes:])
        assert torch.equal(test.images.reshape(10, -1), expected)
        files[f"bin/{train[0]}.bin"] = rows.tobytes()[:-1]
        (tmp_path / "cut").mkdir()
        assert refusal(tmp_path / "cut", files, name).refusal == "unreadable"

    def test_archive_without_meta_numbers_its_classes(self, tmp_path: Path) -> None:
        files = cifar10()
        del files["cifar-10-batches-py/batches.meta"]
        assert convert(tmp_path, files).classes == [str(number) for number in range(10)]


class TestLoadPickle:
    def test_pickles_of_python_2_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(PYTHON2_PICKLE)
        batch = cifar.load_pickle(tmp_path / "x")
        assert batch[b"labels"] == [7]
        assert batch[b"data"].tolist() == [[1, 2, 255]]

    @pytest.mark.parametrize("protocol", range(6))
    def test_code_is_refused_and_never_run(self, tmp_path: Path, protocol: int) -> None:
        marker = tmp_path / "marker"

        class Evil:
            def __reduce__(self) -> tuple[Any, tuple[str, int]]:
                return os.mknod, (str(marker), 0o600)

        (tmp_path / "x").write_bytes(pickle.dumps({b"data": Evil()}, protocol))
        with pytest.raises(errors.UploadRefused, match="mknod") as caught:
            cifar.load_pickle(tmp_path / "x")
        assert caught.value.refusal == "unsafe_archive"
        assert not marker.exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"hello",
            b"\x80\x02}q\x00(",
            b"\x80\x02r\xff\xff\xff\xff.",
            PYTHON2_PICKLE.replace(b"U\x02u1", b"U\x02O8"),
            PYTHON2_PICKLE.replace(b"K\x01K\x03\x86", b"K\x01K\x63\x86"),
            pickle.dumps(np.array([object.__name__, 3], dtype=object), 2),
        ],
    )
    def test_damaged_pickles_are_unreadable(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(errors.UploadRefused) as caught:
            cifar.load_pickle(tmp_path / "x")
        assert caught.value.refusal == "unreadable"


class TestRefusedArchives:
    def test_other_archives_are_not_cifar(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, {"cat/1.png": b"x"})
        assert error.refusal == "unsupported_format"
        assert "data_batch" in error.message

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({b"labels": [0] * 19}, "bad_labels"),
            ({b"labels": [10] * 20}, "bad_labels"),
            ({b"labels": [-1] * 20}, "bad_labels"),
            ({b"labels": [0.5] * 20}, "bad_labels"),
            ({b"labels": None}, "bad_labels"),
            ({b"data": np.zeros((20, 3071), dtype=np.uint8)}, "unreadable"),
            ({b"data": np.zeros((20, 3072), dtype=np.int64)}, "unreadable"),
            ({b"data": [1, 2]}, "unreadable"),
        ],
    )
    def test_faults_are_named(self, tmp_path: Path, changes: dict[bytes, Any], code: str) -> None:
        files = {
            **cifar10(),
            "cifar-10-batches-py/data_batch_3": {**a_batch(20, seed=3), **changes},
        }
        error = refusal(tmp_path, files)
        assert error.refusal == code
        assert "data_batch_3" in error.message

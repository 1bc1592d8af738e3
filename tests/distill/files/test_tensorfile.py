"""Safetensors files have the same bytes every time, and damage is found before it is believed."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from workers.distill import errors
from workers.distill.files import tensorfile

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "a": torch.tensor(7),
    "c": torch.ones(3, dtype=torch.uint8),
    "d": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}


def with_header(path: Path, header: Any, content: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


class TestWrite:
    def test_the_library_reads_what_we_write(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        tensorfile.write(path, TENSORS, {"format": "pt", "note": "é"})
        read = safetensors.torch.load_file(path)
        assert read.keys() == TENSORS.keys()
        assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
        with safetensors.safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "note": "é"}
        assert tensorfile.read_header(path) == {"format": "pt", "note": "é"}

    def test_bytes_do_not_depend_on_order(self, tmp_path: Path) -> None:
        header = {str(number): "x" for number in range(20)}
        tensorfile.write(tmp_path / "1", TENSORS, header)
        tensorfile.write(
            tmp_path / "2",
            dict(reversed(TENSORS.items())),
            dict(reversed(header.items())),
        )
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        tensorfile.write(tmp_path / "x", TENSORS, {})
        assert [file.name for file in tmp_path.iterdir()] == ["x"]


class TestCreate:
    def test_arrays_write_through_to_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        arrays = tensorfile.create(path, {"images": ("U8", (3, 5)), "labels": ("I64", (3,))})
        arrays["images"][1] = np.uint8(9)
        arrays["labels"][2] = np.int64(-1)
        read = tensorfile.read(path)
        assert read["images"].tolist() == [[0] * 5, [9] * 5, [0] * 5]
        assert read["labels"].tolist() == [0, 0, -1]


class TestRead:
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.999])
    def test_cut_files_are_unreadable(self, tmp_path: Path, share: float) -> None:
        path = tmp_path / "x"
        tensorfile.write(path, {"w": torch.ones(1000)}, {})
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(errors.UploadRefused) as caught:
            tensorfile.read(path)
        assert caught.value.refusal == "unreadable"

    @pytest.mark.parametrize(
        ("header", "content", "words"),
        [
            (b"{nonsense", b"", "header is not JSON"),
            (b"[" * 100_000, b"", "header is not JSON"),
            ([1], b"", "not a JSON object"),
            ({"w": 3}, b"", "'w' is not described"),
            ({"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234", "dtype 'F99'"),
            ({"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"1234", "dtype"),
            ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "shape"),
            ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234", "shape"),
            ({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"1234", "cut short"),
            ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "not fill"),
            ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678", "gap"),
            ({}, b"1234", "follow the last tensor"),
        ],
    )
    def test_lying_headers_are_named(
        self, tmp_path: Path, header: Any, content: bytes, words: str
    ) -> None:
        path = with_header(tmp_path / "x", header, content)
        with pytest.raises(errors.UploadRefused, match=words):
            tensorfile.read(path)

    def test_overlapping_tensors_are_refused(self, tmp_path: Path) -> None:
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        path = with_header(tmp_path / "x", {"a": entry, "b": entry}, b"1234")
        with pytest.raises(errors.UploadRefused, match="overlaps"):
            tensorfile.read(path)

    def test_huge_header_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        with path.open("wb") as stream:
            stream.write((200_000_000).to_bytes(8, "little") + b"{")
            stream.truncate(300_000_000)
        with pytest.raises(errors.UploadRefused, match="more than 16777216"):
            tensorfile.read(path)


class TestLooksLike:
    def test_whatever_the_length_of_the_header(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        seen = set()
        for length in range(0, 600, 8):
            tensorfile.write(path, {"one": torch.zeros(1)}, header={"text": "x" * length})
            seen.add(path.read_bytes()[0])
            assert tensorfile.looks_like(path), length
        assert 0x80 in seen  # the byte with which a pickle begins

    def test_a_pickle_does_not(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        for protocol in range(2, 6):
            path.write_bytes(pickle.dumps({"{{{{{{{{": "{" * 20}, protocol=protocol))
            assert not tensorfile.looks_like(path), protocol
        torch.save({"one": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
        assert not tensorfile.looks_like(path)

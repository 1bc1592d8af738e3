"""Files of PyTorch are read whatever lies beside their tensors, and nothing of them is run."""

import argparse
import datetime
import pathlib
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.files import torchfile

TENSORS: dict[str, Tensor] = {
    "plain": torch.arange(6.0).reshape(2, 3),
    "view": torch.arange(12.0).reshape(3, 4).T[1:],
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "half": torch.tensor([1.5]).half(),
    "bfloat16": torch.tensor([1.5]).bfloat16(),
    "bool": torch.tensor([True, False]),
    "parameter": nn.Parameter(torch.ones(2)),
    "float8": torch.tensor([1.5]).to(torch.float8_e4m3fn),
}


def is_equal(read: Tensor, wanted: Tensor) -> bool:
    return read.dtype == wanted.dtype and torch.equal(read.float(), wanted.detach().float())


class TestRead:
    @pytest.mark.parametrize("form", ["zip", "old", "pickle"])
    def test_tensors_of_every_kind(self, tmp_path: Path, form: str) -> None:
        path = tmp_path / "x"
        if form == "pickle":
            path.write_bytes(pickle.dumps(TENSORS))
        else:
            torch.save(TENSORS, path, _use_new_zipfile_serialization=form == "zip")
        checkpoint = torchfile.read(path)
        for name, wanted in TENSORS.items():
            assert is_equal(checkpoint.tensor(checkpoint.content[name]), wanted), name

    def test_numpy_arrays(self, tmp_path: Path) -> None:
        arrays: dict[str, Any] = {
            "c": np.arange(6, dtype=np.float32).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
            "big": np.arange(3, dtype=">i4"),
        }
        for protocol in (2, 4, 5):
            (tmp_path / "x").write_bytes(pickle.dumps(arrays, protocol=protocol))
            checkpoint = torchfile.read(tmp_path / "x")
            for name, wanted in arrays.items():
                read = checkpoint.tensor(checkpoint.content[name])
                assert read.tolist() == wanted.tolist(), (name, protocol)

    def test_harmless_objects_beside_the_tensors(self, tmp_path: Path) -> None:
        beside = {
            "rng": np.random.default_rng(0).bit_generator.state,
            "old_rng": np.random.RandomState(0).get_state(),
            "history": defaultdict(list, loss=[1.0]),
            "at": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
            "path": pathlib.PurePosixPath("/x"),
            "loss": nn.CrossEntropyLoss(),
            "args": argparse.Namespace(lr=0.1),
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "size": torch.Size([2, 3]),
            "set": {1, 2},
            "lambda": len,
        }
        torch.save({"state_dict": OrderedDict(TENSORS), **beside}, tmp_path / "x")
        checkpoint = torchfile.read(tmp_path / "x")
        stored = checkpoint.content["state_dict"]
        assert is_equal(checkpoint.tensor(stored["view"]), TENSORS["view"])
        assert "datetime.datetime" in checkpoint.names

    @pytest.mark.parametrize(
        "record",
        [
            {"shape": (100,), "stride": (1,)},
            {"shape": (2, 2), "stride": (1, 100)},
            {"shape": (2,), "stride": (1,), "offset": 5},
        ],
    )
    def test_tensors_that_reach_beyond_their_bytes(
        self, tmp_path: Path, record: dict[str, Any]
    ) -> None:
        torch.save({"w": torch.zeros(6)}, tmp_path / "x")
        checkpoint = torchfile.read(tmp_path / "x")
        storage = checkpoint.content["w"].storage
        lying = torchfile.TensorRecord(storage, **{"offset": 0, "dtype": torch.float32, **record})
        with pytest.raises(errors.UploadRefused, match="a tensor that it does not hold"):
            checkpoint.tensor(lying)

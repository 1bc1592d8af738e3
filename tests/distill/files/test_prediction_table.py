"""Tables of predictions are read whole or refused, naming the images at fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from workers.distill import errors
from workers.distill.files import prediction_table, tensorfile

COUNTS = {"train": 4, "validation": 2, "test": 2}
LOGITS = np.arange(12, dtype=np.float32).reshape(4, 3) - 5


def read(path: Path, **changes: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    return prediction_table.read(path, **{"classes": 3, "views": 1, "counts": COUNTS, **changes})


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def refused(path: Path, **changes: Any) -> errors.UploadRefused:
    with pytest.raises(errors.UploadRefused) as caught:
        read(path, **changes)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.npz"


class TestRows:
    def test_are_the_same_from_every_kind_of_file(self, tmp_path: Path, path: Path) -> None:
        order = np.array([2, 0, 3, 1])
        tensorfile.write(tmp_path / "t.safetensors", {"train": torch.from_numpy(LOGITS.copy())}, {})
        table = pa.table({"index": order, "logits": list(LOGITS[order])})
        pq.write_table(table, tmp_path / "p.parquet")
        for file in (
            npz(path, logits=LOGITS[order], index=order),
            tmp_path / "t.safetensors",
            tmp_path / "p.parquet",
        ):
            tables, notes = read(file)
            assert torch.equal(tables["train"][:, 0], torch.from_numpy(LOGITS))
            assert notes[0].startswith("the validation split was not predicted")

    def test_may_be_of_several_views_and_splits(self, path: Path) -> None:
        views = np.stack([LOGITS, LOGITS + 1], axis=1)
        tables, notes = read(npz(path, train=views, validation=LOGITS[:2]), views=2)
        assert tables["train"].shape == (4, 2, 3)
        assert tables["validation"].shape == (2, 1, 3)
        assert len(notes) == 1

    def test_that_are_probabilities_are_told_and_taken_as_logarithms(self, path: Path) -> None:
        soft = torch.softmax(torch.from_numpy(LOGITS), dim=1)
        tables, notes = read(npz(path, predictions=soft.numpy()))
        torch.testing.assert_close(tables["train"][:, 0], soft.log())
        assert "the rows are probabilities" in notes[-1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arrays", "code", "words"),
        [
            ({"logits": LOGITS[:3]}, "row_count", "3 predictions of the train split, which has 4"),
            ({"logits": LOGITS[:, :2]}, "class_count", "have 2 classes, and the data set has 3"),
            (
                {"logits": LOGITS, "index": np.array([0, 1, 1, 3])},
                "doubled_images",
                "predicted more than once: 1;",
            ),
            (
                {"logits": LOGITS[:2], "index": np.array([0, 3])},
                "missing_images",
                "are not predicted: 1, 2;",
            ),
            (
                {"logits": LOGITS, "index": np.array([0, 1, 2, 9])},
                "bad_index",
                "do not exist: 9;",
            ),
            ({"logits": np.where(LOGITS == 1, np.nan, LOGITS)}, "not_finite", "infinity: 2;"),
            ({"scores": LOGITS}, "unknown_array", "'scores'"),
            ({"validation": LOGITS[:2]}, "no_predictions", "'train' or 'logits'"),
            ({"logits": LOGITS[:, None].repeat(2, axis=1)}, "view_count", "have 2 views"),
            ({"logits": LOGITS.astype(str)}, "not_a_table", "give numbers"),
        ],
    )
    def test_name_what_is_wrong(
        self, path: Path, arrays: dict[str, Any], code: str, words: str
    ) -> None:
        refusal = refused(npz(path, **arrays))
        assert refusal.refusal == code
        assert words in refusal.message

    def test_of_a_file_of_something_else(self, path: Path) -> None:
        path.write_bytes(b"index,logits\n0,1.0\n")
        assert refused(path).refusal == "unsupported_format"

    def test_of_pickles(self, path: Path) -> None:
        np.savez(path, logits=np.array([{"a": 1}], dtype=object))
        assert refused(path).refusal == "unreadable"

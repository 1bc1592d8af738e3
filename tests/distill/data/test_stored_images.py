"""What is written for predictions elsewhere is what a job shows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distill import folders
from workers.distill.config.training import expand
from workers.distill.data import dataset, stored_images
from workers.distill.data.loader import BatchLoader


def test_images_are_in_stored_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.make_dataset(tmp_path / "data")
    output = tmp_path / "images.npz"
    assert stored_images.main([str(tmp_path / "data"), "--output", str(output)]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == folders.COUNTS
    stored = dataset.load(tmp_path / "data")
    with np.load(output) as arrays:
        for split in dataset.SPLITS:
            assert np.array_equal(arrays[split], stored.split(split).images.numpy())


def test_views_are_those_of_a_teacher_cache(tmp_path: Path) -> None:
    folders.make_dataset(tmp_path / "data")
    stored = dataset.load(tmp_path / "data")
    views = stored_images.views_of(stored, views=3, seed=5, augmentation="standard")
    training = expand(
        {"seed": 5, "augmentation": "standard", "teacher_cache": {"views": 3}, "batch_size": 8}
    )
    split = stored.split("train")
    loader = BatchLoader(
        split.images,
        split.labels,
        training=training,
        flip=stored.record.flip,
        device=torch.device("cpu"),
    )
    for batch in loader.epoch(1):
        assert batch.view is not None
        assert np.array_equal(batch.images.numpy(), views[batch.index, batch.view])


def test_a_source_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stored_images.main(["nothing", "--output", "x.npz"])
    assert "no file, folder or built-in data set 'nothing'" in capsys.readouterr().err

import json
import sys

import pytest
import torch

from benchmarks import dense, dense_plain
from workers.distill.config.job import JobConfig
from workers.distill.data import dataset
from workers.distill.data.builtin import digit_scenes


def gradient(loss, student, teacher):
    """Return the value of a loss and its gradient in the student's map."""
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher)
    value.backward()
    return value.detach(), leaf.grad


@pytest.fixture
def scenes(tmp_path):
    """Sixteen scenes with boxes, and a teacher."""
    return dense.write_inputs(tmp_path / "detection", "detection", 16)


class TestPlainLosses:
    @pytest.mark.parametrize("name", dense_plain.LOSSES)
    def test_equal_those_of_the_engine(self, name):
        generator = torch.Generator().manual_seed(0)
        # A third of a patch is left over on each side.
        student, teacher = (
            torch.randn(2, 3, 20, 28, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        plain = gradient(dense_plain.LOSSES[name], student, teacher)
        ours = gradient(dense.ENGINE_LOSSES[name], student, teacher)
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-9)


class TestPlainLoops:
    def test_train_a_detector_with_its_teacher(self, scenes, monkeypatch):
        monkeypatch.setattr(dense_plain, "LOADER_PROCESSES", 0)
        record = dataset.load(scenes / "dataset").record
        classes = len(record.classes)
        student, teacher = (
            dense_plain.torchvision_fcos(dense.build(choice, record), record.input, classes)
            for choice in (dense.STUDENT, dense.TEACHER)
        )
        teacher.eval().requires_grad_(False)
        before = student.backbone.body.conv1.weight.clone()
        next(dense_plain.detection_steps(student, teacher, dense_plain.pkd, scenes))
        assert not torch.equal(student.backbone.body.conv1.weight, before)

    def test_have_the_losses_of_the_engine(self, scenes, monkeypatch):
        monkeypatch.setattr(dense_plain, "LOADER_PROCESSES", 0)
        stored = dataset.load(scenes / "dataset")
        size = stored.record.input
        built = dense.build(dense.STUDENT, stored.record).train()
        plain = dense_plain.torchvision_fcos(built, size, len(stored.record.classes))
        shown = dense_plain.BoxPictures(scenes)
        images, targets = dense_plain.collate([shown[0], shown[1]])
        theirs = plain(list(images), list(targets))
        split = stored.split("train")
        mean, std = (torch.tensor(values)[:, None, None] for values in (size.mean, size.std))
        ours = built.observe((split.images[:2] / 255 - mean) / std).detector
        assert ours is not None
        torch.testing.assert_close(ours.losses(split.labels[:2]), theirs, rtol=1e-4, atol=1e-5)

    def test_train_a_segmenter(self, tmp_path, monkeypatch):
        monkeypatch.setattr(dense_plain, "LOADER_PROCESSES", 0)
        folder = dense.write_inputs(tmp_path / "masks", "segmentation", 16)
        steps = dense.plain_steps("segmentation", "retort/fcn", folder)
        next(steps)


class TestRecipes:
    @pytest.mark.parametrize("method", dense.methods())
    def test_of_detection_are_complete(self, method):
        config = dense.recipe_of("detection", method, digit_scenes.describe())
        assert isinstance(config, JobConfig)
        assert (config.teacher is None) == (method == dense.ALONE)

    @pytest.mark.parametrize("network", dense.NETWORKS)
    def test_of_segmentation_are_complete(self, network):
        config = dense.recipe_of("segmentation", network, digit_scenes.describe_masks())
        assert config.student.network == network


class TestCommand:
    @pytest.mark.slow  # processes that load torch
    def test_runs(self, tmp_path, monkeypatch, capsys):
        table = tmp_path / "table.md"
        # Each loop of a row is a process; the engine's loop over boxes is the one of `memory`.
        parts = ["--parts", "segmentation,losses,memory", "--networks", "retort/fcn"]
        options = ["--quick", "--threads", "1", "--table", str(table)]
        monkeypatch.setattr(sys, "argv", ["dense", *parts, *options])
        dense.main()
        found = json.loads(capsys.readouterr().out)
        assert [row["row"] for row in found["segmentation"]] == ["retort/fcn"]
        assert {row["loss"] for row in found["losses"]["rows"]} == set(dense_plain.LOSSES)
        assert [row["images"] for row in found["memory"]] == [16]
        assert "| retort/fcn |" in table.read_text()

    def test_serves_the_plain_loop_over_boxes(self, scenes, monkeypatch):
        monkeypatch.setattr(dense_plain, "LOADER_PROCESSES", 0)
        next(dense.plain_steps("detection", "ce", scenes))
        next(dense.plain_steps("detection", "mimic", scenes))

    def test_refuses_a_method_that_detection_does_not_have(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["dense", "--methods", "crd"])
        with pytest.raises(SystemExit):
            dense.main()
        assert "no method crd; choose of ce" in capsys.readouterr().err

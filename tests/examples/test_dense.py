"""The examples of dense tasks: what they show of a student, from its file alone."""

import argparse
import json

import pytest
import torch
from PIL import Image

from examples import dense_walk, detection, segmentation
from workers.distill.data.builtin import digit_scenes
from workers.distill.networks import catalog, weights

SIDE = digit_scenes.SIDE


def student(path, wanted, classes):
    """Write the file of a student that has learned nothing."""
    size = digit_scenes.INPUT
    torch.manual_seed(0)
    network = catalog.build(
        wanted.network,
        classes=len(classes),
        channels=size.channels,
        height=size.height,
        width=size.width,
        arguments=wanted.student,
    )
    header = {
        "network": wanted.network,
        "arguments": wanted.student,
        "classes": classes,
        "input": size.model_dump(),
    }
    weights.save_student(path, network, {weights.HEADER_KEY: json.dumps(header)})
    return path


@pytest.fixture
def images():
    return torch.from_numpy(digit_scenes.compose("test", 2).images)


class TestDetection:
    def test_draws_the_boxes_of_a_student(self, tmp_path, images, monkeypatch, capsys):
        # Untrained scores are low.
        monkeypatch.setattr(detection, "SURE", 0.0)
        classes = list(digit_scenes.CLASSES)
        file = student(tmp_path / "student.safetensors", detection.WANTED, classes)
        detection.draw(file, images, tmp_path / "boxes.png")
        with Image.open(tmp_path / "boxes.png") as drawn:
            assert drawn.size == (2 * SIDE * detection.ENLARGED, SIDE * detection.ENLARGED)
        *boxes, last = capsys.readouterr().out.splitlines()
        assert len(boxes) > 0
        assert last.startswith("the boxes are drawn in")


class TestSegmentation:
    def test_paints_the_classes_of_a_student(self, tmp_path, images, capsys):
        classes = ["background", *digit_scenes.CLASSES]
        file = student(tmp_path / "student.safetensors", segmentation.WANTED, classes)
        segmentation.paint(file, images, tmp_path / "masks.png")
        with Image.open(tmp_path / "masks.png") as painted:
            assert painted.size == (2 * SIDE, 2 * SIDE)
        assert len(capsys.readouterr().out.splitlines()) == len(classes) + 1


class TestPictures:
    def test_are_resized_to_what_the_student_expects(self, tmp_path):
        classes = ["background", *digit_scenes.CLASSES]
        file = student(tmp_path / "student.safetensors", segmentation.WANTED, classes)
        Image.new("L", (40, 30), 7).save(tmp_path / "grey.png")
        asked = argparse.Namespace(pictures=[tmp_path / "grey.png"], archive=None)
        found = dense_walk.shown(file, asked)
        assert found is not None
        assert found.shape == (1, 3, SIDE, SIDE)
        assert set(found.unique().tolist()) == {7}

    def test_of_an_archive_have_to_be_named(self, tmp_path):
        asked = argparse.Namespace(pictures=[], archive=tmp_path / "coco.zip")
        assert dense_walk.shown(tmp_path / "student.safetensors", asked) is None

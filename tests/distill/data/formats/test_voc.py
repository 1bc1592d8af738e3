"""VOC archives become boxes or masks: pixels count from 1, and palettes are numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.config.job import Task
from workers.distill.data import boxes, dataset

Files = dict[str, bytes | str]


def an_object(name: str = "cat", box: Any = (3, 4, 12, 8), difficult: Any = 0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in corners)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<part><bndbox><xmin>1</xmin></bndbox></part><bndbox>{sides}</bndbox></object>"
    )


def objects(*found: str, width: Any = 30, height: Any = 20) -> str:
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{size}{''.join(found)}</annotation>"


def a_mask(values: Any = 1, **options: Any) -> bytes:
    return uploads.png(np.full((20, 30), values, dtype=np.uint8), **options)


def three_splits(top: str = "") -> Files:
    """Three splits of two pictures, with boxes and masks."""
    files: Files = {}
    for name, first in (("train", 1), ("val", 11), ("test", 21)):
        for key in (first, first + 1):
            files[f"{top}JPEGImages/{key}.png"] = uploads.picture(key)
            files[f"{top}Annotations/{key}.xml"] = objects(an_object("dog"), an_object("cat"))
            files[f"{top}SegmentationClass/{key}.png"] = a_mask(mode="P")
        for kind in ("Main", "Segmentation"):
            files[f"{top}ImageSets/{kind}/{name}.txt"] = f"{first}\n{first + 1}  -1\n"
    return files


def convert(tmp_path: Path, files: Files, task: Task = "detection") -> dataset.DatasetRecord:
    uploads.archive(tmp_path, files)
    return uploads.convert("voc", tmp_path, task=task)


def refused(tmp_path: Path, files: Files, task: Task = "detection") -> errors.UploadRefused:
    return uploads.refused("voc", tmp_path, files, task=task)


class TestBoxes:
    @pytest.mark.parametrize("top", ["", "VOCdevkit/VOC2012/", "x/VOCdevkit/VOC2007/"])
    def test_are_counted_from_one_and_include_their_end(self, tmp_path: Path, top: str) -> None:
        record = convert(tmp_path, three_splits(top))
        assert (record.task, record.classes) == ("detection", ["cat", "dog"])
        assert record.splits == {"train": 2, "validation": 2, "test": 2}
        assert record.notes == []
        labels = dataset.load(tmp_path / "dataset").split("train").labels
        assert labels[0].tolist() == [[1, 2, 3, 12, 8, 50, 0], [0, 2, 3, 12, 8, 50, 0]]

    def test_that_are_difficult_are_flagged(self, tmp_path: Path) -> None:
        changed = objects(an_object(difficult=1), an_object(box=(1, 1, 1.5, 40)))
        record = convert(tmp_path, three_splits() | {"Annotations/1.xml": changed})
        labels = dataset.load(tmp_path / "dataset").split("train").labels
        assert labels[0, :, boxes.FLAG].tolist() == [boxes.DIFFICULT, boxes.ORDINARY]
        assert labels[0, 1, boxes.X1 : boxes.AREA].tolist() == [0, 0, 1.5, 20]
        assert record.notes == [
            "1 boxes reached beyond their pictures and were clipped",
            "1 boxes marked as difficult are not trained on, and do not count in tests",
        ]

    def test_of_several_years_are_joined(self, tmp_path: Path) -> None:
        first, second = three_splits("kit/VOC2007/"), three_splits("kit/VOC2012/")
        pictures = [name for name in second if "JPEGImages" in name]
        second |= {name: uploads.picture(100 + number) for number, name in enumerate(pictures)}
        assert convert(tmp_path, {**first, **second}).splits["train"] == 4

    def test_without_lists_are_all_for_training(self, tmp_path: Path) -> None:
        files = {name: text for name, text in three_splits().items() if "ImageSets" not in name}
        assert convert(tmp_path, files).splits == {"train": 4, "validation": 1, "test": 1}

    def test_have_the_classes_of_a_list_in_its_order(self, tmp_path: Path) -> None:
        record = convert(tmp_path, three_splits() | {"classes.txt": "dog\ncat\ncow\n"})
        assert record.classes == ["dog", "cat", "cow"]
        assert record.notes == ["1 classes have no training boxes: cow"]

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"Annotations/1.xml": objects(an_object(box=(9, 4, 3, 8)))}, "negative size"),
            ({"Annotations/1.xml": objects(an_object(box=(50, 4, 60, 8)))}, "outside of the"),
            ({"Annotations/1.xml": objects(an_object(box=("x", 4, 60, 8)))}, "bndbox needs"),
            ({"Annotations/1.xml": objects(an_object(box=("nan", 4, 6, 8)))}, "not finite"),
            ({"Annotations/1.xml": objects(an_object(name=""))}, "object 1: there is no class ''"),
            ({"classes.txt": "cat"}, "there is no class 'dog'; classes.txt names cat"),
            ({"Annotations/1.xml": objects(width=31)}, "Annotations/1.xml says 20x31"),
            ({"Annotations/1.xml": objects(width="x")}, "size should be whole numbers"),
            ({"Annotations/1.xml": "<annotation>"}, "1.xml is not readable XML"),
            ({"Annotations/1.xml": "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>"}, "declares entities"),
            ({"Annotations/1.xml": b"\xff"}, "1.xml is not UTF-8"),
            ({"ImageSets/Main/train.txt": "1\n9"}, "JPEGImages has no picture '9'"),
            ({"ImageSets/Main/train.txt": "1\n9"}, "Annotations has no file for the picture '9'"),
            ({"ImageSets/Main/train.txt": "1\n../x"}, "has no picture '../x'"),
            ({"ImageSets/Main/train.txt": "1\n11"}, "11 is in the lists of train and of"),
            ({"JPEGImages/11.png": uploads.picture(1)}, "is the same picture as"),
            ({"JPEGImages/11.png": b"x"}, "JPEGImages/11.png is not a readable picture"),
        ],
    )
    def test_that_are_wrong_are_named(self, tmp_path: Path, files: Files, words: str) -> None:
        assert words in refused(tmp_path, three_splits() | files).message

    def test_of_no_object_at_all_are_refused(self, tmp_path: Path) -> None:
        files = three_splits()
        files |= {name: objects() for name in files if name.startswith("Annotations")}
        assert "no file in Annotations has an object" in refused(tmp_path, files).message

    def test_need_a_list_for_training_beside_others(self, tmp_path: Path) -> None:
        files = three_splits()
        del files["ImageSets/Main/train.txt"]
        assert refused(tmp_path, files).refusal == "no_images"


class TestMasks:
    def test_are_numbers_of_a_palette(self, tmp_path: Path) -> None:
        values = np.arange(600, dtype=np.uint8).reshape(20, 30) % 3
        values[0] = 255
        files = three_splits() | {"SegmentationClass/1.png": uploads.png(values, mode="P")}
        record = convert(tmp_path, files, task="segmentation")
        assert (record.task, record.classes) == ("segmentation", ["0", "1", "2"])
        assert record.notes == [
            "classes are called by their numbers: the upload has no classes.txt"
        ]
        labels = dataset.load(tmp_path / "dataset").split("train").labels
        assert (labels[0].numpy() == values).all()

    def test_have_the_names_of_a_list(self, tmp_path: Path) -> None:
        files = three_splits() | {"classes.txt": "background\ncat\n"}
        assert convert(tmp_path, files, task="segmentation").classes == ["background", "cat"]

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"classes.txt": "background"}, "up to 1, but there are 1 classes from 0"),
            ({"ImageSets/Segmentation/val.txt": "11\n9"}, "SegmentationClass has no mask for"),
            ({"SegmentationClass/1.png": uploads.picture(1)}, "has pixels of mode RGB"),
            ({"SegmentationClass/1.png": b"x"}, "1.png is not a readable picture"),
        ],
    )
    def test_that_are_wrong_are_named(self, tmp_path: Path, files: Files, words: str) -> None:
        assert words in refused(tmp_path, three_splits() | files, task="segmentation").message


class TestLayout:
    def test_is_told_to_who_has_another(self, tmp_path: Path) -> None:
        assert "JPEGImages" in refused(tmp_path, {"README": b"x"}).message

    @pytest.mark.parametrize(
        ("task", "folder"), [("detection", "Annotations"), ("segmentation", "SegmentationClass")]
    )
    def test_depends_on_the_task(self, tmp_path: Path, task: Task, folder: str) -> None:
        files = {name: text for name, text in three_splits().items() if folder not in name}
        assert f"for {task}, ./{folder} is missing" in refused(tmp_path, files, task=task).message

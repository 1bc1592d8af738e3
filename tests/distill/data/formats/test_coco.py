"""COCO archives become boxes; ids, crowds and every fault are handled as the format says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import boxes, dataset

Files = dict[str, bytes | str]
CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}]


def an_image(key: int, **changes: Any) -> dict[str, Any]:
    return {"id": key, "file_name": f"{key}.png", "width": 30, "height": 20, **changes}


def a_box(key: int, image: int, box: list[float], **changes: Any) -> dict[str, Any]:
    return {"id": key, "image_id": image, "category_id": 90, "bbox": box, **changes}


def instances(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], **changes: Any
) -> str:
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return json.dumps({**content, **changes})


def split(name: str, first: int, count: int = 2) -> Files:
    """A split with a box of each category in each picture."""
    keys = range(first, first + count)
    annotations = [
        a_box(key * 10 + number, key, [2, 3, 10, 5], category_id=category["id"])
        for key in keys
        for number, category in enumerate(CATEGORIES)
    ]
    return {
        f"annotations/instances_{name}.json": instances([an_image(k) for k in keys], annotations),
        **{f"{name}/{key}.png": uploads.picture(key) for key in keys},
    }


def three_splits() -> Files:
    return {**split("train", 1), **split("val", 11), **split("test", 21)}


def train(images: list[Any], annotations: list[Any], **changes: Any) -> Files:
    """Three splits, of which training has these images and annotations."""
    files = three_splits()
    return {**files, "annotations/instances_train.json": instances(images, annotations, **changes)}


def convert(tmp_path: Path, files: Files, **hints: Any) -> dataset.DatasetRecord:
    uploads.archive(tmp_path, files)
    return uploads.convert("coco", tmp_path, task="detection", **hints)


def rows(tmp_path: Path, name: str = "train") -> torch.Tensor:
    return dataset.load(tmp_path / "dataset").split(name).labels


class TestConvert:
    def test_boxes_become_corners_of_contiguous_classes(self, tmp_path: Path) -> None:
        record = convert(tmp_path, three_splits())
        assert (record.task, record.classes) == ("detection", ["dog", "cat"])
        assert record.splits == {"train": 2, "validation": 2, "test": 2}
        assert record.boxes == {name: [2, 2] for name in dataset.SPLITS}
        assert record.notes == ["classes 0 to 1 are the category ids 7, 90 of the upload"]
        expected = torch.tensor([[1, 2, 3, 12, 8, 50, 0], [0, 2, 3, 12, 8, 50, 0]])
        assert torch.equal(rows(tmp_path), expected.float().expand(2, 2, 7))

    def test_ids_that_are_class_numbers_need_no_note(self, tmp_path: Path) -> None:
        categories = [{"id": 0, "name": "cat"}]
        content = {
            f"annotations/{name}.json": instances(
                [an_image(key)], [a_box(1, key, [0, 0, 5, 5], category_id=0)], categories=categories
            )
            for key, name in enumerate(("train", "val", "test"))
        }
        pictures = {f"images/{key}.png": uploads.picture(key) for key in range(3)}
        assert convert(tmp_path, {**content, **pictures}).notes == []

    @pytest.mark.parametrize(
        ("json_name", "place"),
        [
            ("instances_train2017", "train2017"),
            ("instances_train2017", "train"),
            ("instances_train2017", "images/train2017"),
            ("instances_train", "images"),
            ("train", "images/train"),
        ],
    )
    def test_layouts_that_are_usual(self, tmp_path: Path, json_name: str, place: str) -> None:
        images = [an_image(key) for key in range(5)]
        annotations = [a_box(key, key, [0, 0, 5, 5]) for key in range(5)]
        files = {f"top/annotations/{json_name}.json": instances(images, annotations)}
        pictures = {f"top/{place}/{key}.png": uploads.picture(key) for key in range(5)}
        captions = {"top/annotations/captions_train2017.json": "{}"}
        record = convert(tmp_path, {**files, **pictures, **captions})
        assert sum(record.splits.values()) == 5
        assert "the validation split was missing" in record.notes[1]

    def test_crowds_are_kept_and_flagged_and_areas_are_the_files(self, tmp_path: Path) -> None:
        annotations = [
            a_box(1, 1, [0, 0, 20, 10], iscrowd=1, area=33),
            a_box(2, 1, [0, 0, 10, 10], area=44.5),
            a_box(3, 2, [0, 0, 10, 10], iscrowd=0),
        ]
        record = convert(tmp_path, train([an_image(1), an_image(2)], annotations))
        found = rows(tmp_path)
        assert found[0, :, boxes.FLAG].tolist() == [boxes.CROWD, boxes.ORDINARY]
        assert found[..., boxes.AREA].tolist() == [[33, 44.5], [100, 0]]
        assert record.boxes is not None
        assert record.boxes["train"] == [0, 2]
        assert any(note.startswith("1 boxes of crowds") for note in record.notes)
        assert "1 classes have no training boxes: dog" in record.notes

    def test_boxes_are_clipped_and_tiny_ones_dropped_with_their_numbers(
        self, tmp_path: Path
    ) -> None:
        annotations = [
            a_box(1, 1, [-2, 15, 10, 10]),
            a_box(2, 1, [3, 3, 0.5, 9]),
            a_box(3, 1, [3, 3, 9, 0]),
            a_box(4, 2, [29.5, 3, 10, 10]),
        ]
        record = convert(tmp_path, train([an_image(1), an_image(2)], annotations))
        assert rows(tmp_path)[0].tolist() == [[1, 0, 15, 8, 20, 40, 0]]
        assert rows(tmp_path)[1].tolist() == [[-1, 0, 0, 0, 0, 0, 0]]
        assert "3 boxes with a side under 1 pixel were dropped" in record.notes
        assert "1 boxes reached beyond their pictures and were clipped" in record.notes

    def test_pictures_of_other_sizes_are_letterboxed(self, tmp_path: Path) -> None:
        files = train(
            [an_image(1), an_image(2, width=60, height=20)],
            [a_box(1, 1, [0, 0, 30, 20]), a_box(2, 2, [6, 2, 12, 4])],
        )
        files["train/2.png"] = uploads.picture(2, size=(20, 60))
        record = convert(tmp_path, files, height=20, width=30)
        assert (record.input.height, record.input.width) == (20, 30)
        found = dataset.load(tmp_path / "dataset").split("train")
        assert found.scales is not None
        assert found.scales.tolist() == [1, 0.5]
        # The area stays that of the original picture.
        assert found.labels[1].tolist() == [[1, 3, 1, 9, 3, 48, 0]]
        assert (found.images[1, :, :10] == 2).all()
        assert (found.images[1, :, 10:] == 114).all()
        assert "1 of 6 pictures were scaled to fit into 20x30 (height x width)" in record.notes

    def test_longer_side_is_at_most_640_unless_it_is_given(self, tmp_path: Path) -> None:
        files = train([an_image(1, width=1280, height=4)], [a_box(1, 1, [0, 0, 30, 4])])
        files["train/1.png"] = uploads.picture(1, size=(4, 1280))
        record = convert(tmp_path, files)
        assert (record.input.height, record.input.width) == (10, 640)

    @pytest.mark.parametrize(("declared", "shown"), [((30, 20), True), ((20, 30), False)])
    def test_turned_pictures_are_upright_unless_annotated_as_they_lie(
        self, tmp_path: Path, declared: tuple[int, int], shown: bool
    ) -> None:
        height, width = declared
        files = train([an_image(1, width=width, height=height)], [a_box(1, 1, [0, 0, 20, 20])])
        files["train/1.png"] = uploads.picture(1, turned=6)
        record = convert(tmp_path, files)
        assert (record.input.height == 30) is shown

    def test_grey_and_deep_pictures_become_grey(self, tmp_path: Path) -> None:
        files = three_splits()
        for name in [name for name in files if name.endswith(".png")]:
            files[name] = uploads.picture(int(Path(name).stem), mode="L")
        deep = [[256 * 77 + row] * 30 for row in range(20)]
        files["train/1.png"] = uploads.png(torch.tensor(deep).numpy().astype("uint16"))
        record = convert(tmp_path, files)
        assert record.input.channels == 1
        assert any("so that 65535 becomes 255" in note for note in record.notes)
        assert (dataset.load(tmp_path / "dataset").split("train").images[0] == 77).all()

    def test_few_unreadable_pictures_are_left_out_with_their_boxes(self, tmp_path: Path) -> None:
        noise = torch.randint(0, 256, (20, 30), generator=torch.Generator().manual_seed(0))
        cut = uploads.png(noise.numpy().astype("uint8"))[:-200]
        whole = convert(tmp_path / "whole", three_splits())
        record = convert(tmp_path / "few", {**three_splits(), "train/2.png": cut}, **HALF)
        assert record.splits["train"] == whole.splits["train"] - 1
        assert "train/2.png is not a readable picture" in record.notes[1]
        assert record.boxes is not None
        assert sum(record.boxes["train"]) == 2
        split = dataset.load(tmp_path / "few" / "dataset").split("train")
        assert len(split.images) == len(split.labels) == record.splits["train"]


HALF = {"max_bad_share": 0.5}


def refused(tmp_path: Path, files: Files, **hints: Any) -> errors.UploadRefused:
    return uploads.refused("coco", tmp_path, files, task="detection", **hints)


class TestRefusedAnnotations:
    @pytest.mark.parametrize(
        ("images", "annotations", "words"),
        [
            ([], [a_box(1, 1, [0, 0, 5, 5], category_id=1)], "annotation 1: there is no category"),
            ([], [a_box(1, 3, [0, 0, 5, 5])], "annotation 1: there is no image 3"),
            ([], [a_box(1, 1, [0, 0, -5, 5])], "negative size: -5 x 5"),
            ([], [a_box(1, 1, [40, 0, 5, 5])], "outside of the picture of 30x20"),
            ([], [a_box(1, 1, [0, 0, 5])], "'bbox' should be"),
            ([], [a_box(1, 1, [0, 0, 5, "5"])], "'bbox' should be"),  # type: ignore[list-item]  # what is refused
            ([], [a_box(1, 1, [0, 0, 5, float("nan")])], "not finite"),
            ([], [a_box(1, 1, [0, 0, 5, 10**400])], "'bbox' should be"),
            ([], [a_box(1, 1, [0, 0, 5, 5], area=-1)], "area is -1"),
            ([], [a_box(1, 1, [0, 0, 5, 5], area="x")], "'area' should be"),
            ([], [a_box(1, 1, [0, 0, 5, 5], iscrowd=2)], "'iscrowd' should be"),
            ([], ["x"], "annotation None: there is no image"),
            ([an_image(1)], [], "image 1 is there twice"),
            ([an_image(3)], [], "no picture '3.png'"),
            ([an_image(3, file_name="../1.png")], [], "no picture '../1.png'"),
            ([an_image(3, file_name="/etc/hosts")], [], "no picture '/etc/hosts'"),
            ([an_image(3, file_name="1.png")], [], "has the picture '1.png' of image 1"),
            ([an_image(3, file_name="")], [], "has no 'file_name'"),
            ([an_image(3, width=0)], [], "needs a 'height' and a 'width'"),
            ([an_image(3, file_name="2.png", width=31)], [], "has 20x30 pixels"),
            ([{"file_name": "2.png"}], [], "has no 'id'"),
        ],
    )
    def test_are_named(
        self, tmp_path: Path, images: list[Any], annotations: list[Any], words: str
    ) -> None:
        kept = [an_image(1), a_box(9, 1, [0, 0, 5, 5])]
        found = refused(tmp_path, train([kept[0], *images], [kept[1], *annotations]))
        assert found.refusal == "bad_labels"
        assert words in found.message

    def test_are_all_told_and_fifty_listed(self, tmp_path: Path) -> None:
        wrong = [a_box(key, 1, [0, 0, 5, 5], category_id=1) for key in range(60)]
        found = refused(tmp_path, train([an_image(1)], wrong))
        first, *others = found.message.splitlines()
        assert first == "the upload has 60 problems, the first 50:"
        assert len(others) == 50
        assert "instances_train.json: annotation 49" in others[-1]

    def test_are_told_with_damaged_pictures(self, tmp_path: Path) -> None:
        files = train([an_image(1)], [a_box(1, 1, [0, 0, -5, 5])])
        files["val/11.png"] = uploads.picture(11)[:60]
        found = refused(tmp_path, files)
        assert "the upload has 2 problems:" in found.message
        assert "val/11.png is not a readable picture" in found.message

    @pytest.mark.parametrize(
        ("categories", "words"),
        [
            ([{"id": 90, "name": "cat"}, {"id": 90, "name": "dog"}], "the same id"),
            ([{"id": 90, "name": "cat"}, {"id": 7, "name": "cat"}], "'cat' is the name of"),
            ([{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}], "other categories than"),
            ([{"id": "x", "name": "dog"}], "needs a whole number 'id'"),
        ],
    )
    def test_categories(self, tmp_path: Path, categories: list[Any], words: str) -> None:
        found = refused(tmp_path, train([an_image(1)], [], categories=categories))
        assert words in found.message

    @pytest.mark.parametrize(
        ("text", "code"), [("{", "unreadable"), ("[" * 99999, "unreadable"), ("[]", "bad_labels")]
    )
    def test_files(self, tmp_path: Path, text: str, code: str) -> None:
        files = {**three_splits(), "annotations/instances_train.json": text}
        assert refused(tmp_path, files).refusal == code


class TestRefusedSplits:
    def test_same_picture_in_two_is_named(self, tmp_path: Path) -> None:
        files = {**three_splits(), "val/12.png": uploads.picture(2)}
        found = refused(tmp_path, files)
        assert "val/12.png of the validation split is the same picture as" in found.message
        assert "train/2.png" in found.message

    def test_without_an_object_is_named(self, tmp_path: Path) -> None:
        files = {
            **three_splits(),
            "annotations/instances_test.json": instances(
                [an_image(21)], [a_box(1, 21, [0, 0, 9, 9], iscrowd=1)]
            ),
        }
        assert "the test split has no box that counts" in refused(tmp_path, files).message

    def test_too_few_pictures(self, tmp_path: Path) -> None:
        found = refused(tmp_path, split("train", 1))
        assert found.refusal == "no_images"
        assert "at least 3" in found.message

    @pytest.mark.parametrize(
        "files", [split("val", 1), {**three_splits(), **train([], [])}, {"README": b"x"}]
    )
    def test_without_training(self, tmp_path: Path, files: Files) -> None:
        assert refused(tmp_path, files).refusal in ("no_images", "unsupported_format")

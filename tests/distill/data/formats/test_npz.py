"""NPZ arrays in every usual layout become a prepared data set; objects are refused."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distill.data.formats import uploads
from workers.distill import errors
from workers.distill.data import dataset


def arrays(count: int, *, shape: tuple[int, ...] = (3, 6, 5), seed: int = 0) -> dict[str, Any]:
    draw = np.random.RandomState(seed)
    return {
        "images": draw.randint(0, 256, (count, *shape)).astype(np.uint8),
        "labels": np.arange(count) % 4,
    }


def convert(tmp_path: Path, contents: dict[str, Any], **given: Any) -> dataset.DatasetRecord:
    with (tmp_path / "upload").open("wb") as stream:
        np.savez_compressed(stream, **contents)
    return uploads.convert("npz", tmp_path, **given)


def refusal(tmp_path: Path, contents: dict[str, Any], **given: Any) -> errors.UploadRefused:
    with pytest.raises(errors.UploadRefused) as caught:
        convert(tmp_path, contents, **given)
    return caught.value


class TestConvert:
    def test_images_and_labels_become_three_splits(self, tmp_path: Path) -> None:
        record = convert(tmp_path, arrays(40))
        assert record.splits == {"train": 28, "validation": 4, "test": 8}
        assert record.classes == ["0", "1", "2", "3"]
        assert not record.flip
        assert "not mirrored" in record.notes[0]
        assert (record.input.channels, record.input.height, record.input.width) == (3, 6, 5)

    @pytest.mark.parametrize("validation", ["val", "validation"])
    def test_given_splits_are_kept(self, tmp_path: Path, validation: str) -> None:
        contents: dict[str, Any] = {}
        for seed, (name, count) in enumerate({"train": 12, validation: 4, "test": 8}.items()):
            split = arrays(count, seed=seed)
            contents |= {f"x_{name}": split["images"], f"y_{name}": split["labels"]}
        record = convert(tmp_path, contents)
        assert record.splits == {"train": 12, "validation": 4, "test": 8}
        test = dataset.load(tmp_path / "dataset").split("test")
        assert torch.equal(test.images, torch.from_numpy(contents["x_test"]))
        assert torch.equal(test.labels, torch.from_numpy(contents["y_test"]))

    @pytest.mark.parametrize(
        ("shape", "axes"),
        [
            ((3, 6, 5), (0, 1, 2, 3)),
            ((3, 6, 6), (0, 2, 3, 1)),
            ((1, 6, 5), (0, 2, 3, 1)),
            ((3, 3, 3), (0, 1, 2, 3)),
        ],
    )
    def test_both_layouts_are_recognised(
        self, tmp_path: Path, shape: tuple[int, int, int], axes: tuple[int, int, int, int]
    ) -> None:
        split = arrays(8, shape=shape)
        contents = {
            f"{letter}_{name}": value
            for name in ("train", "val", "test")
            for letter, value in (("x", split["images"].transpose(axes)), ("y", split["labels"]))
        }
        convert(tmp_path, contents)
        images = dataset.load(tmp_path / "dataset").split("train").images
        assert torch.equal(images, torch.from_numpy(split["images"]))

    def test_grey_images_need_no_channel_axis(self, tmp_path: Path) -> None:
        assert convert(tmp_path, arrays(20, shape=(6, 5))).input.channels == 1

    def test_floats_in_zero_to_one_are_rounded_to_bytes(self, tmp_path: Path) -> None:
        whole = arrays(20)
        images_of = []
        for name, images in (("u", whole["images"]), ("f", whole["images"] / 255)):
            (tmp_path / name).mkdir()
            convert(tmp_path / name, {**whole, "images": images})
            images_of.append(dataset.load(tmp_path / name / "dataset").split("train").images)
        assert torch.equal(images_of[0], images_of[1])

    def test_labels_may_be_a_column(self, tmp_path: Path) -> None:
        whole = arrays(20)
        record = convert(tmp_path, {**whole, "labels": whole["labels"][:, None].astype(np.uint8)})
        assert len(record.classes) == 4

    def test_fortran_order_is_understood(self, tmp_path: Path) -> None:
        whole = arrays(20)
        record = convert(tmp_path, {**whole, "images": np.asfortranarray(whole["images"])})
        assert record.input.mean == convert(tmp_path, whole).input.mean

    def test_classes_without_images_are_noted(self, tmp_path: Path) -> None:
        record = convert(tmp_path, {**arrays(20), "labels": np.arange(20) % 4 * 2})
        assert "3 classes have no training images: 1, 3, 5" in record.notes


AS_PUBLISHED = [
    ("train_images", "train_labels"),  # MedMNIST
    ("X_train", "Y_train"),
    ("trainX", "trainy"),
    ("Xtrain", "ytrain"),
    ("train_data", "train_targets"),
    ("X", "y"),
    ("x", "Y"),
    ("data", "labels"),
    ("Images", "Targets"),
    ("arr_0", "arr_1"),
]


class TestConvertAsPublished:
    @pytest.mark.parametrize(("images", "labels"), AS_PUBLISHED)
    def test_usual_names_are_known(self, tmp_path: Path, images: str, labels: str) -> None:
        whole = arrays(20)
        record = convert(tmp_path, {images: whole["images"], labels: whole["labels"][:, None]})
        assert record.classes == ["0", "1", "2", "3"]
        assert sum(record.splits.values()) == 20

    def test_splits_of_medmnist_are_kept_and_other_arrays_named(self, tmp_path: Path) -> None:
        contents: dict[str, Any] = {"ids": np.arange(3)}
        for split, count in (("train", 12), ("val", 4), ("test", 8)):
            whole = arrays(count)
            contents[f"{split}_images"] = whole["images"].transpose(0, 2, 3, 1)
            contents[f"{split}_labels"] = whole["labels"][:, None].astype(np.uint8)
        record = convert(tmp_path, contents)
        assert record.splits == {"train": 12, "validation": 4, "test": 8}
        assert "arrays that are not needed were left out: ids" in record.notes

    @pytest.mark.parametrize("kind", ["i8", "u4", "f4", "f8", "i2"])
    def test_whole_pixels_of_any_dtype_are_bytes(self, tmp_path: Path, kind: str) -> None:
        whole = arrays(20)
        convert(tmp_path, whole)
        expected = dataset.load(tmp_path / "dataset").split("train").images
        convert(tmp_path, {**whole, "images": whole["images"].astype(kind)})
        assert torch.equal(dataset.load(tmp_path / "dataset").split("train").images, expected)

    def test_deep_pixels_are_scaled_by_their_range(self, tmp_path: Path) -> None:
        deep = np.arange(20, dtype=np.uint16)[:, None, None] * np.full((1, 6, 5), 210, np.uint16)
        record = convert(tmp_path, {**arrays(20), "images": deep})
        assert "up to 3990: they were scaled so that 4095 becomes 255" in record.notes[0]
        images = dataset.load(tmp_path / "dataset").split("train").images
        assert int(images.max()) == round(3990 / 4095 * 255)
        record = convert(tmp_path, {**arrays(20), "images": deep}, max_value=65_535)
        assert int(dataset.load(tmp_path / "dataset").split("train").images.max()) == 16

    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            ((np.arange(20) % 4).astype(float), ["0", "1", "2", "3"]),
            (np.arange(20) % 2 == 0, ["0", "1"]),
            (np.eye(5)[np.arange(20) % 4], ["0", "1", "2", "3", "4"]),
            (np.array(["dog", "cat"] * 10), ["cat", "dog"]),
            (np.array([b"dog", b"cat"] * 10), ["cat", "dog"]),
            (np.array(["9", "10"] * 10), ["9", "10"]),
            (np.arange(20) % 4 + 1, ["1", "2", "3", "4"]),
        ],
    )
    def test_labels_of_every_kind(self, tmp_path: Path, labels: Any, classes: list[str]) -> None:
        assert convert(tmp_path, {**arrays(20), "labels": labels}).classes == classes

    def test_labels_from_one_are_told_unless_names_say_otherwise(self, tmp_path: Path) -> None:
        given = {**arrays(20), "labels": np.arange(20) % 3 + 1}
        record = convert(tmp_path, {**given, "class_names": np.array(["a", "b", "c"])})
        assert record.classes == ["a", "b", "c"]
        assert record.notes[0].startswith("labels count from 1 to 3: label 1 is class 0")
        record = convert(tmp_path, {**given, "label_names": np.array(["none", "a", "b", "c"])})
        assert record.classes == ["none", "a", "b", "c"]

    def test_names_that_are_pickles_are_not_read(self, tmp_path: Path) -> None:
        record = convert(tmp_path, {**arrays(20), "class_names": np.array(["a", 1], dtype=object)})
        assert record.classes == ["0", "1", "2", "3"]
        assert "'class_names' holds pickled objects" in record.notes[0]

    def test_split_without_labels_is_left_out(self, tmp_path: Path) -> None:
        record = convert(tmp_path, {**arrays(20), "x_test": arrays(4)["images"]})
        assert record.splits["test"] == 4
        assert "the test split was left out: 'x_test' has no labels" in record.notes


def dense_arrays(count: int = 20, *, classes: int = 3) -> dict[str, Any]:
    draw = np.random.RandomState(0)
    masks = draw.randint(0, classes, (count, 6, 5))
    masks[:, 0, 0] = 255
    return {"images": arrays(count)["images"], "labels": masks}


def convert_dense(tmp_path: Path, contents: dict[str, Any]) -> dataset.DatasetRecord:
    return convert(tmp_path, contents, task="segmentation")


class TestConvertMasks:
    def test_images_and_masks_become_three_splits(self, tmp_path: Path) -> None:
        record = convert_dense(tmp_path, dense_arrays())
        assert record.task == "segmentation"
        assert record.classes == ["0", "1", "2"]
        assert record.splits == {"train": 14, "validation": 2, "test": 4}
        assert dataset.load(tmp_path / "dataset").split("test").labels.dtype == torch.uint8

    @pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
    def test_given_splits_are_kept(self, tmp_path: Path, kind: type) -> None:
        whole = dense_arrays()
        contents = {
            f"{letter}_{name}": value
            for name in ("train", "val", "test")
            for letter, value in (("x", whole["images"]), ("y", whole["labels"].astype(kind)))
        }
        convert_dense(tmp_path, contents)
        test = dataset.load(tmp_path / "dataset").split("test")
        assert torch.equal(test.images, torch.from_numpy(whole["images"]))
        assert torch.equal(test.labels, torch.from_numpy(whole["labels"].astype(np.uint8)))

    def test_classes_may_be_given_by_number_or_name(self, tmp_path: Path) -> None:
        for given, wanted in (
            (np.array(4), ["0", "1", "2", "3"]),
            (np.array(["sky", "road", "car", "tree"]), ["sky", "road", "car", "tree"]),
        ):
            record = convert_dense(tmp_path, {**dense_arrays(), "classes": given})
            assert record.classes == wanted
            assert f"1 classes have no training pixels: {wanted[3]}" in record.notes

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"labels": np.zeros(20, int)}, "one whole number a pixel"),
            ({"labels": np.zeros((20, 6, 5))}, "one whole number a pixel"),
            ({"labels": np.zeros((20, 5, 6), int)}, r"for images of \[20, 6, 5\]"),
            ({"labels": np.zeros((19, 6, 5), int)}, r"for images of \[20, 6, 5\]"),
            ({"labels": np.full((20, 6, 5), 256)}, "outside 0..254"),
            ({"labels": np.full((20, 6, 5), -1)}, "outside 0..254"),
            ({"labels": np.full((20, 6, 5), 255)}, "no pixel of labels has a class"),
            ({"labels": np.zeros((20, 6, 5), int)}, "the highest label is 0"),
            ({"classes": np.array(2)}, "highest class in the masks is 2, but 'classes' has 2"),
            ({"classes": np.array(10**15)}, "2 to 255 different classes"),
            ({"classes": np.array(1)}, "2 to 255 different classes"),
            ({"classes": np.array(["a", "b", "b"])}, "'b' is the name of classes 1 and 2"),
            ({"classes": np.array([1.5])}, "give their number, or a list of their names"),
        ],
    )
    def test_faults_are_refused(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(errors.UploadRefused, match=words) as caught:
            convert_dense(tmp_path, {**dense_arrays(), **changes})
        assert caught.value.refusal == "bad_labels"

    def test_missing_masks_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(errors.UploadRefused, match="no array 'y_train'"):
            convert_dense(tmp_path, {"x_train": dense_arrays()["images"]})


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"images": np.array([{}] * 20, dtype=object)}, "unsafe_archive"),
            ({"images": np.full((20, 3, 6, 5), -1)}, "unsupported_format"),
            ({"images": np.full((20, 3, 6, 5), 65_536)}, "unsupported_format"),
            ({"images": np.full((20, 3, 6, 5), 1.5)}, "unsupported_format"),
            ({"images": np.full((20, 3, 6, 5), np.nan)}, "unsupported_format"),
            ({"images": np.zeros((20, 7, 6, 5), dtype=np.uint8)}, "unsupported_format"),
            ({"images": np.zeros((20, 6), dtype=np.uint8)}, "unsupported_format"),
            ({"images": np.zeros((0, 3, 6, 5), np.uint8), "labels": np.zeros(0, int)}, "no_images"),
            ({"labels": np.zeros(19, int)}, "bad_labels"),
            ({"labels": np.zeros(20)}, "bad_labels"),
            ({"labels": np.zeros((20, 4), int)}, "bad_labels"),
            ({"labels": np.full(20, -2)}, "bad_labels"),
            ({"labels": np.full(20, 10**12)}, "bad_labels"),
            ({"labels": np.arange(20) * 5000}, "bad_labels"),
            ({"classes": np.array(["a" * 201, *"bcdefghij"])}, "bad_labels"),
            ({"labels": np.zeros(20, int)}, "bad_labels"),
            ({"labels": np.full(20, 0.5)}, "bad_labels"),
            ({"labels": np.eye(20, 4)[:, ::-1] + np.eye(20, 4)}, "bad_labels"),
            ({"labels": np.full((20, 4), 0.25)}, "bad_labels"),
            ({"classes": np.array(["a", "b"])}, "bad_labels"),
            ({"data": np.zeros(1)}, "unsupported_format"),
        ],
    )
    def test_faults_are_refused(self, tmp_path: Path, changes: dict[str, Any], code: str) -> None:
        assert refusal(tmp_path, {**arrays(20), **changes}).refusal == code

    def test_missing_labels_are_named(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, {"x_train": arrays(20)["images"]})
        assert error.refusal == "bad_labels"
        assert "'y_train'" in error.message

    def test_other_arrays_are_listed(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, {"things": np.zeros(3)})
        assert error.refusal == "unsupported_format"
        assert "things" in error.message

    def test_splits_of_different_sizes_are_refused(self, tmp_path: Path) -> None:
        small, large = arrays(20), arrays(20, shape=(3, 8, 8))
        contents = {
            "x_train": small["images"],
            "y_train": small["labels"],
            "x_test": large["images"],
            "y_test": large["labels"],
        }
        assert refusal(tmp_path, contents).refusal == "mixed_sizes"

    def test_size_that_was_not_asked_for_is_refused(self, tmp_path: Path) -> None:
        assert "input.height says 8" in refusal(tmp_path, arrays(20), height=8).message

    def test_headers_that_claim_more_than_there_is_cost_nothing(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 3, 8, 8)}
        np.lib.format.write_array_header_1_0(stream, header)
        with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
            for name in ("images", "labels"):
                archive.writestr(f"{name}.npy", stream.getvalue() + bytes(100))
        with pytest.raises(errors.UploadRefused, match="cut short"):
            uploads.convert("npz", tmp_path)

    def test_headers_that_are_no_python_are_refused(self, tmp_path: Path) -> None:
        text = b"{'descr': '|u1', 'shape': (("
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        with zipfile.ZipFile(tmp_path / "upload", "w") as archive:
            for name in ("images", "labels"):
                archive.writestr(f"{name}.npy", header)
        with pytest.raises(errors.UploadRefused, match="damaged header"):
            uploads.convert("npz", tmp_path)

    def test_bombs_are_refused(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, {**arrays(20), "x_test": np.zeros(80 << 20, dtype=np.uint8)})
        assert error.refusal == "too_large"

    @pytest.mark.parametrize("text", [b"", b"hello", b"PK\x03\x04 broken"])
    def test_other_files_are_unreadable(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "upload").write_bytes(text)
        with pytest.raises(errors.UploadRefused) as caught:
            uploads.convert("npz", tmp_path)
        assert caught.value.refusal == "unreadable"

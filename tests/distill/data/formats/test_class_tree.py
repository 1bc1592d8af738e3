"""Splits and classes are found as people pack them; what is left out is told."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from workers.distill import errors
from workers.distill.data.formats import class_tree, folders


def find(root: Path, files: Iterable[str]) -> tuple[list[str], dict[str, int], list[str]]:
    """Return classes, pictures by split and notes for a tree of empty files and folders."""
    for name in files:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            place.mkdir(exist_ok=True)
        else:
            place.touch()
    found = class_tree.find(root)
    return found.classes, {name: len(split) for name, split in found.given.items()}, found.notes


def classes(prefix: str = "", count: int = 2, names: Iterable[str] = ("cat", "dog")) -> list[str]:
    return [f"{prefix}{name}/{number}.png" for name in names for number in range(count)]


def flat(prefix: str, count: int = 3) -> list[str]:
    return [f"{prefix}{number}.png" for number in range(count)]


SPLIT_NAMES = {
    "train": "train Train TRAINING training_set trainset TrainImages seg_train 01-train train2017",
    "validation": "val Valid validation dev eval val_images valset VAL2017 development",
    "test": "test Testing test_set seg_test tests test1 holdout",
    folders.UNLABELLED: "unlabelled unlabeled_test seg_pred predict",
    None: "cat invalid bullet_train test_tube dev_board trainer contest images data sampled",
}


class TestSplitOf:
    @pytest.mark.parametrize(
        ("name", "split"),
        [(name, split) for split, names in SPLIT_NAMES.items() for name in names.split()],
    )
    def test_knows_the_usual_names(self, name: str, split: str | None) -> None:
        assert folders.split_of(name) == split

    def test_knows_other_names_by_their_siblings(self) -> None:
        siblings = ["pets_train", "pets_test"]
        assert [folders.split_of(name, siblings) for name in siblings] == ["train", "test"]
        assert folders.split_of("bullet_train", ["cat", "bullet_train"]) is None


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ("Training", "Testing"),
            ("training_set", "test_set"),
            ("seg_train/seg_train", "seg_test/seg_test"),
            ("pets_train", "pets_test"),
            ("data/train/images", "data/test/images"),
        ],
    )
    def test_have_many_names(self, tmp_path: Path, train: str, test: str) -> None:
        files = [*classes(f"ds/{train}/", 4), *classes(f"ds/{test}/")]
        found, given, _ = find(tmp_path, files)
        assert (found, given) == (["cat", "dog"], {"train": 8, "test": 4})

    @pytest.mark.parametrize(
        ("beside", "note"),
        [
            (flat("test/"), "'test' was left out: its pictures have no labels"),
            (flat("test/unknown/"), "'test' was left out: its pictures have no labels"),
            (flat("unlabelled/"), "'unlabelled' was left out: its name says"),
            (flat("single_prediction/"), "'single_prediction' was left out: its name says"),
            (flat("samples/"), "'samples' was left out: it lies beside the data set"),
            (classes("ds/train/"), "'ds' was left out: it looks like another copy"),
            (classes("train_mini/", 1), "'train_mini' was left out: 'train' is the train split"),
            (["annotations/a.json"], "no pictures were left out: 1 ending in .json"),
            (["test/cat/readme.md"], "'test' was left out: it holds no pictures"),
            (flat(""), "3 pictures directly in 'the archive' were left out"),
        ],
    )
    def test_are_read_whatever_lies_beside_them(
        self, tmp_path: Path, beside: list[str], note: str
    ) -> None:
        files = [*classes("train/", 4), *classes("val/"), *beside]
        found, given, notes = find(tmp_path, files)
        assert (found, given) == (["cat", "dog"], {"train": 8, "validation": 4})
        assert any(note in one for one in notes)

    def test_inside_themselves_are_read_once(self, tmp_path: Path) -> None:
        parts = {"train": 4, "val": 2, "test": 1}
        places = [f"x/{copy}{part}/" for copy in ("", "x/") for part in parts]
        files = [file for at in places for file in classes(at, parts[Path(at).name])]
        assert find(tmp_path, files)[1] == {"train": 8, "validation": 4, "test": 2}

    def test_called_eval_are_for_validation_or_test(self, tmp_path: Path) -> None:
        files = [*classes("train/", 4), *classes("eval/")]
        assert find(tmp_path / "a", files)[1] == {"train": 8, "validation": 4}
        files += classes("dev/", 1)
        assert find(tmp_path / "b", files)[1] == {"train": 8, "validation": 2, "test": 4}

    def test_that_are_two_of_a_kind_are_refused(self, tmp_path: Path) -> None:
        files = [*classes("train/"), *classes("test1/"), *classes("test2/")]
        with pytest.raises(errors.UploadRefused, match="'test1' and 'test2' are the same split"):
            find(tmp_path, files)

    def test_may_lie_in_each_class(self, tmp_path: Path) -> None:
        files = [file for split in ("train", "val") for file in flat(f"cat/{split}/")]
        files += flat("dog/train/")
        found, given, notes = find(tmp_path, files)
        assert (found, given) == (["cat", "dog"], {"train": 6, "validation": 3})
        assert "each class folder has its own folders of splits: train, validation" in notes

    def test_may_list_their_classes(self, tmp_path: Path) -> None:
        files = [*classes("t/train/", names=["n1/images", "n2/images"]), *flat("t/val/images/")]
        (tmp_path / "t/val").mkdir(parents=True)
        text = "0.png\tn2\t0\t0\t9\t9\n1.png\tn1\t0\t0\t9\t9\n"
        (tmp_path / "t/val/val_annotations.txt").write_text(text)
        found, given, notes = find(tmp_path, [*files, *flat("t/test/images/")])
        assert (found, given) == (["n1", "n2"], {"train": 4, "validation": 2})
        labels = {one.file.name: one.label for one in class_tree.find(tmp_path).given["validation"]}
        assert labels == {"0.png": 1, "1.png": 0}
        assert any("read from 't/val/val_annotations.txt'" in note for note in notes)
        assert "1 pictures directly in 't/val' were left out: they lie in no class folder" in notes


class TestClasses:
    def test_may_be_empty(self, tmp_path: Path) -> None:
        files = [*classes("train/"), "train/eel/", *classes("val/"), "val/eel/"]
        found, given, notes = find(tmp_path, files)
        assert (found, given) == (["cat", "dog", "eel"], {"train": 4, "validation": 4})
        assert "1 classes have no validation images: eel" in notes

    def test_may_differ_in_case_between_splits(self, tmp_path: Path) -> None:
        files = [*classes("train/"), *classes("val/", names=("Cat", "dog"))]
        found, given, notes = find(tmp_path, files)
        assert (found, given["validation"]) == (["cat", "dog"], 4)
        assert "classes of the validation split were taken: 'Cat' as 'cat'" in notes

    @pytest.mark.parametrize(
        ("beside", "note"),
        [
            (flat("samples/"), "'samples' was left out: it is named for what accompanies"),
            (flat("test/"), "'test' was left out: it is named like a split"),
            (classes("copy/"), "'copy' was left out: it repeats the folders beside it"),
        ],
    )
    def test_are_not_what_lies_beside_them(
        self, tmp_path: Path, beside: list[str], note: str
    ) -> None:
        found, given, notes = find(tmp_path, [*classes(), *beside])
        assert (found, given) == (["cat", "dog"], {"train": 4})
        assert any(note in one for one in notes)

    def test_named_like_a_split_are_classes_in_splits_alone(self, tmp_path: Path) -> None:
        names = ("bus", "car", "train")
        files = [*classes("train/", names=names), *classes("val/", names=names)]
        assert find(tmp_path / "a", files)[0] == list(names)
        with pytest.raises(errors.UploadRefused, match="put all class folders into a folder"):
            find(tmp_path / "b", classes(names=names))

    def test_with_folders_in_them_are_told(self, tmp_path: Path) -> None:
        files = [*flat("animals/cat/"), *flat("animals/dog/"), *flat("cars/audi/")]
        found, _, notes = find(tmp_path, files)
        assert found == ["animals", "cars"]
        assert any("(audi, cat, dog) belong to the class of the outer" in note for note in notes)

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ([*flat("JPEGImages/"), *flat("SegmentationClass/")], "no class folders"),
            ([*flat("train/"), *flat("test/")], "no class folders"),
            (["a/1.dcm", *flat("b/")], "'a' has no pictures, but 1 ending in .dcm"),
            (["train.zip", "test.zip"], "unpack the archives in it"),
            ([*classes("train/"), *flat("val/cow/")], "validation split has the class 'cow'"),
        ],
    )
    def test_that_are_none_are_refused(self, tmp_path: Path, files: list[str], words: str) -> None:
        with pytest.raises(errors.UploadRefused, match=words):
            find(tmp_path, files)

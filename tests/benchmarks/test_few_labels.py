import pytest
import torch

from benchmarks import few_labels
from workers.distill.config.job import Input
from workers.distill.data import dataset


@pytest.fixture
def whole(tmp_path):
    """A data set of 40 training images of two classes."""
    labels = torch.arange(40) % 2
    images = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1).repeat(1, 1, 2, 2)
    record = dataset.DatasetRecord(
        classes=["even", "odd"],
        splits={"train": 40, "validation": 4, "test": 4},
        input=Input(channels=1, height=2, width=2, mean=[0.1], std=[0.2]),
    )
    few = (images[:4].clone(), labels[:4].clone())
    dataset.write(
        tmp_path / "whole", record, {"train": (images, labels), "validation": few, "test": few}
    )
    return tmp_path / "whole"


def labelled(whole, name, *, seed=0, keep_unlabelled=False):
    """Return the training split with ten labels, and the record of its data set."""
    folder = whole.parent / name
    few_labels.write_labelled(whole, folder, 10, seed, keep_unlabelled=keep_unlabelled)
    stored = dataset.load(folder)
    return stored.split("train"), stored.record


class TestWriteLabelled:
    def test_keeps_images_with_their_labels_class_by_class(self, whole):
        train, record = labelled(whole, "few")
        assert train.labels.bincount().tolist() == [5, 5]
        assert torch.equal(train.images[:, 0, 0, 0] % 2, train.labels.to(torch.uint8))
        assert (record.labelled, record.splits["train"]) == (None, 10)
        assert record.input.mean == [0.1]

    def test_keeps_the_same_images_labelled_among_all(self, whole):
        few, _ = labelled(whole, "few")
        train, record = labelled(whole, "every", keep_unlabelled=True)
        assert record.labelled == {"train": 10, "validation": 4, "test": 4}
        known = train.labels != dataset.UNLABELLED
        assert torch.equal(train.images[known], few.images)
        assert torch.equal(train.labels[known], few.labels)

    def test_draws_others_for_each_seed(self, whole):
        first, _ = labelled(whole, "first")
        second, _ = labelled(whole, "second", seed=1)
        assert not torch.equal(first.images, second.images)


class TestEpochs:
    @pytest.mark.parametrize(("images", "epochs"), [(50, 300), (100, 150), (250, 75), (1257, 15)])
    def test_make_as_many_updates_as_all_images(self, images, epochs):
        assert few_labels.epochs_for(images) == epochs


class TestTable:
    def test_has_differences_to_the_student_alone_of_the_same_labels(self):
        lines = [
            {"seed": 0, "labels": 50, "scores": {"alone": 0.5, "kd": 0.75}},
            {"seed": 1, "labels": 50, "scores": {"alone": 0.5, "kd": 0.5}},
            {"seed": 0, "labels": 1257, "scores": {"alone": 1.0, "kd": 0.75}},
        ]
        table = few_labels.markdown(few_labels.summary(lines)).splitlines()
        assert table[2:] == [
            "| 50 | alone | 50.00 ± 0.00 |  |  |",
            "| 50 | kd | 62.50 ± 17.68 | +12.50 ± 17.68 | 1 of 2 |",
            "| 1,257 | alone | 100.00 ± 0.00 |  |  |",
            "| 1,257 | kd | 75.00 ± 0.00 | -25.00 ± 0.00 | 0 of 1 |",
        ]

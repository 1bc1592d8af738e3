import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import Tensor

from tests.distill.data.test_dataset import a_record, some_splits
from workers.distill import errors
from workers.distill.config.training import expand
from workers.distill.data import dataset
from workers.distill.data.loader import BatchLoader
from workers.distill.data.types import Batch
from workers.distill.networks.interface import Features
from workers.distill.tasks.catalog import TASKS

TASK = TASKS["segmentation"]


def a_dense_record(**changes: Any) -> dataset.DatasetRecord:
    return a_record(task="segmentation", **changes)


def some_masks(kind: torch.dtype = torch.uint8) -> dict[str, tuple[Tensor, Tensor]]:
    splits = {}
    for name, (images, _) in some_splits().items():
        masks = torch.arange(15).reshape(3, 5).expand(len(images), 3, 5) % 2
        masks = masks.clone().to(kind)
        masks[:, 0, 0] = dataset.IGNORE_INDEX
        splits[name] = (images, masks)
    return splits


class TestLoadMasks:
    @pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
    def test_returns_what_was_written(self, tmp_path: Path, kind: torch.dtype) -> None:
        dataset.write(tmp_path, a_dense_record(), some_masks(kind))
        stored = dataset.load(tmp_path)
        assert stored.record.task == "segmentation"
        for name, (_, masks) in some_masks(kind).items():
            labels = TASK.read_split(stored, name).labels
            assert labels.dtype == kind
            assert torch.equal(labels, masks)

    @pytest.mark.parametrize(
        ("masks", "words"),
        [
            (torch.zeros(4, dtype=torch.int64), r"uint8 or int64 \[4, 3, 5\], got int64 \[4\]"),
            (torch.zeros(4, 5, 3, dtype=torch.uint8), r"got uint8 \[4, 5, 3\]"),
            (torch.zeros(4, 3, 5, dtype=torch.int32), "got int32"),
            (torch.full((4, 3, 5), 2, dtype=torch.uint8), "2 to 2, but there are 2 classes"),
            (torch.full((4, 3, 5), 255, dtype=torch.uint8), "no pixel of the train split has"),
            (torch.full((4, 3, 5), -1), "-1 to -1"),
        ],
    )
    def test_masks_that_are_not_as_recorded_are_a_bad_data_set(
        self, tmp_path: Path, masks: Tensor, words: str
    ) -> None:
        splits = some_masks()
        dataset.write(tmp_path, a_dense_record(), {**splits, "train": (splits["train"][0], masks)})
        with pytest.raises(errors.BadDataset, match=words):
            TASK.read_split(dataset.load(tmp_path), "train")

    def test_classes_leave_a_number_for_ignored_pixels(self, tmp_path: Path) -> None:
        names = [str(number) for number in range(256)]
        dataset.write(tmp_path, a_dense_record(classes=names), some_masks())
        with pytest.raises(errors.BadDataset, match="malformed: masks have at most 255 classes"):
            TASK.read_split(dataset.load(tmp_path), "train")
        dataset.write(tmp_path, a_dense_record(classes=names[:255]), some_masks())
        assert len(TASK.read_split(dataset.load(tmp_path), "train").labels) == 4


class TestLoss:
    def test_is_the_mean_over_pixels_that_have_a_class(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, 4, 4, generator=generator)
        masks = torch.randint(0, 3, (2, 4, 4), generator=generator).to(torch.uint8)
        masks[:, 0] = dataset.IGNORE_INDEX
        batch = Batch(torch.zeros(2, 1, 4, 4), masks, torch.arange(2))
        kept = F.cross_entropy(logits[:, :, 1:], masks[:, 1:].long())
        assert float(TASK.loss(Features.from_logits(logits), batch)) == pytest.approx(
            float(kept), rel=1e-6
        )

    def test_of_masks_without_a_class_is_nothing(self) -> None:
        logits = torch.randn(1, 3, 2, 2, requires_grad=True)
        masks = torch.full((1, 2, 2), dataset.IGNORE_INDEX, dtype=torch.uint8)
        batch = Batch(torch.zeros(1, 1, 2, 2), masks, torch.arange(1))
        loss = TASK.loss(Features.from_logits(logits), batch)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()


class TestClassWeights:
    MASKS = torch.tensor([[[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [1, 255, 255]]], dtype=torch.uint8)

    def test_none_weigh_nothing(self) -> None:
        assert TASK.class_weights(self.MASKS, "none", 3) is None

    def test_auto_lets_rare_classes_count_more(self) -> None:
        weights = TASK.class_weights(self.MASKS, "auto", 3)
        assert weights is not None
        # 8 and 2 of 10 pixels that have a class; none is of the third.
        assert weights.tolist() == pytest.approx([1 / math.log(1.02 + p) for p in (0.8, 0.2, 0.0)])

    def test_weigh_pixels_as_torch_does(self) -> None:
        logits = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
        weights = TASK.class_weights(self.MASKS, [0.5, 3.0, 1.0], 3)
        batch = Batch(torch.zeros(2, 1, 2, 3), self.MASKS, torch.arange(2), class_weights=weights)
        wanted = F.cross_entropy(
            logits, self.MASKS.long(), weight=weights, ignore_index=dataset.IGNORE_INDEX
        )
        assert float(TASK.loss(Features.from_logits(logits), batch)) == pytest.approx(float(wanted))

    def test_of_pixels_that_count_nothing_there_is_no_loss(self) -> None:
        batch = Batch(
            torch.zeros(2, 1, 2, 3),
            torch.zeros(2, 2, 3, dtype=torch.uint8),
            torch.arange(2),
            class_weights=torch.tensor([0.0, 1.0]),
        )
        assert float(TASK.loss(Features.from_logits(torch.randn(2, 2, 2, 3)), batch)) == 0

    @pytest.mark.parametrize("cache", [None, {"views": 2}])
    def test_go_along_with_every_batch(self, cache: dict[str, int] | None) -> None:
        weights = torch.tensor([0.5, 3.0])
        loader = BatchLoader(
            torch.zeros(4, 1, 2, 3, dtype=torch.uint8),
            torch.zeros(4, 2, 3, dtype=torch.uint8),
            training=expand({"batch_size": 2, "teacher_cache": cache}),
            flip=False,
            device=torch.device("cpu"),
            crop_targets=TASK.crop_targets,
            class_weights=weights,
        )
        for batch in loader.epoch(1):
            assert batch.class_weights is not None
            assert torch.equal(batch.class_weights, weights)


class TestCrops:
    @pytest.mark.parametrize("cache", [None, {"views": 3}])
    @pytest.mark.parametrize("augmentation", ["flip", "standard", "scale_jitter"])
    def test_of_masks_are_those_of_images(
        self, augmentation: str, cache: dict[str, int] | None
    ) -> None:
        """Images that show their own masks: what a crop shows is what its mask says."""
        generator = torch.Generator().manual_seed(3)
        masks = torch.randint(0, 5, (20, 8, 6), generator=generator).to(torch.uint8)
        # One class an image, so that no resized pixel lies between two classes.
        if augmentation == "scale_jitter":
            masks = masks[:, :1, :1].expand(20, 8, 6).clone()
        training = expand({"batch_size": 5, "augmentation": augmentation, "teacher_cache": cache})
        # Value 0 is the padding's, so masks are shown one higher.
        loader = BatchLoader(
            masks[:, None] + 1,
            masks,
            training=training,
            flip=True,
            device=torch.device("cpu"),
            crop_targets=TASK.crop_targets,
        )
        moved = False
        for batch in loader.epoch(1):
            shown = torch.where(batch.images[:, 0] == 0, 256, batch.images[:, 0].long()) - 1
            assert batch.labels.dtype == torch.uint8
            # Where an image is enlarged or shrunk, the pixels at its border fade into the padding.
            full = batch.images[:, 0] == batch.images[:, 0].amax((1, 2), keepdim=True)
            judged = full if augmentation == "scale_jitter" else torch.ones_like(full)
            assert torch.equal(batch.labels.long()[judged], shown[judged])
            moved |= not torch.equal(batch.labels, masks[batch.index])
        assert moved


class TestBatchSize:
    def test_keeps_the_logits_within_their_memory(self) -> None:
        assert TASK.evaluation_batch_size(2, 64) == 256
        assert TASK.evaluation_batch_size(21, 512 * 512) == 1
        assert TASK.evaluation_batch_size(1000, 4096 * 4096) == 1
        assert TASK.evaluation_batch_size(8, 1 << 14) == 64


class TestCountCorrect:
    def test_pixels_without_a_class_do_not_count(self) -> None:
        logits = torch.zeros(1, 2, 1, 2)
        logits[0, 1, 0, 1] = 1
        output = Features(logits=logits, pooled=logits.mean((2, 3)))
        masks = torch.tensor([[[0, 255], [1, 1]]], dtype=torch.uint8)
        correct, answers = TASK.count_correct(output, masks)
        assert (int(correct), int(answers)) == (2, 3)

"""Detection as a task: what it reads, moves, learns and scores."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data import boxes, dataset
from workers.distill.data.loader import BatchLoader
from workers.distill.data.types import Batch, Crops
from workers.distill.networks import catalog
from workers.distill.networks.interface import Features
from workers.distill.tasks.catalog import TASKS

TASK = TASKS["detection"]
CPU = torch.device("cpu")
HEIGHT, WIDTH = 32, 48


def box(label: int, x1: float, y1: float, x2: float, y2: float, flag: int = 0) -> Tensor:
    area = (x2 - x1) * (y2 - y1)
    return torch.tensor([float(label), x1, y1, x2, y2, area, float(flag)])


def write(folder: Path, rows: list[list[Tensor]], scale: float = 1.0) -> dataset.StoredDataset:
    """Write a set whose splits all hold these rows of boxes, one list an image."""
    most = max([1, *map(len, rows)])
    table = boxes.padded(
        [torch.stack(each) if each else torch.zeros(0, 7) for each in rows], most=most
    )
    # Areas are those of the original pictures.
    table[..., boxes.AREA] /= scale**2
    images = torch.zeros(len(rows), 3, HEIGHT, WIDTH, dtype=torch.uint8)
    record = dataset.DatasetRecord(
        task="detection",
        classes=["cat", "dog"],
        splits=dict.fromkeys(dataset.SPLITS, len(rows)),
        input=Input(channels=3, height=HEIGHT, width=WIDTH, mean=[0.5] * 3, std=[0.5] * 3),
        flip=True,
    )
    scales = torch.full((len(rows),), scale)
    dataset.write(folder, record, dict.fromkeys(dataset.SPLITS, (images, table, scales)))
    return dataset.load(folder)


@dataclass
class Answer:
    """A detector's output with given detections, in pixels of its own images."""

    rows: Tensor
    image_size: tuple[int, int] = (HEIGHT, WIDTH)

    def losses(self, targets: Tensor) -> dict[str, Tensor]:
        return {"boxes": targets[..., 1:5].sum(), "classes": torch.tensor(1.0)}

    def detections(self) -> Tensor:
        return self.rows


def answers(rows: Tensor, image_size: tuple[int, int] = (HEIGHT, WIDTH)) -> Features:
    nothing = torch.zeros(len(rows), 2, 0)
    return Features(nothing, torch.zeros(len(rows), 1), detector=Answer(rows, image_size))


def perfect(targets: Tensor, factor: float = 1.0) -> Tensor:
    """Return detections that say what the targets say."""
    score = torch.full_like(targets[..., :1], 0.9)
    return torch.cat([targets[..., :1], score, targets[..., 1:5] * factor], dim=-1)


class TestReadSplit:
    def test_knows_the_size_and_the_scale_of_each_image(self, tmp_path: Path) -> None:
        stored = write(tmp_path, [[box(0, 1, 2, 9, 8)], []], scale=0.5)
        targets = TASK.read_split(stored, "train").labels
        assert targets.shape == (2, 1, 10)
        assert targets[0, 0, 7:].tolist() == targets[1, 0, 7:].tolist() == [HEIGHT, WIDTH, 0.5]

    def test_refuses_boxes_that_are_not_as_recorded(self, tmp_path: Path) -> None:
        stored = write(tmp_path, [[box(2, 1, 2, 9, 8)]])
        with pytest.raises(errors.BadDataset, match="not one of 0 to 1"):
            TASK.read_split(stored, "test")


class TestCrops:
    @pytest.mark.parametrize("augmentation", ["none", "flip", "standard", "scale_jitter"])
    def test_of_boxes_are_those_of_images(self, augmentation: str) -> None:
        """Black images with one white box: what is white in a crop is what its box says."""
        draw = torch.Generator().manual_seed(1)
        images = torch.zeros(40, 1, HEIGHT, WIDTH, dtype=torch.uint8)
        rows = []
        for image in images:
            x, y = (int(torch.randint(4, high, (1,), generator=draw)) for high in (24, 14))
            image[0, y : y + 12, x : x + 16] = 255
            rows.append([box(1, x, y, x + 16, y + 12)])
        table = boxes.padded([torch.stack(each) for each in rows], most=1)
        beside = torch.tensor([HEIGHT, WIDTH, 1.0]).expand(40, 1, 3)
        loader = BatchLoader(
            images,
            torch.cat([table, beside], dim=-1),
            training=expand({"batch_size": 10, "augmentation": augmentation}),
            flip=True,
            device=CPU,
            crop_targets=TASK.crop_targets,
        )
        judged = 0
        for batch in loader.epoch(1):
            for image, row in zip(batch.images, batch.labels[:, 0], strict=True):
                white = (image[0] > 127).nonzero()
                if row[boxes.FLAG] != boxes.ORDINARY or len(white) == 0:
                    continue
                judged += 1
                low, high = white.min(0).values, white.max(0).values + 1
                expected = torch.stack([low[1], low[0], high[1], high[0]]).float()
                # Half a pixel and a rounding, where a border falls between two pixels.
                tolerance = 1.01 if augmentation == "scale_jitter" else 0
                assert (row[1:5] - expected).abs().max() <= tolerance
        assert judged > 30

    def test_a_box_outside_of_the_crop_is_no_longer_trained_on(self) -> None:
        targets = torch.cat([box(0, 40, 0, 48, 8), torch.tensor([HEIGHT, WIDTH, 1.0])])
        crops = Crops(torch.tensor([0]), torch.tensor([-9]), torch.tensor([False]), HEIGHT, WIDTH)
        moved = TASK.crop_targets(targets[None, None], crops)
        assert moved[0, 0, boxes.FLAG] == boxes.DIFFICULT

    def test_padding_stays(self) -> None:
        padding = torch.zeros(1, 1, 10)
        padding[..., 0] = boxes.NO_CLASS
        crops = Crops(torch.tensor([3]), torch.tensor([2]), torch.tensor([True]), HEIGHT, WIDTH)
        assert torch.equal(TASK.crop_targets(padding, crops), padding)


class TestLoss:
    def test_is_the_sum_of_the_parts_in_pixels_of_the_network(self, tmp_path: Path) -> None:
        targets = TASK.read_split(write(tmp_path, [[box(0, 2, 4, 10, 8)]]), "train").labels
        batch = Batch(torch.zeros(1, 3, HEIGHT, WIDTH), targets, torch.arange(1))
        loss = TASK.loss(answers(torch.zeros(1, 1, 6), (2 * HEIGHT, WIDTH // 2)), batch)
        assert float(loss) == 1 + (2 / 2 + 4 * 2 + 10 / 2 + 8 * 2)

    def test_of_a_network_that_is_no_detector_is_a_fault_of_the_code(self) -> None:
        batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 10), torch.arange(1))
        with pytest.raises(TypeError, match="no detector"):
            TASK.loss(Features.from_logits(torch.zeros(1, 2)), batch)

    def test_falls_while_a_detector_learns_one_batch(self) -> None:
        torch.manual_seed(0)
        network = catalog.build(
            "retort/fcos",
            classes=2,
            channels=3,
            height=64,
            width=64,
            arguments={"width": 8, "blocks": 1, "head_convs": 1, "fpn_channels": 32},
        )
        images = torch.randn(2, 3, 64, 64)
        rows = [[box(0, 4, 4, 30, 30)], [box(1, 20, 10, 60, 50)]]
        table = boxes.padded([torch.stack(each) for each in rows], most=1)
        targets = torch.cat([table, torch.tensor([64.0, 64.0, 1.0]).expand(2, 1, 3)], dim=-1)
        batch = Batch(images, targets, torch.arange(2))
        optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
        losses = []
        for _ in range(12):
            loss = TASK.loss(network.observe(images), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]


class TestMetrics:
    def test_of_perfect_detections_are_one_whatever_the_sizes(self, tmp_path: Path) -> None:
        rows = [[box(0, 2, 4, 10, 8), box(1, 12, 4, 40, 30)], [box(0, 1, 1, 30, 20)], []]
        targets = TASK.read_split(write(tmp_path, rows, scale=0.25), "test").labels
        metrics = TASK.metrics(2, CPU)
        network_size = (2 * HEIGHT, 2 * WIDTH)
        output = answers(perfect(targets, factor=2), network_size)
        metrics.update(output, targets, output)
        assert metrics.validation_scores() == pytest.approx({"ap": 1.0, "ap50": 1.0})
        scores = metrics.test_scores()
        assert scores["ap"] == scores["voc_ap50"] == scores["agreement"] == pytest.approx(1)
        assert scores["ap_by_class"] == pytest.approx([1, 1])
        assert scores["boxes"] == 3
        assert scores["samples"] == 3
        assert metrics.correct == 3
        # 112 pixels wide in the original picture, so it is large there.
        assert scores["ap_large"] == pytest.approx(1)

    def test_batches_add_up(self, tmp_path: Path) -> None:
        rows = [[box(0, 2, 4, 10, 8)], [box(1, 1, 1, 30, 20)], [box(1, 5, 5, 9, 9)]]
        targets = TASK.read_split(write(tmp_path, rows), "test").labels
        detected = perfect(targets)
        detected[2, 0, 2:] += 2
        whole, parts = TASK.metrics(2, CPU), TASK.metrics(2, CPU)
        whole.update(answers(detected), targets)
        for part in (slice(0, 1), slice(1, 3)):
            parts.update(answers(detected[part]), targets[part])
        assert parts.test_scores() == whole.test_scores()

    def test_are_computed_once_for_scores_and_report(self, tmp_path: Path) -> None:
        targets = TASK.read_split(write(tmp_path, [[box(0, 2, 4, 10, 8)]]), "test").labels
        metrics = TASK.metrics(2, CPU)
        metrics.update(answers(perfect(targets)), targets)
        metrics.test_scores()
        assert metrics.detections() is metrics.detections()
        assert {"coco", "errors"} <= set(vars(metrics.detections()))
        metrics.update(answers(perfect(targets)), targets)
        assert metrics.test_scores()["samples"] == 2

    def test_without_any_box_are_zero_and_unknown(self, tmp_path: Path) -> None:
        targets = TASK.read_split(write(tmp_path, [[], []]), "test").labels
        metrics = TASK.metrics(2, CPU)
        metrics.update(answers(perfect(targets)), targets)
        assert metrics.validation_scores()["ap"] == 0
        scores = metrics.test_scores()
        assert scores["ap"] is None
        assert scores["ap_interval"] is None
        assert scores["voc_ap50"] is None

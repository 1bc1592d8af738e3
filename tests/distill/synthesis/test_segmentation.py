"""A dense job without data, through the engine: a segmenter taught by invented images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill import folders
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Network

SIDE = 16
INPUT = {"channels": 1, "height": SIDE, "width": SIDE, "mean": [0.35], "std": [0.25]}
COUNTS = {"train": 64, "validation": 8, "test": 32}
TEACHER, STUDENT = [16, 16, 16], [8, 8]
BUDGET = {
    "steps": 8,
    "batch_size": 16,
    "student_steps": 8,
    "calls_per_epoch": 1,
    "buffer_images": 64,
    "data_scale": None,
}
SSDKD = {
    "name": "ssdkd",
    "bn_weight": 1.0,
    "temperature": 4.0,
    "synthesis": {
        **BUDGET,
        "warmup_calls": 2,
        "latent_size": 16,
        "width": 8,
        "learning_rate": 3e-3,
    },
}


def shapes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return stripes from side to side, and masks: 1 in a box where they run up and down.

    The box has a rim of pixels that are not judged. What tells the classes apart is no single
    pixel's value, so noise shows little of it.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    shifts = torch.randint(0, 4, (count, 2), generator=generator)
    corners = torch.randint(1, 7, (count, 2), generator=generator).tolist()
    sizes = torch.randint(6, 9, (count, 2), generator=generator).tolist()
    line = torch.arange(SIDE)
    for place, ((top, left), (height, width)) in enumerate(zip(corners, sizes, strict=True)):
        across, upright = ((line + shift) // 2 % 2 * 150 for shift in shifts[place])
        box = (slice(top, top + height), slice(left, left + width))
        masks[place, top - 1 : top + height + 1, left - 1 : left + width + 1] = dataset.IGNORE_INDEX
        masks[place][box] = 1
        stripes = across[:, None].repeat(1, SIDE)
        stripes[box] = upright[None, :].repeat(SIDE, 1)[box]
        images[place, 0] += stripes.to(torch.uint8)
    return images, masks


def choice(widths: list[int]) -> dict[str, Any]:
    return {
        "network": "retort/fcn",
        "arguments": {"widths": widths},
        "classes": 2,
        "input": INPUT,
    }


def trained_teacher() -> Network:
    """Return a teacher that has seen stripes."""
    torch.manual_seed(0)
    network = catalog.build(
        "retort/fcn", classes=2, channels=1, height=SIDE, width=SIDE, arguments={"widths": TEACHER}
    )
    images, masks = shapes(COUNTS["train"], 5)
    size = Input.model_validate(INPUT)
    seen = Preprocessor("teacher", size, size, torch.device("cpu"))(images)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        loss = F.cross_entropy(network(seen), masks.long(), ignore_index=dataset.IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with stripes and a teacher that knows them."""
    folder = tmp_path_factory.mktemp("dense")
    record = dataset.DatasetRecord(
        task="segmentation",
        classes=["across", "upright"],
        splits=COUNTS,
        input=Input.model_validate(INPUT),
    )
    splits = {name: shapes(count, len(name)) for name, count in COUNTS.items()}
    dataset.write(folder / "dataset", record, splits)
    (folder / "teacher").mkdir()
    weights.save_student(
        folder / "teacher" / "model.safetensors", trained_teacher(), {"format": "pt"}
    )
    return folder


def prepare(kit: Path, workdir: Path, method: dict[str, Any], **changes: Any) -> Path:
    for part in ("dataset", "teacher"):
        (workdir / part).symlink_to(kit / part)
    optimizer = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    recipe = {
        "version": 1,
        "task": "segmentation",
        "teacher": choice(TEACHER),
        "student": choice(STUDENT),
        "method": method,
        "training": {"epochs": 4, "batch_size": 16, "optimizer": optimizer},
        "accelerator": "cpu",
        **changes,
    }
    path = workdir / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.slow
class TestDense:
    def test_a_student_of_invented_images_beats_one_of_noise(
        self, kit: Path, tmp_path: Path
    ) -> None:
        path = prepare(kit, tmp_path, SSDKD, baseline=True, report=True)
        code, lines = folders.run_here(path)
        assert code == 0, lines[-1]
        result = lines[-1]
        scores = result["scores"]
        assert scores["teacher"]["miou"] > 0.9
        assert scores["student"]["miou"] > scores["baseline"]["miou"] + 0.05
        assert result["training_images_read"] == 0
        history = json.loads((tmp_path / "metrics.json").read_text())["history"]["student"]
        assert history[-1]["loss/kd"] < history[0]["loss/kd"]
        made = dataset.load(tmp_path / "synthetic")
        assert made.record.task == "segmentation"
        assert made.split("train").labels.shape[1:] == (SIDE, SIDE)
        topics = json.loads((tmp_path / "report" / "index.json").read_text())["topics"]
        assert {"synthesis", "overlap"} <= {topic["topic"] for topic in topics}

    def test_a_student_learns_from_masks_and_teacher(self, kit: Path, tmp_path: Path) -> None:
        optimizer = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
        training = {"epochs": 6, "batch_size": 16, "optimizer": optimizer, "augmentation": "none"}
        combined = {"name": "combine", "methods": [{"name": "cwd"}, {"name": "pixelkd"}]}
        path = prepare(kit, tmp_path, combined, training=training, baseline=True)
        code, lines = folders.run_here(path)
        assert code == 0, lines[-1]
        scores = lines[-1]["scores"]
        assert scores["student"]["miou"] > 0.5
        assert scores["student"]["miou"] > scores["baseline"]["miou"]
        history = json.loads((tmp_path / "metrics.json").read_text())["history"]["student"]
        for term in ("task", "cwd", "pixelkd"):
            assert history[-1][f"loss/{term}"] < history[0][f"loss/{term}"]

    def test_a_classifier_cannot_teach_it(self, kit: Path, tmp_path: Path) -> None:
        path = prepare(kit, tmp_path, SSDKD, student={**choice([]), **folders.network(classes=2)})
        code, lines = folders.run_here(path)
        assert (code, lines[-1]["code"]) == (1, "incompatible_networks")
        assert "is for classification" in lines[-1]["message"]

    def test_methods_of_other_tasks_are_refused(self, kit: Path, tmp_path: Path) -> None:
        code, lines = folders.run_here(prepare(kit, tmp_path, {"name": "kd"}))
        assert (code, lines[-1]["code"]) == (1, "bad_recipe")
        assert "for classification" in lines[-1]["message"]

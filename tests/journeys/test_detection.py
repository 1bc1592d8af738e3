"""Detection over HTTP: a COCO archive and a detector in, a smaller detector out."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retort import errors, types
from retort.client import Client
from tests.journeys.stacks import ON_EMBEDDED, PATIENCE_SECONDS
from workers.distill.networks import weights

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

SIDE = 64
CLASSES = ("bright", "dark")
TEACHER = {
    "network": "retort/fcos",
    "arguments": {"width": 8, "blocks": 1, "head_convs": 1, "fpn_channels": 32},
}
STUDENT = {
    "network": "retort/fcos",
    "arguments": {"width": 4, "blocks": 1, "head_convs": 1, "fpn_channels": 32},
}
TRAINING = {"recipe": "small_dense", "epochs": 1, "batch_size": 4}


def archive(path: Path, *, category: int = 90, train: int = 16, others: int = 4) -> Path:
    """Write a COCO archive of grey pictures, each with a bright and a dark square."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as target:
        for split, count in (("train", train), ("val", others), ("test", others)):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number in range(count):
                pixels = draw.integers(100, 140, (SIDE, SIDE, 3)).astype(np.uint8)
                for label, (value, left) in enumerate(((250, 2), (10, 34))):
                    x, y = left + int(draw.integers(0, 8)), int(draw.integers(0, 40))
                    pixels[y : y + 20, x : x + 20] = value
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": (7, category)[label],
                            "bbox": [x, y, 20, 20],
                            "area": 400,
                            "iscrowd": 0,
                        }
                    )
                name = f"{split}{number}.png"
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                target.writestr(f"{split}/{name}", stream.getvalue())
                images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            content = {
                "images": images,
                "annotations": annotations,
                "categories": [
                    {"id": key, "name": name} for key, name in zip((7, 90), CLASSES, strict=True)
                ],
            }
            target.writestr(f"annotations/instances_{split}.json", json.dumps(content))
    return path


def a_job(dataset: str, teacher: str | None = None, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": "squares",
        "task": "detection",
        "teacher": teacher,
        "student": STUDENT,
        "dataset": dataset,
        "method": {"name": "ce"},
        "training": TRAINING,
    }
    return {**spec, **changes}


@pytest.fixture(scope="session")
def squares(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> types.DatasetVersion:
    """A data set from an uploaded COCO archive."""
    path = archive(tmp_path_factory.mktemp("squares") / "squares.zip")
    with stack.client() as retort:
        upload = retort.uploads.send(path, purpose="dataset")
        version = retort.datasets.register("squares", upload, format="coco", task="detection")
        return retort.datasets.wait(version.name, version.version, timeout=PATIENCE_SECONDS)


@ON_EMBEDDED
class TestDetection:
    def test_gives_a_detector_that_loads_and_says_what_was_measured(
        self, retort: Client, squares: types.DatasetVersion, tmp_path: Path
    ) -> None:
        assert squares.state == "ready", squares.rejection
        assert squares.task == "detection"
        assert squares.classes == list(CLASSES)
        assert squares.boxes == {"train": [16, 16], "validation": [4, 4], "test": [4, 4]}
        trained = retort.jobs.wait(
            retort.jobs.submit(a_job(squares.reference, student=TEACHER, report=False)).id,
            timeout=PATIENCE_SECONDS,
        )
        assert trained.state == "succeeded", trained
        assert trained.result is not None
        spec = a_job(
            squares.reference, trained.result.student, baseline=True, method={"name": "pkd"}
        )
        job = retort.jobs.wait(retort.jobs.submit(spec).id, timeout=PATIENCE_SECONDS)
        assert job.state == "succeeded", job
        assert job.result is not None
        for role in ("teacher", "student", "baseline"):
            scores = job.result.scores[role]
            assert scores is not None
            assert 0 <= scores["ap"] <= scores["ap50"] <= 1
            assert scores["boxes"] == 8
        series = {one.key for one in retort.jobs.metrics(job.id)}
        assert {"validation/ap", "loss/task", "loss/pkd"} <= series
        drawn = {file.path for file in retort.jobs.report(job.id)}
        assert {"precision-recall.png", "detection-errors.svg", "detection.json"} <= drawn
        assert {"examples.png", "card.md"} <= drawn
        student = retort.jobs.download_student(job.id, tmp_path / "student.safetensors")
        network, header = weights.rebuild(student)
        assert network.task == header["task"] == "detection"

    def test_an_archive_with_an_unknown_category_is_rejected_with_its_number(
        self, retort: Client, tmp_path: Path
    ) -> None:
        path = archive(tmp_path / "wrong.zip", category=4711)
        upload = retort.uploads.send(path, purpose="dataset")
        version = retort.datasets.register("wrong", upload, format="coco", task="detection")
        with pytest.raises(errors.Rejected, match="4711"):
            retort.datasets.wait(version.name, version.version, timeout=PATIENCE_SECONDS)

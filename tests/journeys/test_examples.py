"""The example of detection, from an archive in COCO's layout to boxes drawn into a picture."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.journeys import stacks
from workers.distill.data import boxes
from workers.distill.data.builtin import digit_scenes

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]


def coco(path: Path, pictures: Path) -> None:
    """Write scenes as an archive, and keep its pictures."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
            scenes = digit_scenes.compose(name, 8)
            content = {
                "categories": [
                    {"id": number + 1, "name": text}
                    for number, text in enumerate(digit_scenes.CLASSES)
                ],
                "images": [],
                "annotations": [],
            }
            for number, (image, rows) in enumerate(zip(scenes.images, scenes.boxes, strict=True)):
                file = pictures / f"{split}-{number}.png"
                Image.fromarray(image.transpose(1, 2, 0)).save(file)
                archive.write(file, f"{split}/{file.name}")
                key = number + 1
                side = digit_scenes.SIDE
                content["images"].append(
                    {"id": key, "file_name": file.name, "width": side, "height": side}
                )
                for row in rows[boxes.is_box(rows)].tolist():
                    left, top = row[boxes.X1], row[boxes.Y1]
                    content["annotations"].append(
                        {
                            "id": len(content["annotations"]) + 1,
                            "image_id": key,
                            "category_id": int(row[boxes.CLASS]) + 1,
                            "bbox": [left, top, row[boxes.X2] - left, row[boxes.Y2] - top],
                            "area": row[boxes.AREA],
                            "iscrowd": 0,
                        }
                    )
            archive.writestr(f"annotations/instances_{split}.json", json.dumps(content))


class TestDetection:
    @stacks.ON_EMBEDDED
    def test_goes_from_an_archive_to_boxes(self, stack: stacks.Stack, tmp_path: Path) -> None:
        coco(tmp_path / "scenes.zip", tmp_path)
        student = tmp_path / "student.safetensors"
        given = {"archive": "scenes.zip", "pictures": "test-0.png", "output": student.name}
        options = [f"--{name}={tmp_path / value}" for name, value in given.items()]
        done = subprocess.run(
            # What is learned without the teacher shows the way as well as any method.
            [sys.executable, "-m", "examples.detection", "--method=ce", "--steps=2", *options],
            cwd=ROOT,
            env={**os.environ, "RETORT_URL": stack.url, "RETORT_API_KEY": stack.api_key},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "detection-example@1" in done.stdout
        assert student.is_file()
        assert (tmp_path / "student.png").is_file()

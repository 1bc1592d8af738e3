"""Runs on pictures that are stored as their files."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.distill import folders
from tests.distill.folders import StopsAt
from workers.distill.config.devices import Share
from workers.distill.config.job import Input, JobConfig
from workers.distill.data import dataset, encoded_images, loader, samples, shards
from workers.distill.evaluation import evaluate
from workers.distill.files import tensorfile
from workers.distill.methods import catalog
from workers.distill.run import build, prepare, supervised
from workers.distill.run.context import JobRequest
from workers.distill.runtime import events, signals
from workers.distill.runtime.ranks import Ranks

TRAINING = {
    "augmentation": "trivialaugment",
    "random_resized_crop": {"scale": [0.5, 1.0]},
    "crop_ratio": 0.8,
    "checkpoint_seconds": 1e-6,
}


def encode(folder: Path) -> None:
    """Store the set of `folders` as PNG files, in place of the decoded one."""
    for name, count in folders.COUNTS.items():
        pixels, labels = folders.images(count, 3, len(name))
        (folder / f"{name}.safetensors").unlink()
        writer = shards.ShardWriter(folder, name)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            stream = io.BytesIO()
            Image.fromarray(image[0].numpy()).save(stream, "PNG")
            writer.add(shards.EncodedPicture(stream.getvalue(), "png", 8, 8), label)
        writer.close(labels)
    record = dataset.DatasetRecord(
        classes=[f"row {number}" for number in range(3)],
        splits=folders.COUNTS,
        input=Input.model_validate(folders.INPUT),
        encoded=dataset.EncodedPictures(
            kinds={"png": 73}, size_bytes=9000, smallest=[8, 8], largest=[8, 8], moments_of=41
        ),
    )
    dataset.write_record(folder, record)


def prepared(folder: Path, *, is_encoded: bool = True, **changes: Any) -> Path:
    folder.mkdir()
    recipe = folders.prepare(folder, **{"training": TRAINING, **changes})
    if is_encoded:
        encode(folder / "dataset")
    return recipe


def test_pictures_of_each_class_can_be_looked_at(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "encoded").parent / "dataset"
    groups = samples.sheet(folder)["classes"]
    assert [group["class"] for group in groups] == ["row 0", "row 1", "row 2"]
    shown = groups[0]["pictures"][0]
    assert (shown["height"], shown["width"]) == (8, 8)
    split = dataset.load(folder).open_split("train")
    assert split.labels[shown["index"]] == 0
    stream = io.BytesIO(base64.b64decode(shown["content"]))
    pixels = torch.frombuffer(bytearray(Image.open(stream).tobytes()), dtype=torch.uint8)
    index = shown["index"]
    assert torch.equal(pixels.view(8, 8), split.images[index : index + 1][0][0])


@pytest.mark.slow
class TestEncoded:
    def test_a_student_is_that_of_decoded_images_and_of_a_run_that_was_stopped(
        self, tmp_path: Path
    ) -> None:
        students = []
        for name in ("decoded", "encoded", "stopped"):
            recipe = prepared(tmp_path / name, is_encoded=name != "decoded")
            if name == "stopped":
                code, lines = folders.run_here(recipe, StopsAt(14))
                assert code == 75
                assert lines[-1]["type"] == "checkpoint"
                assert lines[-1]["step"] > 0
            code, lines = folders.run_here(recipe)
            assert code == 0, lines[-1]
            students.append((recipe.parent / "student.safetensors").read_bytes())
        assert students[0] == students[1] == students[2]

    def test_a_cached_teacher_and_a_memory_over_all_images_work(self, tmp_path: Path) -> None:
        method = {"name": "crd", "negatives": 8}
        training = {**TRAINING, "epochs": 1, "teacher_cache": {"views": 2}}
        code, lines = folders.run_here(prepared(tmp_path / "a", method=method, training=training))
        assert code == 0, lines[-1]

    def test_is_trained_as_published_and_scored_in_other_sizes(self, tmp_path: Path) -> None:
        student = folders.network(network="retort/convnet", arguments={"widths": [8, 16]})
        training = {
            "recipe": "imagenet_a3",
            "epochs": 6,
            "batch_size": 8,
            "evaluate_sizes": [8, 16],
            "checkpoint_seconds": 1e-6,
        }
        found = []
        for name in ("whole", "stopped"):
            asked: dict[str, Any] = {"student": student, "method": {"name": "kd"}, "baseline": True}
            recipe = prepared(tmp_path / name, training=training, **asked)
            if name == "stopped":
                code, _ = folders.run_here(recipe, StopsAt(14))
                assert code == 75
            code, lines = folders.run_here(recipe)
            assert code == 0, lines[-1]
            found.append((recipe.parent / "student.safetensors").read_bytes())
        assert found[0] == found[1]
        cores = len(os.sched_getaffinity(0))
        assert lines[-1]["decode_threads"] == min(cores, encoded_images.MOST_THREADS)
        own, large = lines[-1]["scores_by_size"]
        assert own["scores"]["accuracy"] == lines[-1]["scores"]["student"]["accuracy"]
        assert [large["height"], large["width"], large["scores"]["samples"]] == [16, 16, 20]
        path = recipe.parent
        alone = evaluate.evaluate_file(
            path / "student.safetensors", path / "dataset", "test", side=16
        )
        assert large["scores"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert large["scores"]["loss"] != pytest.approx(own["scores"]["loss"], rel=1e-3)

    def test_a_federation_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        recipe = prepared(tmp_path / "a", method={"name": "fedavg"}, teacher=None, training={})
        code, lines = folders.run_here(recipe)
        assert code == 1
        assert '{"storage": "decoded"}' in lines[-1]["message"]


class TestBeforeTraining:
    def sources_of(
        self, recipe: Path, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[loader.BatchLoader, list[int]]:
        """Return the training split once the method has prepared, and the rows decoded for it."""
        config = JobConfig.model_validate_json(recipe.read_bytes())
        with Path(os.devnull).open("w") as nowhere:
            request = JobRequest(config, recipe.parent, events.Reporter(nowhere.fileno()))
            shared = supervised.LOOP.prepare(config, recipe.parent, signals.Stop(), strong=False)
            context = prepare.job_context(shared, request)
            student = build.start_network(context)
            method = catalog.build(config.method, student, context.teacher)
            decoded = []
            picture = encoded_images.EncodedImages.picture

            def watched(images: encoded_images.EncodedImages, row: int) -> torch.Tensor:
                decoded.append(row)
                return picture(images, row)

            monkeypatch.setattr(encoded_images.EncodedImages, "picture", watched)
            return supervised.LOOP.make_source(context, method, student), decoded

    def test_labels_are_read_without_a_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = prepared(tmp_path / "a", method={"name": "crd", "negatives": 8})
        source, decoded = self.sources_of(recipe, monkeypatch)
        assert not decoded
        batch = next(source.epoch(1))
        assert len(decoded) >= len(batch.labels)

    def test_ranks_share_the_cores_among_their_threads(self, tmp_path: Path) -> None:
        recipe = prepared(tmp_path / "a", method={"name": "kd"})
        config = JobConfig.model_validate_json(recipe.read_bytes())
        cores, found = len(os.sched_getaffinity(0)), []
        counts = (2, 20, 1)
        for count in counts:
            ranks = Ranks(Share(0, count))
            supervised.LOOP.prepare(
                config, recipe.parent, signals.Stop(), strong=False, ranks=ranks
            )
            found.append(encoded_images.threads())
        most = encoded_images.MOST_THREADS
        assert found == [max(1, min(cores // count, most)) for count in counts]

    def test_stored_predictions_are_read_without_a_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = folders.network(network="retort/predictions", arguments={"dataset": "rows@1"})
        recipe = prepared(
            tmp_path / "a",
            method={"name": "dkd", "beta": "auto"},
            teacher=table,
            training={"augmentation": "none"},
        )
        logits = {name: torch.zeros(count, 1, 3) for name, count in folders.COUNTS.items()}
        path = tmp_path / "a" / "teacher" / "predictions.safetensors"
        tensorfile.write(path, logits, {})
        _, decoded = self.sources_of(recipe, monkeypatch)
        assert not decoded

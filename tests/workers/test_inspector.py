"""Uploads as users send them, good and bad, looked at by the real child process."""

import dataclasses
import functools
import io
import json
import os
import pickle
import threading
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog.testing
import torch
from PIL import Image

from models_registry.artifacts import datasets, inspections, models
from models_registry.jobs import submission
from models_registry.jobs.lifecycle import State
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, tables
from tests import factories
from tests.workers import scenes, weights
from workers import inspector
from workers.context import Context
from workers.distill.networks import catalog

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def project(context: Context) -> str:
    return scenes.project(context)


def torch_bytes(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def uploaded_dataset(
    context: Context,
    project: str,
    content: bytes,
    kind: str,
    name: str,
    task: str = "classification",
    **changes: Any,  # fields of a new version
) -> str:
    made = scenes.upload(context, project, content, purpose="dataset", name=name)
    new = datasets.NewDatasetVersion(name="mine", upload_id=made, format=kind, task=task, **changes)
    with context.sessions.begin() as session:
        return datasets.register(session, project_id=project, new=new).id


def model(context: Context, version_id: str) -> tables.ModelVersionRow:
    with context.readers.begin() as session:
        return session.get_one(tables.ModelVersionRow, version_id)


def dataset(context: Context, version_id: str) -> tables.DatasetVersionRow:
    with context.readers.begin() as session:
        return session.get_one(tables.DatasetVersionRow, version_id)


def waiting_job(context: Context, project: str) -> str:
    """Submit a job whose teacher is still to be inspected."""
    with context.sessions.begin() as session:
        wanted = JobSpec.model_validate(factories.spec())
        job = submission.submit(session, project_id=project, spec=wanted)
        assert job.state == State.VALIDATING
        return job.id


class Marker:
    """A pickle that leaves a file behind when it is loaded with trust."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.slow
class TestNetworks:
    @pytest.mark.parametrize(
        ("network", "state"),
        [("timm/test_resnet", State.QUEUED), ("timm/vit_tiny_patch16_224", State.FAILED)],
    )
    def test_are_tried_before_a_job_is_queued(
        self, context: Context, project: str, network: str, state: State
    ) -> None:
        with context.sessions.begin() as session:
            factories.teacher(session, context.storage, project_id=project)
            wanted = JobSpec.model_validate(factories.spec(student={"network": network}))
            job = submission.submit(session, project_id=project, spec=wanted)
            assert job.state == State.VALIDATING
            (trial,) = session.query(tables.NetworkTrialRow)
            digest = trial.digest
        assert inspector.try_network(context, digest) is not None
        assert scenes.job(context, job.id).state == state
        assert inspector.try_network(context, digest) is None


@pytest.mark.slow
class TestModels:
    def test_become_ready_with_parameters_digest_and_files(
        self, context: Context, project: str, tmp_path: Path
    ) -> None:
        content = weights.tiny_safetensors()
        version_id = scenes.uploaded_model(context, project, content)
        job_id = waiting_job(context, project)
        assert inspector.inspect(context, "models", version_id) == "ready"
        version = model(context, version_id)
        assert version.state == "ready"
        assert version.parameters == sum(p.numel() for p in weights.tiny_network().parameters())
        with context.readers.begin() as session:
            files = {row.path: row for row in models.files(session, [version])[version.id]}
            keys = {
                path: session.get_one(tables.BlobRow, row.sha256).storage_key
                for path, row in files.items()
            }
        assert files.keys() == {"model.safetensors", "config.json"}
        assert files["model.safetensors"].sha256 == version.sha256
        config = json.loads(b"".join(context.storage.open(keys["config.json"])))
        assert config["parameters"] == version.parameters
        assert config["sha256"] == version.sha256
        assert config["network"] == version.network
        assert scenes.job(context, job_id).state == State.QUEUED
        assert inspector.inspect(context, "models", version_id) is None

    def test_notes_say_what_was_chosen_and_messages_have_the_files_name(
        self, context: Context, project: str
    ) -> None:
        state = weights.tiny_network().state_dict()
        content = torch_bytes({"net": state, "net_ema": {k: v + 0 for k, v in state.items()}})
        version_id = scenes.uploaded_model(context, project, content, reading={"entry": "net_ema"})
        assert inspector.inspect(context, "models", version_id) == "ready"
        version = model(context, version_id)
        assert (version.notes or [])[0] == "the averaged weights (net_ema) were taken"
        assert (version.traits or {})["has_batch_norm"] is True
        page = scenes.uploaded_model(context, project, b"<!DOCTYPE html><html>Scan</html>")
        assert inspector.inspect(context, "models", page) == "rejected"
        rejection = model(context, page).rejection or {}
        assert rejection["message"].startswith("teacher.pt is an HTML page")

    def test_of_dense_networks_are_for_segmentation(self, context: Context, project: str) -> None:
        dense: dict[str, Any] = {"network": "retort/fcn", "arguments": {"widths": [4]}}
        network = catalog.build(
            dense["network"],
            classes=10,
            channels=1,
            height=8,
            width=8,
            arguments=dense["arguments"],
        )
        content = torch_bytes(network.state_dict())
        version_id = scenes.uploaded_model(context, project, content, **dense, task="segmentation")
        assert inspector.inspect(context, "models", version_id) == "ready"

    def test_with_other_keys_are_rejected_with_lists(self, context: Context, project: str) -> None:
        state = weights.tiny_network().state_dict()
        names = list(state)
        gone = state.pop(names[0])
        state["extra.weight"] = gone
        state[names[-1]] = torch.zeros(3)
        job_version = scenes.uploaded_model(context, project, torch_bytes(state))
        job_id = waiting_job(context, project)
        assert inspector.inspect(context, "models", job_version) == "rejected"
        rejection = model(context, job_version).rejection
        assert rejection is not None
        assert rejection["code"] == "keys_mismatch"
        assert rejection["missing_keys"] == [names[0]]
        assert rejection["unexpected_keys"] == ["extra.weight"]
        assert [entry["key"] for entry in rejection["shape_mismatches"]] == [names[-1]]
        job = scenes.job(context, job_id)
        assert job.state == State.FAILED
        assert job.failure is not None
        assert job.failure["code"] == "input_rejected"

    def test_with_many_other_keys_get_a_short_answer_that_counts_them(
        self, context: Context, project: str
    ) -> None:
        state = {f"layer.{number}": torch.zeros(1) for number in range(5000)}
        version_id = scenes.uploaded_model(context, project, torch_bytes(state))
        assert inspector.inspect(context, "models", version_id) == "rejected"
        rejection = model(context, version_id).rejection or {}
        assert "5000 unexpected" in rejection["message"]
        assert len(rejection["unexpected_keys"]) == 100
        assert len(json.dumps(rejection)) < 20_000

    def test_that_need_more_memory_than_allowed_are_too_large(
        self, context: Context, project: str
    ) -> None:
        # One of its tensors has 15 MB: under a limit of which little else is left, native code that
        # asks for a few bytes may crash instead.
        widths = [4, 4, 8, 640]
        settings = context.settings.model_copy(update={"inspection_memory_bytes": 8 << 20})
        small = dataclasses.replace(context, settings=settings)
        version_id = scenes.uploaded_model(
            context, project, weights.tiny_safetensors(widths), arguments={"widths": widths}
        )
        assert inspector.inspect(small, "models", version_id) == "rejected"
        rejection = model(context, version_id).rejection or {}
        assert rejection["code"] == "too_large", rejection["message"]
        assert "the limit of 8388608 bytes" in rejection["message"]

    def test_that_are_malicious_pickles_do_nothing(
        self, context: Context, project: str, tmp_path: Path
    ) -> None:
        marker = tmp_path / "marker"
        content = torch_bytes({"state_dict": Marker(marker)})
        version_id = scenes.uploaded_model(context, project, content)
        assert inspector.inspect(context, "models", version_id) == "rejected"
        version = model(context, version_id)
        assert version.rejection is not None
        assert version.rejection["code"] == "unsafe_pickle"
        assert version.rejection["missing_keys"] == []
        assert version.sha256 is None
        assert not marker.exists()
        pickle.loads(pickle.dumps(Marker(marker)))  # it would have, if it had been trusted
        assert marker.exists()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.slow
class TestDatasets:
    def test_of_arrays_become_ready_with_splits(self, context: Context, project: str) -> None:
        generator = np.random.default_rng(0)
        content = npz(
            x_train=generator.integers(0, 255, (60, 8, 8), dtype=np.uint8),
            y_train=np.arange(60) % 3,
            x_test=generator.integers(0, 255, (12, 8, 8), dtype=np.uint8),
            y_test=np.arange(12) % 3,
        )
        version_id = uploaded_dataset(context, project, content, "auto", "mine.npz")
        assert inspector.inspect(context, "datasets", version_id) == "ready"
        version = dataset(context, version_id)
        assert version.format == "npz"
        assert "the format was recognised: npz" in (version.notes or ())
        assert version.classes == ["0", "1", "2"]
        assert version.splits["test"] == 12
        assert sum(version.splits.values()) == 72
        assert any("the validation split was missing" in note for note in version.notes or ())
        assert version.input is not None
        assert (version.input["channels"], version.input["height"]) == (1, 8)
        with context.readers.begin() as session:
            rows = session.query(tables.DatasetFileRow).filter_by(version_id=version_id).all()
        assert {row.path for row in rows} == {
            "dataset.json",
            *(f"{split}.safetensors" for split in ("train", "validation", "test")),
        }
        assert len(version.sha256 or "") == 64

    def test_of_pictures_can_be_stored_as_their_files(self, context: Context, project: str) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for number in range(12):
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (number, 20, 30)).save(picture, "PNG")
                archive.writestr(
                    f"{'cat' if number % 2 else 'dog'}/{number}.png", picture.getvalue()
                )
        version_id = uploaded_dataset(
            context, project, stream.getvalue(), "auto", "a.zip", input={"storage": "encoded"}
        )
        assert inspector.inspect(context, "datasets", version_id) == "ready"
        version = dataset(context, version_id)
        assert version.encoded is not None
        assert version.encoded["kinds"] == {"png": 12}
        with context.readers.begin() as session:
            rows = session.query(tables.DatasetFileRow).filter_by(version_id=version_id).all()
        names = {row.path for row in rows}
        assert {"train-00000.tar", "validation-00000.tar", "test-00000.tar"} < names

    def test_of_masks_become_ready_for_segmentation(self, context: Context, project: str) -> None:
        masks = np.arange(20 * 64).reshape(20, 8, 8) % 3
        content = npz(images=np.zeros((20, 8, 8), np.uint8), labels=masks)
        version_id = uploaded_dataset(
            context, project, content, "npz", "mine.npz", task="segmentation"
        )
        assert inspector.inspect(context, "datasets", version_id) == "ready"
        version = dataset(context, version_id)
        assert (version.task, version.classes) == ("segmentation", ["0", "1", "2"])

    def test_that_are_no_archives_are_rejected(self, context: Context, project: str) -> None:
        version_id = uploaded_dataset(context, project, b"no archive", "npz", "mine.npz")
        assert inspector.inspect(context, "datasets", version_id) == "rejected"
        version = dataset(context, version_id)
        assert version.state == "rejected"
        assert version.rejection is not None
        assert version.rejection["code"] == "unreadable"


def kill_each_child(times: int) -> None:
    for _ in range(times):
        child = scenes.wait_until(lambda: scenes.engines(inspector._MODULE), "a child runs")[0]
        child.kill()
        scenes.wait_until(functools.partial(scenes.has_ended, child.pid), "it has ended")


class TestPostponed:
    """What says nothing of the upload must not be held against it at once."""

    def test_is_a_version_whose_inspecting_process_dies(
        self, context: Context, cold: Context, project: str
    ) -> None:
        version_id = scenes.uploaded_model(context, project, b"weights")
        job_id = waiting_job(context, project)
        with scenes.meanwhile(lambda: kill_each_child(inspections.MAX_ATTEMPTS)):
            for _ in range(inspections.MAX_ATTEMPTS):
                assert inspector.inspect(cold, "models", version_id) is None
                assert model(context, version_id).state == "pending"
        assert inspector.inspect(cold, "models", version_id) is None
        version = model(context, version_id)
        assert version.state == "rejected"
        assert version.rejection is not None
        assert version.rejection["code"] == "inspection_failed"
        job = scenes.job(context, job_id)
        assert job.state == State.FAILED
        assert job.failure is not None
        assert job.failure["code"] == "input_rejected"

    def test_is_a_version_whose_bytes_cannot_be_had(self, context: Context, project: str) -> None:
        version_id = scenes.uploaded_model(context, project, b"weights")
        folder = context.settings.data_dir / "storage"
        folder.rename(folder.with_name("away"))
        with structlog.testing.capture_logs() as logged:
            assert inspector.inspect(context, "models", version_id) is None
        assert "inspection_postponed" in {line["event"] for line in logged}
        assert model(context, version_id).state == "pending"
        assert inspector.inspect(context, "models", version_id) is None, "it rests first"
        with context.sessions.begin() as session:
            assert inspections.republish(session, after_seconds=1000) == 0
        with context.sessions.begin() as session:
            rested = session.get_one(tables.ModelVersionRow, version_id)
            rested.inspection_expires_at = database.now(session) - timedelta(seconds=1)
        with context.sessions.begin() as session:
            assert inspections.republish(session, after_seconds=1000) == 1

    @pytest.mark.slow
    def test_is_a_version_whose_result_cannot_be_stored(
        self, context: Context, project: str
    ) -> None:
        """A file stands where the store keeps what it has not received as a whole."""
        version_id = scenes.uploaded_model(context, project, weights.tiny_safetensors())
        folder = context.settings.data_dir / "storage" / "unfinished"
        folder.rmdir()
        folder.touch()
        assert inspector.inspect(context, "models", version_id) is None
        assert model(context, version_id).state == "pending"

    def test_is_a_version_when_the_worker_shuts_down(
        self, context: Context, cold: Context, project: str
    ) -> None:
        version_id = scenes.uploaded_model(context, project, b"weights")

        def shut_down() -> None:
            scenes.wait_until(lambda: scenes.engines(inspector._MODULE), "a child runs")
            cold.shutting_down.set()

        with scenes.meanwhile(shut_down):
            assert inspector.inspect(cold, "models", version_id) is None
        assert model(context, version_id).state == "pending"
        assert scenes.engines(inspector._MODULE) == []

    def test_is_a_version_where_no_folder_can_be_made(self, context: Context, project: str) -> None:
        version_id = scenes.uploaded_model(context, project, b"weights")
        context.settings.scratch_dir.rmdir()
        context.settings.scratch_dir.touch()
        assert inspector.inspect(context, "models", version_id) is None
        assert model(context, version_id).state == "pending"


class TestClaim:
    def test_of_what_does_not_exist_is_nothing(self, context: Context) -> None:
        assert inspector.inspect(context, "models", "mdl_none") is None
        assert inspector.inspect(context, "datasets", "dsv_none") is None

    def test_that_was_lost_meanwhile_writes_nothing(
        self, context: Context, cold: Context, project: str
    ) -> None:
        version_id = scenes.uploaded_model(context, project, b"weights")

        def take_over() -> None:
            (child,) = scenes.wait_until(lambda: scenes.engines(inspector._MODULE), "it runs")
            with context.sessions.begin() as session:
                row = session.get_one(tables.ModelVersionRow, version_id)
                row.inspection_fence += 1
            child.kill()

        with structlog.testing.capture_logs() as logged, scenes.meanwhile(take_over):
            assert inspector.inspect(cold, "models", version_id) is None
        assert "inspection_stale" in {line["event"] for line in logged}
        assert model(context, version_id).inspection_expires_at is not None


@pytest.mark.slow
class TestBuiltinDataset:
    def test_is_written_once_for_two_callers_at_the_same_time(
        self, context: Context, tmp_path: Path
    ) -> None:
        cache = context.settings.cache_dir
        folders = [tmp_path / name / "dataset" for name in ("one", "two")]
        failures: list[str | None] = []
        done = threading.Event()

        def call(folder: Path) -> None:
            failures.append(
                inspector.builtin_dataset("digits", folder, cache=cache, launcher=context.launcher)
            )

        def count() -> None:
            while not done.is_set():
                pids.update(child.pid for child in scenes.engines(inspector._MODULE))
                time.sleep(0.05)

        pids: set[int] = set()
        threads = [threading.Thread(target=call, args=(folder,)) for folder in folders]
        with scenes.meanwhile(count):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            done.set()
        assert failures == [None, None]
        assert len(pids) == 1
        kept = inspector.builtin_folder(cache) / "digits"
        assert {path.name for path in kept.iterdir()} == {
            "dataset.json",
            *(f"{split}.safetensors" for split in ("train", "validation", "test")),
        }
        for path in kept.iterdir():
            assert not any((folder / path.name).samefile(path) for folder in folders)

    def test_leaves_out_what_a_job_may_not_see(self, context: Context, tmp_path: Path) -> None:
        cache, without = context.settings.cache_dir, ("train.safetensors",)
        for folder in (tmp_path / "one", tmp_path / "two"):  # as written, and as kept
            assert (
                inspector.builtin_dataset(
                    "digits", folder, cache=cache, launcher=context.launcher, without=without
                )
                is None
            )
            assert {path.name for path in folder.iterdir()} == {
                *("dataset.json", "validation.safetensors", "test.safetensors")
            }
        assert (
            inspector.builtin_dataset(
                "digits", tmp_path / "three", cache=cache, launcher=context.launcher
            )
            is None
        )
        assert (tmp_path / "three" / "train.safetensors").is_file()

    def test_that_does_not_exist_is_a_sentence(self, context: Context, tmp_path: Path) -> None:
        cache = context.settings.cache_dir
        failure = inspector.builtin_dataset(
            "numbers", tmp_path / "dataset", cache=cache, launcher=context.launcher
        )
        assert failure is not None
        assert "numbers" in failure
        assert not (inspector.builtin_folder(cache) / "numbers").exists()

"""Exports as a worker makes them, by the real child process."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from models_registry.access import quotas
from models_registry.artifacts import exports, predictions
from models_registry.persistence import tables
from tests import factories
from tests.databases import SQLITE_ONLY
from tests.workers import scenes, weights
from workers import exporter, predictor
from workers.context import Context
from workers.distill.config.exports import ExportChoice

pytestmark = [SQLITE_ONLY, pytest.mark.slow]


@pytest.fixture
def project(context: Context) -> str:
    return scenes.project(context)


def student(context: Context, project: str) -> str:
    """Register an untrained network as the student of a job on the digits; return its id."""
    with context.sessions.begin() as session:
        factories.teacher(session, context.storage, project_id=project)
        job = factories.job(session, project_id=project)
        return factories.teacher(
            session,
            context.storage,
            project_id=project,
            name="student",
            content=weights.tiny_safetensors(),
            job_id=job.id,
            **scenes.TINY,
        ).id


def ask(context: Context, version_id: str, **choice: Any) -> str:
    with context.sessions.begin() as session:
        return exports.request(
            session,
            version=session.get_one(tables.ModelVersionRow, version_id),
            choice=ExportChoice(**choice),
            service=quotas.UNLIMITED,
        ).id


def export(context: Context, export_id: str) -> tables.ModelExportRow:
    with context.readers.begin() as session:
        return session.get_one(tables.ModelExportRow, export_id)


def test_a_graph_is_compared_on_the_test_split_stored_and_answers_pictures(
    context: Context, project: str, tmp_path: Path
) -> None:
    version_id = student(context, project)
    export_id = ask(context, version_id, format="onnx")
    assert exporter.make(context, export_id) == "ready", export(context, export_id).failure
    row = export(context, export_id)
    assert row.measured is not None
    found = row.measured["checks"]
    assert found["decisions"] == found["images"] == 360
    assert found["decisions_equal"] == 360
    assert found["largest_logit_difference"] < 1e-4
    assert found["drop"] == 0.0
    assert row.measured["latency"]["ms"] > 0
    with context.readers.begin() as session:
        files = exports.files(session, [row])[row.id]
        keys = {
            file.path.rpartition("/")[2]: session.get_one(tables.BlobRow, file.sha256).storage_key
            for file in files
        }
    assert keys.keys() == {"export.json", "model.onnx"}
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"".join(context.storage.open(keys["model.onnx"])))
    session = onnxruntime.InferenceSession(graph)
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    (logits,) = session.run(None, {"images": np.zeros((5, 1, 8, 8), np.float32)})
    assert logits.shape == (5, 10)
    assert exporter.make(context, export_id) is None

    good, bad = picture(), base64.b64encode(b"no picture").decode()
    assert predicted(context, version_id, [good, good]).answer is not None
    failure = predicted(context, version_id, [good, bad]).failure
    assert failure is not None
    assert failure["message"].startswith("picture 1 ")


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 10, 10)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def predicted(context: Context, version_id: str, pictures: list[str]) -> tables.PredictionRow:
    with context.sessions.begin() as session:
        version = session.get_one(tables.ModelVersionRow, version_id)
        made = predictions.request(session, version=version, pictures=pictures)
    assert predictor.answer(context, made.id) is not None
    assert predictor.answer(context, made.id) is None
    with context.readers.begin() as session:
        return session.get_one(tables.PredictionRow, made.id)


def test_a_model_of_openvino_is_made_and_run_within_the_isolation(
    context: Context, project: str
) -> None:
    export_id = ask(context, student(context, project), format="openvino")
    assert exporter.make(context, export_id) == "ready", export(context, export_id).failure
    row = export(context, export_id)
    assert row.measured is not None
    assert row.measured["checks"]["decisions_equal"] == 360
    assert row.measured["library_versions"]["openvino"]


def test_weights_of_an_upload_are_compared_on_noise_and_that_is_told(
    context: Context, project: str
) -> None:
    with context.sessions.begin() as session:
        version_id = factories.teacher(
            session,
            context.storage,
            project_id=project,
            content=weights.tiny_safetensors(),
            **scenes.TINY,
        ).id
    export_id = ask(context, version_id, format="torch_state_dict")
    assert exporter.make(context, export_id) == "ready", export(context, export_id).failure
    row = export(context, export_id)
    assert row.measured is not None
    assert row.measured["checks"]["drop"] is None
    assert any("noise" in note for note in row.notes)


def test_one_that_takes_too_long_fails_at_once_and_says_so(
    context: Context, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with context.sessions.begin() as session:
        version_id = factories.teacher(session, context.storage, project_id=project).id
    export_id = ask(context, version_id, format="hub")
    monkeypatch.setattr(exporter, "LIMIT_SECONDS", 0.0)
    assert exporter.make(context, export_id) == "failed"
    failure = export(context, export_id).failure
    assert failure is not None
    assert failure["code"] == "took_too_long"
    assert "memory" not in failure["message"]


def test_weights_that_do_not_fit_end_in_a_failure_that_says_so(
    context: Context, project: str
) -> None:
    with context.sessions.begin() as session:
        version_id = factories.teacher(session, context.storage, project_id=project).id
    export_id = ask(context, version_id, format="hub")
    assert exporter.make(context, export_id) == "failed"
    failure = export(context, export_id).failure
    assert failure is not None
    assert "model.safetensors" in failure["message"]

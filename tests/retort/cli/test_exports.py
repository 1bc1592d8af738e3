"""Exports and predictions from the command line, against the real service."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from models_registry.artifacts import exports, predictions
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from retort.cli import app
from tests import factories, waiting
from tests.api.test_exports import MEASURED
from tests.databases import SQLITE_ONLY

pytestmark = SQLITE_ONLY

DESCRIBED = {
    "task": "classification",
    "classes": ["a", "b", "c"],
    "input": {"name": "images", "type": "float32", "shape": ["batch", 1, 8, 8]},
    "outputs": ["logits"],
}


@pytest.fixture
def run(monkeypatch, service, api_key):
    """Run the command line as an administrator of the service; return what it says."""
    monkeypatch.setenv("RETORT_URL", service)
    monkeypatch.setenv("RETORT_API_KEY", api_key)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app.app, arguments, prog_name="retort")
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.output

    return run


@pytest.fixture
def teacher(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> None:
    """A teacher that is ready, `digits-teacher@1`."""
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id)


def make(sessions: database.Sessions, storage: Storage, export_id: str) -> None:
    """Do what a worker does."""
    contents = {"model.onnx": b"a graph", "export.json": json.dumps(DESCRIBED).encode()}
    with sessions.begin() as session:
        claim = exports.claim(session, export_id)
        assert claim is not None
        files = [
            factories.stored(session, storage, content, path=path)
            for path, content in contents.items()
        ]
        exports.finish(session, claim, files=files, measured=MEASURED, notes=["told"])


@pytest.mark.usefixtures("teacher")
class TestExport:
    def test_is_asked_for_listed_and_saved(
        self, run, sessions: database.Sessions, storage: Storage, tmp_path: Path
    ) -> None:
        asked = json.loads(run("--json", "export", "digits-teacher@1", "--format", "onnx"))
        assert (asked["state"], asked["saved"]) == ("queued", [])
        make(sessions, storage, asked["id"])
        listed = run("exports", "digits-teacher")
        assert "onnx float32" in listed
        assert "360 of 360 images" in listed
        folder = tmp_path / "saved"
        shown = run("export", "digits-teacher", "--output", str(folder))
        assert "0.9000 (original 0.9000)" in shown
        assert "told" in shown
        assert (folder / "model.onnx").read_bytes() == b"a graph"
        (folder / "model.onnx").write_bytes(b"mine")
        assert "--force" in run("export", "digits-teacher", "-o", str(folder), code=5)

    def test_that_was_refused_says_why(self, run, sessions: database.Sessions) -> None:
        asked = json.loads(run("--json", "export", "digits-teacher@1"))
        with sessions.begin() as session:
            claim = exports.claim(session, asked["id"])
            assert claim is not None
            failure = {"code": "drop_too_large", "message": "it loses 0.1000 of accuracy"}
            exports.refuse(session, claim, failure=failure, measured=MEASURED, notes=[])
        told = run("export", "digits-teacher@1", "--wait", code=3)
        assert "refused: it loses 0.1000 of accuracy (drop_too_large)" in told

    def test_for_mlflow_is_a_folder_as_mlflow_has_it(
        self, run, sessions: database.Sessions, storage: Storage, tmp_path: Path
    ) -> None:
        asked = json.loads(run("--json", "export", "digits-teacher@1"))
        make(sessions, storage, asked["id"])
        folder = tmp_path / "mlflow"
        run("export", "mlflow", "digits-teacher@1", "-o", str(folder))
        model = yaml.safe_load((folder / "MLmodel").read_text())
        assert model["flavors"]["python_function"]["loader_module"] == "mlflow.onnx"
        for flavour in model["flavors"].values():
            assert (folder / flavour["data"]).is_file()
        (given,) = json.loads(model["signature"]["inputs"])
        assert given["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
        (answer,) = json.loads(model["signature"]["outputs"])
        assert answer["tensor-spec"]["shape"] == [-1, 3]
        assert "onnx>=1.23.2" in (folder / "requirements.txt").read_text().splitlines()
        assert "expected MODEL" in run("export", "mlfow", "digits-teacher@1", code=2)
        assert "--format hub" in run(
            "export", "mlflow", "digits-teacher", "--format", "hub", code=2
        )


@pytest.mark.usefixtures("teacher")
class TestPredict:
    def test_prints_the_likeliest_classes(
        self, run, sessions: database.Sessions, storage: Storage, tmp_path: Path
    ) -> None:
        asked = json.loads(run("--json", "export", "digits-teacher@1", "--max-drop", "0.5"))
        make(sessions, storage, asked["id"])
        picture = tmp_path / "three.png"
        picture.write_bytes(b"a picture")
        worker = threading.Thread(target=answer, args=(sessions,))
        worker.start()
        told = run("predict", "digits-teacher@1", str(picture))
        worker.join()
        assert "three.png" in told
        with sessions.begin() as session:
            assert session.query(tables.ModelExportRow).count() == 1  # any that is ready answers
        assert "0.9000" in told
        assert "is not a file" in run("predict", "digits-teacher@1", "none.png", code=5)

    @pytest.mark.slow
    def test_has_an_export_made_where_none_is_ready(
        self, run, sessions: database.Sessions, storage: Storage, tmp_path: Path
    ) -> None:
        picture = tmp_path / "three.png"
        picture.write_bytes(b"a picture")
        worker = threading.Thread(target=make_and_answer, args=(sessions, storage))
        worker.start()
        told = run("predict", "digits-teacher@1", str(picture))
        worker.join()
        assert "0.9000" in told


def make_and_answer(sessions: database.Sessions, storage: Storage) -> None:
    """Make the first export that is asked for, and answer the first request that comes."""

    def export_id() -> str | None:
        with sessions.begin() as session:
            return session.query(tables.ModelExportRow.id).scalar()

    make(sessions, storage, waiting.until(export_id, "an export is asked for", pause_seconds=0.02))
    answer(sessions)


def answer(sessions: database.Sessions) -> None:
    """Answer the first request that comes."""
    told: dict[str, Any] = {"classes": [{"class": "3", "probability": 0.9}]}

    def is_answered() -> bool:
        with sessions.begin() as session:
            for row in session.query(tables.PredictionRow):
                assert predictions.claim(session, row.id) is not None
                predictions.finish(session, row.id, answer={"answers": [told], "milliseconds": 1.0})
                return True
        return False

    waiting.until(is_answered, "a request is answered", pause_seconds=0.02)

"""Exports by HTTP: asked for, looked at, deleted, by whom it may be."""

import base64
from typing import Any

import pytest
from fastapi.testclient import TestClient

from models_registry.artifacts import exports, predictions
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories
from tests.databases import SQLITE_ONLY

pytestmark = SQLITE_ONLY

URL = "/v1/models/digits-teacher/versions/1/exports"
CHECKS = {
    "images": 360,
    "largest_logit_difference": 1e-6,
    "decisions_equal": 360,
    "decisions": 360,
    "decisions_of": "images",
    "metric": "accuracy",
    "accuracy": 0.9,
    "original_accuracy": 0.9,
    "drop": 0.0,
}
MEASURED: dict[str, Any] = {
    "opset": 20,
    "library_versions": {"onnx": "1.23.2"},
    "checks": CHECKS,
    "latency": {"ms": 0.1, "device": "cpu", "batch": 1, "threads": 2, "original_ms": 0.5},
}


@pytest.fixture
def ready(
    sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
) -> tables.ModelVersionRow:
    """A teacher that is ready, `digits-teacher@1`."""
    with sessions.begin() as session:
        return factories.teacher(session, storage, project_id=project.id)


@pytest.fixture
def made(
    client: TestClient,
    sessions: database.Sessions,
    storage: Storage,
    ready: tables.ModelVersionRow,
) -> str:
    """The id of a ready export of it."""
    export_id = str(client.post(URL, json={"format": "onnx"}).json()["id"])
    with sessions.begin() as session:
        claim = exports.claim(session, export_id)
        assert claim is not None
        file = factories.stored(session, storage, b"a graph", path="model.onnx")
        exports.finish(session, claim, files=[file], measured=MEASURED, notes=["told"])
    return export_id


class TestCreate:
    @pytest.mark.usefixtures("ready")
    def test_accepts_a_form_and_returns_the_same_export_again(self, client: TestClient) -> None:
        first = client.post(URL, json={"format": "onnx", "precision": "float16"})
        assert first.status_code == 202
        body = first.json()
        assert body["id"].startswith("exp_")
        assert first.headers["location"] == f"{URL}/{body['id']}"
        assert (body["state"], body["files"], body["checks"]) == ("queued", [], None)
        assert body["model"] == "digits-teacher@1"
        assert body["max_drop"] == 0.01
        again = client.post(URL, json={"format": "onnx", "precision": "float16"})
        assert again.json()["id"] == body["id"]
        assert client.get(first.headers["location"]).json() == body

    @pytest.mark.usefixtures("ready")
    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"format": "coreml"}, "/format"),
            ({"format": "onnx", "max_drop": 2}, "/max_drop"),
            ({"format": "hub", "precision": "int8"}, "/precision"),
            ({"format": "hub", "include_preprocessing": True}, "/include_preprocessing"),
            ({"format": "onnx", "opset": 18}, "/opset"),
        ],
    )
    def test_names_the_field_at_fault(
        self, client: TestClient, body: dict[str, Any], pointer: str
    ) -> None:
        answer = client.post(URL, json=body)
        assert answer.status_code == 422
        assert pointer in {fault["pointer"] for fault in answer.json()["errors"]}

    @pytest.mark.usefixtures("ready")
    def test_is_for_editors_of_the_project(
        self,
        client: TestClient,
        stranger: TestClient,
        sessions: database.Sessions,
        project: tables.ProjectRow,
    ) -> None:
        assert stranger.post(URL, json={"format": "onnx"}).status_code == 404
        with sessions.begin() as session:
            viewer = factories.key(session, project_id=project.id, role="viewer")
        headers = {"authorization": f"Bearer {viewer}"}
        assert client.post(URL, json={"format": "onnx"}, headers=headers).status_code == 403
        assert client.get(URL, headers=headers).status_code == 200


class TestRead:
    def test_shows_files_with_addresses_and_what_was_measured(
        self, client: TestClient, made: str
    ) -> None:
        (body,) = client.get(URL).json()["data"]
        assert body == client.get(f"{URL}/{made}").json()
        assert body["state"] == "ready"
        assert body["checks"] == {**CHECKS, "largest_box_difference": None}
        assert body["latency"] == MEASURED["latency"]
        assert body["notes"] == ["told"]
        (file,) = body["files"]
        assert file["path"] == f"exports/{made}/model.onnx"
        assert client.get(file["url"]).content == b"a graph"

    def test_is_kept_within_the_project(self, stranger: TestClient, made: str) -> None:
        assert stranger.get(f"{URL}/{made}").status_code == 404
        assert stranger.delete(f"{URL}/{made}").status_code == 404

    def test_of_another_version_is_not_found(
        self,
        client: TestClient,
        made: str,
        sessions: database.Sessions,
        storage: Storage,
        ready: tables.ModelVersionRow,
    ) -> None:
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=ready.project_id)
        assert client.get(f"{URL.replace('/1/', '/2/')}/{made}").status_code == 404


class TestDelete:
    def test_takes_the_files_along_and_is_in_the_audit_log(
        self, client: TestClient, made: str
    ) -> None:
        (file,) = client.get(f"{URL}/{made}").json()["files"]
        assert client.delete(f"{URL}/{made}").status_code == 204
        assert client.get(f"{URL}/{made}").status_code == 404
        assert client.get(file["url"]).status_code == 404
        (entry,) = client.get("/v1/audit", params={"action": "export.deleted"}).json()["data"]
        assert entry["subject"] == "digits-teacher@1"
        assert entry["facts"] == {"export": made}


PREDICT = "/v1/models/digits-teacher/versions/1/predict"
NOW = {"wait_seconds": 0}


def encoded(content: bytes = b"a picture") -> str:
    return base64.b64encode(content).decode()


class TestPredict:
    @pytest.mark.usefixtures("made")
    def test_keeps_pictures_for_a_worker_and_its_answer_without_them(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        asked = client.post(PREDICT, json={"pictures": [encoded()]}, params=NOW)
        assert asked.status_code == 202, asked.text
        body = asked.json()
        assert (body["state"], body["answers"]) == ("queued", None)
        with sessions.begin() as session:
            row = predictions.claim(session, body["id"])
            assert row is not None
            assert predictions.decoded(row.pictures or []) == [b"a picture"]
            assert predictions.claim(session, body["id"]) is None
            told = {"classes": [{"class": "3", "probability": 0.9}]}
            answer = {"answers": [told], "milliseconds": 1.5}
            predictions.finish(session, row.id, answer=answer)
            assert row.pictures is None
        found = client.get(asked.headers["location"], params={"wait_seconds": 5}).json()
        assert found["state"] == "ready"
        assert found["answers"][0]["classes"] == told["classes"]

    @pytest.mark.usefixtures("made")
    @pytest.mark.parametrize(
        ("pictures", "code"),
        [
            ([], "picture_count"),
            (["AAAA"] * 33, "picture_count"),
            (["*"], "bad_base64"),
            ([""], "empty"),
        ],
    )
    def test_refuses_what_are_no_pictures(
        self, client: TestClient, pictures: list[str], code: str
    ) -> None:
        answer = client.post(PREDICT, json={"pictures": pictures}, params=NOW)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["code"] == code

    @pytest.mark.usefixtures("made")
    def test_bounds_bytes_and_what_waits(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(predictions, "MOST_BYTES", 20)
        large = client.post(PREDICT, json={"pictures": [encoded(b"x" * 21)]}, params=NOW)
        assert large.json()["errors"][0]["code"] == "too_large"
        for _ in range(predictions.MOST_WAITING):
            one = client.post(PREDICT, json={"pictures": [encoded()]}, params=NOW)
            assert one.status_code == 202
        refused = client.post(PREDICT, json={"pictures": [encoded()]}, params=NOW)
        assert refused.status_code == 429

    def test_needs_a_graph_and_an_editor(
        self,
        client: TestClient,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        ready: tables.ModelVersionRow,
    ) -> None:
        body = {"pictures": [encoded()]}
        answer = client.post(PREDICT, json=body, params=NOW)
        assert (answer.status_code, answer.json()["code"]) == (409, "export_needed")
        with sessions.begin() as session:
            viewer = factories.key(session, project_id=project.id, role="viewer")
            row = session.get_one(tables.ModelVersionRow, ready.id)
            row.task = "embedding"
        headers = {"authorization": f"Bearer {viewer}"}
        assert client.post(PREDICT, json=body, params=NOW, headers=headers).status_code == 403
        answer = client.post(PREDICT, json=body, params=NOW)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_exportable")

    @pytest.mark.usefixtures("made")
    def test_is_forgotten(
        self, client: TestClient, stranger: TestClient, sessions: database.Sessions
    ) -> None:
        asked = client.post(PREDICT, json={"pictures": [encoded()]}, params=NOW)
        place = asked.headers["location"]
        assert stranger.get(place).status_code == 404
        with sessions.begin() as session:
            (row,) = session.query(tables.PredictionRow)
            row.expires_at = row.created_at
        assert client.get(place).status_code == 404
        with sessions.begin() as session:
            assert predictions.sweep(session) == 1

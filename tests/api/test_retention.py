"""Retention and erasure over HTTP: who may set it, what a dry run says, what answers afterwards."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from models_registry.jobs import leases
from models_registry.persistence import database, tables, task_leases
from models_registry.persistence.storage import Storage
from models_registry.retention import sweep
from tests import factories
from tests.databases import SQLITE_ONLY

pytestmark = SQLITE_ONLY


@pytest.fixture
def ended(sessions: database.Sessions, storage: Storage, job: tables.JobRow) -> str:
    """A job that failed more than a year ago, with a checkpoint, points and log lines."""
    with sessions.begin() as session:
        row = session.get_one(tables.JobRow, job.id)
        lease = factories.running(session, row)
        file = factories.stored(session, storage, b"checkpoint", path="1.pt")
        leases.checkpoint(session, lease, file, step=1, epoch=1, phase="student")
        points = [leases.MetricSample("loss/total", 1, 1, 0.5)]
        leases.report(session, lease, progress=0.5, estimated_end_at=None, samples=points)
        leases.fail(session, lease, code="c", message="m", retryable=False, log_tail=["step 1"])
        row.finished_at = database.now(session) - timedelta(days=400)
        now = database.now(session)
        line = {"job_id": job.id, "attempt": 1, "start": 0, "end": 7, "text": "step 1\n"}
        session.add(tables.LogSliceRow(**line, at=now))
    return job.id


def run(sessions: database.Sessions) -> None:
    with task_leases.held(sessions, "collect") as lease:
        assert lease is not None
        sweep.sweep(lease, grace=timedelta(seconds=-1))


class TestPolicy:
    def test_is_shown_to_all_and_set_by_administrators(
        self,
        client: TestClient,
        stranger: TestClient,
        sessions: database.Sessions,
        project: tables.ProjectRow,
    ) -> None:
        shown = client.get("/v1/retention").json()
        assert shown == {
            "checkpoints_last": 2,
            "failed_attempts_days": 1,
            "logs_days": 30,
            "metrics_days": 180,
            "events_days": 365,
            "grace_seconds": 86400.0,
        }
        changed = client.patch("/v1/retention", json={"logs_days": None, "checkpoints_last": 5})
        assert changed.json() == {**shown, "logs_days": None, "checkpoints_last": 5}
        assert stranger.get("/v1/retention").json() == shown
        with sessions.begin() as session:
            editor = factories.key(session, project_id=project.id, role="editor")
        headers = {"authorization": f"Bearer {editor}"}
        assert client.get("/v1/retention", headers=headers).status_code == 200
        for verb, path in (("PATCH", "/v1/retention"), ("POST", "/v1/retention/sweep")):
            refused = client.request(verb, path, json={"logs_days": 1}, headers=headers)
            assert refused.status_code == 403
        [entry] = client.get("/v1/audit", params={"action": "retention"}).json()["data"]
        assert entry["facts"] == {"logs_days": [30, None], "checkpoints_last": [2, 5]}

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"logs_days": 0}, "/logs_days"),
            ({"checkpoints_last": None}, "/checkpoints_last"),
            ({"log_days": 3}, "/log_days"),
        ],
    )
    def test_refuses_what_cannot_be(
        self, client: TestClient, body: dict[str, Any], pointer: str
    ) -> None:
        for verb, path in (("PATCH", "/v1/retention"), ("POST", "/v1/retention/preview")):
            answer = client.request(verb, path, json=body)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"] == pointer


class TestPreview:
    def test_lists_what_a_policy_would_let_go_and_deletes_nothing(
        self, client: TestClient, sessions: database.Sessions, ended: str
    ) -> None:
        kept = {"failed_attempts_days": None, "metrics_days": 500, "events_days": 500}
        answer = client.post("/v1/retention/preview", json=kept).json()
        counts = {one["kind"]: (one["entries"], one["size_bytes"]) for one in answer["kinds"]}
        assert counts == {
            "checkpoints": (0, 0),
            "failed_attempts": (0, 0),
            "logs": (1, 7),
            "metrics": (0, 0),
            "events": (0, 0),
        }
        assert answer["policy"]["metrics_days"] == 500
        assert "operator" in answer["notes"][0]
        assert client.get("/v1/retention").json()["metrics_days"] == 180
        with sessions() as session:
            assert session.query(tables.LogSliceRow).count() == 1


class TestSweep:
    def test_is_asked_of_maintenance(
        self,
        client: TestClient,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        ended: str,
    ) -> None:
        answer = client.post("/v1/retention/sweep")
        assert answer.status_code == 202
        assert {one["kind"] for one in answer.json()["kinds"] if one["entries"]} >= {"logs"}
        with sessions() as session:
            query = sa.select(tables.OutboxRow).where(tables.OutboxRow.queue == "maintenance")
            message = session.scalars(query).one()
        assert (message.task, message.payload) == (
            "maintenance.retain",
            {"project_id": project.id},
        )

    def test_leaves_answers_that_say_so(
        self, client: TestClient, sessions: database.Sessions, ended: str
    ) -> None:
        paths = {
            "events": "events_deleted",
            "stream": "events_deleted",
            "metrics": "metrics_deleted",
            "logs/stream": "logs_deleted",
            "checkpoints": "failed_attempts_deleted",
        }
        for path in ("events", "metrics", "checkpoints"):
            assert client.get(f"/v1/jobs/{ended}/{path}").json()["data"], path
        run(sessions)
        for path, code in paths.items():
            answer = client.get(f"/v1/jobs/{ended}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (410, code), path
        job = client.get(f"/v1/jobs/{ended}").json()
        assert len(job["warnings"]) == 4
        [log] = client.get(f"/v1/jobs/{ended}/logs").json()["data"]
        assert log["lines"] == ["step 1"]
        with sessions.begin() as session:
            for mark in session.query(tables.RetentionMarkRow):
                mark.swept_at = database.now(session) - timedelta(days=31)
        for path in paths:
            assert client.get(f"/v1/jobs/{ended}/{path}").status_code == 404, path


class TestErase:
    def test_tells_what_remains_and_is_logged(
        self,
        client: TestClient,
        stranger: TestClient,
        sessions: database.Sessions,
        project: tables.ProjectRow,
    ) -> None:
        with sessions.begin() as session:
            factories.dataset_version(session, project_id=project.id)
            editor = factories.key(session, project_id=project.id, role="editor")
        path = "/v1/datasets/faces/versions/1/erase"
        headers = {"authorization": f"Bearer {editor}"}
        assert client.post(path, json={}, headers=headers).status_code == 403
        assert stranger.post(path, json={}).status_code == 404
        answer = client.post(path, json={})
        assert answer.status_code == 200
        body = answer.json()
        assert (body["reference"], body["waiting_blobs"], body["notes"]) == ("faces@1", 0, [])
        assert body["remains"][0]["name"] == "faces@1"
        assert client.get("/v1/datasets/faces/versions/1").status_code == 410
        assert client.post(path, json={}).json()["blobs"] == 0
        [_, entry] = client.get("/v1/audit", params={"action": "dataset.erased"}).json()["data"]
        assert (entry["subject"], entry["facts"]["versions"]) == ("faces@1", ["faces@1"])
        assert client.post("/v1/datasets/faces/erase", json={}).status_code == 200
        assert client.post("/v1/datasets/digits/erase", json={}).status_code == 409

    def test_says_why_bytes_that_were_just_stored_are_still_there(
        self,
        client: TestClient,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        with sessions.begin() as session:
            archive = factories.stored(session, storage, b"uploaded a moment ago")
            factories.dataset_version(session, project_id=project.id, archive_sha256=archive.sha256)
        body = client.post("/v1/datasets/faces/erase", json={}).json()
        assert (body["blobs"], body["waiting_blobs"]) == (1, 1)
        (note,) = body["notes"]
        assert "within the last hour" in note
        assert "after 86400 s" in note
        assert storage.exists(archive.storage_key)

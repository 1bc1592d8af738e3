"""Jobs over HTTP: submit once, look, steer, and take what came out."""

import hashlib
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.access import keys
from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import databases, factories

Body = dict[str, Any]

pytestmark = pytest.mark.usefixtures("teacher")


@pytest.fixture
def submitted(client: TestClient) -> Body:
    """A job that has just been submitted."""
    answer = client.post("/v1/jobs", json=factories.spec(labels={"team": "vision"}))
    assert answer.status_code == 202, answer.text
    body: Body = answer.json()
    return body


def row_of(session: Any, body: Body) -> tables.JobRow:
    """Return the row of a job."""
    row: tables.JobRow = session.get_one(tables.JobRow, body["id"])
    return row


def count(sessions: database.Sessions, kind: Any) -> int:
    """Return how many rows there are."""
    with sessions() as session:
        return session.scalars(sa.select(sa.func.count()).select_from(kind)).one()


class TestSubmit:
    def test_answers_with_the_job_as_stored_and_where_it_is(self, client: TestClient) -> None:
        answer = client.post("/v1/jobs", json=factories.spec(labels={"team": "vision"}))
        assert answer.status_code == 202
        body = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{body['id']}"
        assert body["state"] == "queued"
        assert body["attempt"] == 0
        assert body["progress"] == 0
        assert body["metrics"] == {}
        assert body["failure"] is None
        assert body["result"] is None
        assert body["labels"] == {"team": "vision"}
        assert body["created_at"].endswith("Z")
        assert body["spec"]["method"]["name"] == "kd"
        assert body["spec"]["method"]["temperature"] > 0
        assert body["spec"]["training"]["batch_size"] == 64
        assert body["spec"]["teacher"] == "digits-teacher@1"
        assert body["spec"]["teacher_digest"].startswith("sha256:")
        assert client.get(answer.headers["location"]).json() == body

    def test_can_wait_for_the_student_of_another_job(
        self, client: TestClient, submitted: Body
    ) -> None:
        spec = factories.spec(teacher={"job": submitted["id"]})
        assert client.post("/v1/jobs/validate", json=spec).json()["teacher"] == spec["teacher"]
        body = client.post("/v1/jobs", json=spec).json()
        assert (body["state"], body["state_reason"]) == ("validating", "waiting_for_job")
        assert body["depends_on"] == {"teacher": submitted["id"]}
        assert submitted["id"] in body["state_message"]
        client.post(f"/v1/jobs/{submitted['id']}/cancel")
        ended = client.get(body["links"]["job"]).json()
        assert (ended["state"], ended["failure"]["code"]) == ("failed", "dependency_failed")
        refused = client.post("/v1/jobs", json=spec)
        assert refused.status_code == 422
        assert [fault["pointer"] for fault in refused.json()["errors"]] == ["/teacher"]
        wrong = client.post("/v1/jobs", json=factories.spec(teacher=5))
        assert [fault["pointer"] for fault in wrong.json()["errors"]] == ["/teacher"]

    def test_succeeds_without_a_broker_and_leaves_a_message(
        self, client: TestClient, sessions: database.Sessions, submitted: Body
    ) -> None:
        with sessions() as session:
            [message] = session.scalars(sa.select(tables.OutboxRow))
        assert message.task == "jobs.run"
        assert message.payload["job_id"] == submitted["id"]
        assert message.published_at is None

    @databases.SQLITE_ONLY
    def test_refuses_all_that_is_wrong_at_once_and_stores_nothing(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        wrong = factories.spec(
            teacher="digits-techer@1",
            method={"name": "kd", "temperature": -1},
            student={"network": "retort/resnet9"},
        )
        answer = client.post("/v1/jobs", json=wrong)
        assert answer.status_code == 422
        pointers = {fault["pointer"] for fault in answer.json()["errors"]}
        assert {"/teacher", "/method/temperature", "/student/network"} <= pointers
        assert count(sessions, tables.JobRow) == 0
        assert count(sessions, tables.OutboxRow) == 0


class TestIdempotencyKey:
    def test_gives_the_first_answer_again(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        headers = {"idempotency-key": "once"}
        first = client.post("/v1/jobs", json=factories.spec(), headers=headers)
        again = client.post("/v1/jobs", json=factories.spec(), headers=headers)
        assert again.status_code == 202
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"]
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert count(sessions, tables.JobRow) == 1

    @databases.SQLITE_ONLY
    def test_refuses_another_body(self, client: TestClient) -> None:
        headers = {"idempotency-key": "once"}
        client.post("/v1/jobs", json=factories.spec(), headers=headers)
        other = client.post("/v1/jobs", json=factories.spec(name="other"), headers=headers)
        assert other.status_code == 422
        assert other.json()["code"] == "idempotency_key_reused"

    def test_is_free_again_after_a_refusal(self, client: TestClient) -> None:
        headers = {"idempotency-key": "once"}
        wrong = client.post("/v1/jobs", json=factories.spec(teacher="no@1"), headers=headers)
        right = client.post("/v1/jobs", json=factories.spec(), headers=headers)
        assert (wrong.status_code, right.status_code) == (422, 202)

    def test_makes_one_job_of_fifty_requests_at_the_same_time(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        def submit(_: int) -> Any:
            return client.post(
                "/v1/jobs", json=factories.spec(), headers={"idempotency-key": "fifty"}
            )

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(submit, range(50)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotency-replayed" in answer.headers for answer in answers) == 49
        assert count(sessions, tables.JobRow) == 1
        assert count(sessions, tables.OutboxRow) == 1

    def test_belongs_to_one_project(
        self, client: TestClient, app: FastAPI, sessions: database.Sessions, storage: Storage
    ) -> None:
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
            factories.teacher(session, storage, project_id=other.id)
            text = factories.key(session, project_id=other.id, role="editor")
        headers = {"idempotency-key": "once"}
        mine = client.post("/v1/jobs", json=factories.spec(), headers=headers)
        headers["authorization"] = f"Bearer {text}"
        theirs = client.post("/v1/jobs", json=factories.spec(), headers=headers)
        assert theirs.json()["id"] != mine.json()["id"]
        assert client.get(f"/v1/jobs/{mine.json()['id']}", headers=headers).status_code == 404

    def test_holds_for_a_retry(self, client: TestClient, submitted: Body) -> None:
        url = f"/v1/jobs/{submitted['id']}"
        client.post(f"{url}/cancel")
        headers = {"idempotency-key": "again"}
        first = client.post(f"{url}/retry", headers=headers)
        again = client.post(f"{url}/retry", headers=headers)
        assert first.status_code == 202, first.text
        assert first.json()["retry_of"] == submitted["id"]
        assert again.json()["id"] == first.json()["id"]


class TestValidate:
    def test_fills_in_defaults_and_stores_nothing(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        answer = client.post("/v1/jobs/validate", json=factories.spec())
        assert answer.status_code == 200
        assert answer.json()["training"]["optimizer"]["name"] == "sgd"
        assert count(sessions, tables.JobRow) == 0

    def test_tells_what_the_submitter_should_know(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        with sessions.begin() as session:
            version = session.query(tables.ModelVersionRow).one()
            version.classes = [str(9 - label) for label in range(10)]
        checked = client.post("/v1/jobs/validate", json=factories.spec()).json()
        assert [told["code"] for told in checked["warnings"]] == ["classes_reordered"]
        # The answer is a spec that can be submitted as it is.
        job = client.post("/v1/jobs", json=checked).json()
        assert job["warnings"] == checked["warnings"]
        assert "logits are put in the data set's order" in job["warnings"][0]["message"]

    @databases.SQLITE_ONLY
    def test_refuses_what_submission_refuses(self, client: TestClient) -> None:
        wrong = factories.spec(method={"name": "dk"})
        checked = client.post("/v1/jobs/validate", json=wrong).json()
        submitted = client.post("/v1/jobs", json=wrong).json()
        assert checked["errors"] == submitted["errors"]


class TestList:
    @pytest.fixture
    def many(self, client: TestClient) -> list[Body]:
        """Some jobs, oldest first."""
        specs = [
            factories.spec(name="a", labels={"team": "vision", "a.b\"c'": "x"}),
            factories.spec(name="b", labels={"team": "audio"}),
            factories.spec(name="c", method={"name": "dkd"}),
            factories.spec(name="d"),
        ]
        jobs = [client.post("/v1/jobs", json=spec).json() for spec in specs]
        client.post(f"/v1/jobs/{jobs[3]['id']}/cancel")
        client.post(f"/v1/jobs/{jobs[1]['id']}/pause")
        return jobs

    def test_filters(self, client: TestClient, many: list[Body]) -> None:
        expected: list[tuple[Body, str]] = [
            ({}, "dcba"),
            ({"state": "queued"}, "ca"),
            ({"state": ["cancelled", "paused"]}, "db"),
            ({"method": "dkd"}, "c"),
            ({"name": "a"}, "a"),
            ({"label.team": "vision"}, "a"),
            ({"label.team": "vision", "label.a.b\"c'": "x"}, "a"),
            ({"label.team": "nobody"}, ""),
            ({"label.team": "audio", "state": "queued"}, ""),
            ({"created_after": "2020-01-01T00:00:00Z"}, "dcba"),
            ({"created_before": "2020-01-01T00:00:00Z"}, ""),
        ]
        for query, names in expected:
            answer = client.get("/v1/jobs", params=query)
            assert answer.status_code == 200, answer.text
            found = "".join(job["name"] for job in answer.json()["data"])
            assert found == names, query

    def test_pages_and_holds_a_cursor_to_its_filters(
        self, client: TestClient, many: list[Body]
    ) -> None:
        first = client.get("/v1/jobs", params={"limit": 3}).json()
        assert first["has_more"]
        cursor = first["next_cursor"]
        rest = client.get("/v1/jobs", params={"limit": 3, "cursor": cursor}).json()
        assert "".join(job["name"] for job in [*first["data"], *rest["data"]]) == "dcba"
        assert not rest["has_more"]
        assert rest["next_cursor"] is None
        other = client.get("/v1/jobs", params={"state": "queued", "cursor": cursor})
        assert other.status_code == 400
        assert other.json()["code"] == "cursor_mismatch"
        assert client.get("/v1/jobs?cursor=x").json()["code"] == "bad_cursor"

    @databases.SQLITE_ONLY
    @pytest.mark.parametrize(
        "query",
        ["state=sleeping", "limit=0", "created_after=yesterday", "created_after=2020-01-01T00:00"],
    )
    def test_refuses_filters_that_mean_nothing(self, client: TestClient, query: str) -> None:
        assert client.get(f"/v1/jobs?{query}").status_code == 422


class TestVerbs:
    def test_pause_resume_cancel_a_queued_job(self, client: TestClient, submitted: Body) -> None:
        url = f"/v1/jobs/{submitted['id']}"
        states = [
            client.post(f"{url}/{verb}").json()["state"]
            for verb in ("pause", "pause", "resume", "resume", "cancel", "cancel")
        ]
        assert states == ["paused", "paused", "queued", "queued", "cancelled", "cancelled"]
        assert client.post(f"{url}/cancel").status_code == 200

    def test_cancel_a_running_job_by_asking_its_worker(
        self, client: TestClient, sessions: database.Sessions, submitted: Body
    ) -> None:
        with sessions.begin() as session:
            factories.running(session, row_of(session, submitted))
        answers = [client.post(f"/v1/jobs/{submitted['id']}/cancel", json={}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        body = answers[-1].json()
        assert body["state"] == "cancelling"
        assert body["state_reason"] == "cancelled_by_caller"

    def test_say_what_is_allowed_instead(self, client: TestClient, submitted: Body) -> None:
        url = f"/v1/jobs/{submitted['id']}"
        client.post(f"{url}/cancel")
        answer = client.post(f"{url}/pause")
        assert answer.status_code == 409
        assert answer.json()["code"] == "illegal_transition"
        assert "pause" not in answer.json()["allowed"]

    @databases.SQLITE_ONLY
    @pytest.mark.parametrize("job_id", ["job_nobody", "%F0%9F%99%82", "x" * 300])
    def test_know_no_job_of_nobody(self, client: TestClient, job_id: str) -> None:
        parts = ("attempts", "checkpoints", "events", "metrics", "logs", "stream", "student")
        asked = [
            *(("GET", ""), ("DELETE", "")),
            *(("POST", f"/{name}") for name in ("cancel", "pause", "resume", "retry")),
            *(("GET", f"/{name}") for name in parts),
        ]
        for verb, path in asked:
            answer = client.request(verb, f"/v1/jobs/{job_id}{path}")
            assert answer.status_code == 404, (verb, path)
            assert answer.headers["content-type"] == "application/problem+json"


class TestDelete:
    def test_needs_a_job_that_has_ended(self, client: TestClient, submitted: Body) -> None:
        url = f"/v1/jobs/{submitted['id']}"
        refused = client.delete(url)
        assert refused.status_code == 409
        assert "cancel" in refused.json()["allowed"]
        client.post(f"{url}/cancel")
        assert client.delete(url).status_code == 204
        assert client.get(url).status_code == 410
        assert client.get("/v1/jobs").json()["data"] == []


class TestParts:
    def test_metrics_are_the_newest_attempts_and_non_finite_ones_are_text(
        self, client: TestClient, sessions: database.Sessions, submitted: Body
    ) -> None:
        with sessions.begin() as session:
            row = row_of(session, submitted)
            first = factories.running(session, row)
            report(session, first, ("loss/total", 1, 9.0), ("loss/total", 2, 8.0))
            report(session, first, ("loss/kd", 1, float("inf")), ("loss/nan", 1, float("nan")))
            factories.lost(session, row)
            second = factories.running(session, row)
            report(session, second, ("loss/total", 2, 7.0), ("loss/total", 3, 6.0))
        url = f"/v1/jobs/{submitted['id']}"
        latest = {"loss/total": 6.0, "loss/kd": "Infinity", "loss/nan": "NaN"}
        assert client.get(url).json()["metrics"] == latest
        listed = client.get("/v1/jobs").json()["data"][0]
        assert listed["metrics"] == latest
        series = {
            entry["key"]: [(point["step"], point["value"]) for point in entry["points"]]
            for entry in client.get(f"{url}/metrics").json()["data"]
        }
        assert series == {
            "loss/kd": [(1, "Infinity")],
            "loss/nan": [(1, "NaN")],
            "loss/total": [(1, 9.0), (2, 7.0), (3, 6.0)],
        }
        chosen = client.get(f"{url}/metrics?keys=loss/total&from_step=2").json()["data"]
        assert [point["step"] for point in chosen[0]["points"]] == [2, 3]
        attempts = client.get(f"{url}/attempts").json()["data"]
        assert [attempt["number"] for attempt in attempts] == [1, 2]
        assert attempts[0]["outcome"] == "attempt_lost"
        assert attempts[1]["device"] == "cpu"

    def test_show_a_failure_with_its_log(
        self, client: TestClient, sessions: database.Sessions, submitted: Body
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, row_of(session, submitted))
            leases.fail(
                session,
                lease,
                code="diverged",
                message="The loss is NaN.",
                retryable=False,
                log_tail=["step 3", "loss nan"],
            )
        url = f"/v1/jobs/{submitted['id']}"
        body = client.get(url).json()
        assert body["state"] == "failed"
        assert body["failure"]["code"] == "diverged"
        assert body["failure"]["log_tail"] == ["step 3", "loss nan"]
        [log] = client.get(f"{url}/logs").json()["data"]
        assert log["lines"] == ["step 3", "loss nan"]
        assert client.get(f"{url}/logs?attempt=2").json()["data"] == []

    def test_list_checkpoints_newest_first(
        self, client: TestClient, sessions: database.Sessions, storage: Storage, submitted: Body
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, row_of(session, submitted))
            for step in (10, 20):
                file = factories.stored(session, storage, b"checkpoint %d" % step)
                leases.checkpoint(session, lease, file, step=step, epoch=1, phase="student")
        body = client.get(f"/v1/jobs/{submitted['id']}/checkpoints").json()
        assert [entry["step"] for entry in body["data"]] == [20, 10]
        assert not body["has_more"]

    def test_events_can_be_read_in_pieces(self, client: TestClient, submitted: Body) -> None:
        url = f"/v1/jobs/{submitted['id']}/events"
        client.post(f"/v1/jobs/{submitted['id']}/cancel")
        all_of_them = client.get(url).json()
        assert [event["sequence"] for event in all_of_them["data"]] == [1, 2, 3]
        assert all_of_them["data"][-1]["type"] == "job.cancelled"
        first = client.get(url, params={"limit": 2}).json()
        assert first["has_more"]
        rest = client.get(url, params={"after": 2}).json()
        assert [event["sequence"] for event in rest["data"]] == [3]
        assert not rest["has_more"]


def report(session: Any, lease: leases.Lease, *points: tuple[str, int, float]) -> None:
    """Report points of an attempt."""
    leases.report(
        session,
        lease,
        progress=0.5,
        estimated_end_at=None,
        samples=[leases.MetricSample(key, step, 1, value) for key, step, value in points],
    )


class TestStudent:
    def test_is_not_there_before_the_job_has_succeeded(
        self, client: TestClient, submitted: Body
    ) -> None:
        answer = client.get(f"/v1/jobs/{submitted['id']}/student")
        assert answer.status_code == 409
        assert answer.json()["code"] == "student_not_ready"

    @databases.SQLITE_ONLY
    def test_comes_whole_and_with_its_digest(
        self, client: TestClient, sessions: database.Sessions, storage: Storage, submitted: Body
    ) -> None:
        with sessions.begin() as session:
            factories.succeeded(session, storage, row_of(session, submitted), content=b"bytes")
        body = client.get(f"/v1/jobs/{submitted['id']}").json()
        assert body["state"] == "succeeded"
        assert body["progress"] == 1
        assert body["result"]["student"] == "digits-student@1"
        assert body["result"]["scores"]["student"]["accuracy"] == 0.97
        answer = client.get(body["links"]["student"])
        assert answer.content == b"bytes"
        assert f"sha256:{json.loads(answer.headers['etag'])}" == body["result"]["digest"]
        part = client.get(body["links"]["student"], headers={"range": "bytes=1-2"})
        assert (part.status_code, part.content) == (206, b"yt")
        etag = {"if-none-match": answer.headers["etag"]}
        assert client.get(body["links"]["student"], headers=etag).status_code == 304


REPORT = {"index.json": b"{}", "accuracy.png": b"a picture", "accuracy.svg": b"<svg/>"}


@pytest.fixture
def reported(
    client: TestClient, sessions: database.Sessions, storage: Storage, submitted: Body
) -> str:
    """Where the report of a job that has succeeded is listed."""
    with sessions.begin() as session:
        factories.succeeded(session, storage, row_of(session, submitted), report=REPORT)
    where: str = client.get(f"/v1/jobs/{submitted['id']}").json()["links"]["report"]
    return where


class TestReport:
    def test_is_not_there_before_the_job_has_succeeded(
        self, client: TestClient, submitted: Body
    ) -> None:
        assert client.get(f"/v1/jobs/{submitted['id']}").json()["links"]["report"] is None
        for path in ("report", "report.zip", "report/index.json"):
            answer = client.get(f"/v1/jobs/{submitted['id']}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (409, "report_not_ready")

    def test_lists_files_with_all_that_is_needed_to_fetch_them(
        self, client: TestClient, reported: str
    ) -> None:
        listed = client.get(reported).json()
        assert [file["path"] for file in listed["data"]] == sorted(REPORT)
        types = ["image/png", "image/svg+xml", "application/json"]
        assert [file["media_type"] for file in listed["data"]] == types
        for file in listed["data"]:
            answer = client.get(file["url"])
            assert answer.content == REPORT[file["path"]]
            assert len(answer.content) == file["size_bytes"]
            assert json.loads(answer.headers["etag"]) == file["sha256"]
            assert answer.headers["content-type"].startswith(file["media_type"])
            assert answer.headers["content-disposition"].startswith("attachment")
            assert "repr-digest" in answer.headers

    @databases.SQLITE_ONLY
    def test_gives_a_part_of_a_file(self, client: TestClient, reported: str) -> None:
        part = client.get(f"{reported}/accuracy.png", headers={"range": "bytes=2-"})
        assert (part.status_code, part.content) == (206, b"picture")

    @databases.SQLITE_ONLY
    def test_comes_as_one_archive(self, client: TestClient, reported: str) -> None:
        answer = client.get(client.get(reported).json()["archive"])
        assert answer.headers["content-type"] == "application/zip"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["content-disposition"].endswith('-report.zip"')
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        assert found == {f"report/{path}": content for path, content in REPORT.items()}
        known = {"if-none-match": answer.headers["etag"]}
        assert client.get(f"{reported}.zip", headers=known).status_code == 304
        other = {"if-match": '"other"'}
        assert client.get(f"{reported}.zip", headers=other).status_code == 412

    @databases.SQLITE_ONLY
    def test_of_lost_bytes_is_gone_before_it_begins(
        self, client: TestClient, storage: Storage, reported: str
    ) -> None:
        digest = hashlib.sha256(REPORT["index.json"]).hexdigest()
        storage.delete(f"sha256/{digest[:2]}/{digest[2:4]}/{digest}")
        assert client.get(f"{reported}.zip").status_code == 410

    @databases.SQLITE_ONLY
    def test_leads_to_no_other_file(self, client: TestClient, reported: str) -> None:
        for path in ("model.safetensors", "%2E%2E/model.safetensors", "%2Findex.json", ""):
            assert client.get(f"{reported}/{path}").status_code == 404

    @databases.SQLITE_ONLY
    def test_is_nobody_elses(self, stranger: TestClient, reported: str) -> None:
        for path in ("", ".zip", "/index.json"):
            assert stranger.get(f"{reported}{path}").status_code == 404

    @databases.SQLITE_ONLY
    def test_may_have_been_switched_off(
        self, client: TestClient, sessions: database.Sessions, storage: Storage, submitted: Body
    ) -> None:
        with sessions.begin() as session:
            factories.succeeded(session, storage, row_of(session, submitted))
        where = f"/v1/jobs/{submitted['id']}/report"
        assert client.get(where).json() == {"data": [], "archive": None}
        assert client.get(f"{where}.zip").status_code == 404

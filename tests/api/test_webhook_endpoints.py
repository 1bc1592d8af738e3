"""Webhook endpoints over HTTP: who may, what is shown once, and what is refused."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.persistence import database, tables
from models_registry.webhooks import endpoints
from tests import factories
from tests.databases import SQLITE_ONLY

pytestmark = SQLITE_ONLY

PATH = "/v1/webhook-endpoints"
URL = "https://93.184.216.34/hook"  # a literal address needs no DNS


@pytest.fixture
def made(client: TestClient) -> dict[str, Any]:
    """A new endpoint, as it was answered."""
    answer = client.post(PATH, json={"url": URL, "events": ["job.cancelled"]})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture
def editor(app: FastAPI, sessions: database.Sessions, project: tables.ProjectRow) -> TestClient:
    with sessions.begin() as session:
        text = factories.key(session, project_id=project.id, role="editor")
    return TestClient(app, headers={"authorization": f"Bearer {text}"})


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


class TestEndpoints:
    def test_show_their_secret_once(self, client: TestClient, made: dict[str, Any]) -> None:
        assert made["secret"].startswith("whsec_")
        shown = client.get(f"{PATH}/{made['id']}").json()
        assert shown == {name: value for name, value in made.items() if name != "secret"}
        assert client.get(PATH).json()["data"] == [shown]

    def test_get_a_new_secret_beside_the_former_one(
        self, client: TestClient, made: dict[str, Any]
    ) -> None:
        answer = client.post(f"{PATH}/{made['id']}/rotate-secret")
        assert answer.status_code == 200
        assert answer.json()["secret"] != made["secret"]
        assert answer.json()["former_secret_expires_at"] is not None

    def test_change_field_by_field(self, client: TestClient, made: dict[str, Any]) -> None:
        path = f"{PATH}/{made['id']}"
        off = client.patch(path, json={"enabled": False}).json()
        assert (off["enabled"], off["disabled_reason"]) == (False, "disabled_by_caller")
        assert off["events"] == ["job.cancelled"]
        on = client.patch(path, json={"enabled": True, "events": None, "url": f"{URL}2"}).json()
        assert (on["enabled"], on["events"], on["url"]) == (True, None, f"{URL}2")
        assert on["disabled_message"] is None

    def test_are_deleted(self, client: TestClient, made: dict[str, Any]) -> None:
        path = f"{PATH}/{made['id']}"
        assert client.delete(path).status_code == 204
        assert code(client.get(path)) == (404, "not_found")
        logged = client.get("/v1/audit", params={"action": "webhook_endpoint"}).json()["data"]
        assert [one["action"].partition(".")[2] for one in logged] == ["deleted", "created"]

    def test_of_this_machine_are_refused(self, client: TestClient, made: dict[str, Any]) -> None:
        for url in ("https://127.0.0.1/", "https://localhost:8765/"):
            answer = client.post(PATH, json={"url": url})
            assert code(answer) == (422, "url_not_public")
            assert "RETORT_WEBHOOK_ALLOW_PRIVATE" in answer.json()["detail"]
            assert code(client.patch(f"{PATH}/{made['id']}", json={"url": url}))[0] == 422

    def test_name_events_that_exist(self, client: TestClient) -> None:
        answer = client.post(PATH, json={"url": URL, "events": ["job.done"]})
        assert code(answer) == (422, "unknown_event")
        assert answer.json()["errors"][0]["pointer"] == "/events/0"
        assert "job.succeeded" in answer.json()["detail"]

    def test_are_not_many(
        self, client: TestClient, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            for _ in range(endpoints.MOST_ENDPOINTS):
                endpoints.create(
                    session, project_id=project.id, url=URL, events=None, description=""
                )
        assert code(client.post(PATH, json={"url": URL})) == (409, "too_many_endpoints")

    def test_are_changed_by_administrators_and_read_by_editors(
        self, editor: TestClient, made: dict[str, Any]
    ) -> None:
        path = f"{PATH}/{made['id']}"
        assert editor.get(PATH).status_code == editor.get(path).status_code == 200
        for answer in (
            editor.post(PATH, json={"url": URL}),
            editor.patch(path, json={}),
            editor.post(f"{path}/rotate-secret"),
            editor.delete(path),
        ):
            assert code(answer) == (403, "forbidden")

    def test_of_another_project_are_not_there(
        self, stranger: TestClient, made: dict[str, Any]
    ) -> None:
        path = f"{PATH}/{made['id']}"
        assert stranger.get(PATH).json()["data"] == []
        for answer in (
            stranger.get(path),
            stranger.patch(path, json={}),
            stranger.delete(path),
            stranger.post(f"{path}/rotate-secret"),
            stranger.get(f"{path}/deliveries"),
            stranger.get(f"{path}/deliveries/whd_x"),
            stranger.post(f"{path}/deliveries/whd_x/redeliver"),
        ):
            assert code(answer) == (404, "not_found")


class TestDeliveries:
    def test_are_listed_and_sent_again(
        self, client: TestClient, made: dict[str, Any], job: tables.JobRow
    ) -> None:
        client.post(f"/v1/jobs/{job.id}/cancel")
        path = f"{PATH}/{made['id']}/deliveries"
        (listed,) = client.get(path).json()["data"]
        assert (listed["state"], listed["type"]) == ("pending", "job.cancelled")
        assert listed["payload"]["data"]["job_id"] == job.id
        assert listed["attempts"] == []
        assert client.get(path, params={"state": "failed"}).json()["data"] == []
        assert client.get(f"{path}/{listed['id']}").json() == listed
        assert client.post(f"{path}/{listed['id']}/redeliver").status_code == 202
        assert code(client.post(f"{path}/whd_x/redeliver")) == (404, "not_found")

    def test_are_measured(
        self, client: TestClient, made: dict[str, Any], job: tables.JobRow
    ) -> None:
        client.post(f"/v1/jobs/{job.id}/cancel")
        text = client.get("/metrics").text
        assert 'retort_webhook_deliveries{state="pending"} 1.0' in text
        assert 'retort_webhook_endpoints{disabled_reason=""} 1.0' in text
        assert "retort_webhook_lag_seconds" in text

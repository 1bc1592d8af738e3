"""Quotas over HTTP: who may read and set them, and what a refusal says."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.settings import Settings
from tests import factories, federation_scenes, sending, services
from tests.conftest import MakeApp
from tests.databases import SQLITE_ONLY

pytestmark = SQLITE_ONLY


def viewer(app: FastAPI, sessions: database.Sessions, project_id: str) -> TestClient:
    with sessions.begin() as session:
        text = factories.key(session, project_id=project_id, role="viewer")
    return TestClient(app, headers={"authorization": f"Bearer {text}"})


def of(usage: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in usage["quotas"] if one["name"] == name]
    assert isinstance(found, dict)
    return found


class TestUsage:
    def test_is_read_by_every_member_and_set_by_administrators(
        self,
        app: FastAPI,
        client: TestClient,
        sessions: database.Sessions,
        job: tables.JobRow,
    ) -> None:
        member = viewer(app, sessions, job.project_id)
        answer = client.patch("/v1/quotas", json={"jobs_queued": 7, "share_weight": 2})
        assert answer.status_code == 200
        assert answer.json() == member.get("/v1/usage").json()
        assert answer.json()["share_weight"] == 2
        assert of(answer.json(), "jobs_queued") == {
            "name": "jobs_queued",
            "limit": 7,
            "own_limit": 7,
            "service_limit": 10_000,
            "used": 1,
        }
        assert member.patch("/v1/quotas", json={"jobs_queued": 8}).status_code == 403
        # What is left out stays, and null leaves it to the service.
        assert of(client.patch("/v1/quotas", json={}).json(), "jobs_queued")["limit"] == 7
        back = client.patch("/v1/quotas", json={"jobs_queued": None}).json()
        assert of(back, "jobs_queued")["limit"] == 10_000
        changes = client.get("/v1/audit", params={"action": "quota.changed"}).json()["data"]
        assert [one["facts"] for one in changes] == [
            {"jobs_queued": None},
            {"jobs_queued": 7, "share_weight": 2},
        ]

    def test_is_each_projects_own(
        self, client: TestClient, stranger: TestClient, job: tables.JobRow
    ) -> None:
        client.patch("/v1/quotas", json={"jobs_queued": 7})
        assert of(stranger.get("/v1/usage").json(), "jobs_queued")["limit"] == 10_000
        assert of(stranger.get("/v1/usage").json(), "jobs_queued")["used"] == 0

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"jobs_queued": 10_001}, "/jobs_queued"),
            ({"jobs_running": 0}, "/jobs_running"),
            ({"storage_bytes": -1}, "/storage_bytes"),
            ({"share_weight": 100}, "/share_weight"),
            ({"jobs": 1}, "/jobs"),
        ],
    )
    def test_is_not_set_to_what_cannot_be(
        self, client: TestClient, body: dict[str, Any], pointer: str
    ) -> None:
        answer = client.patch("/v1/quotas", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer


class TestExceeded:
    def test_is_403_with_the_quota(self, client: TestClient, job: tables.JobRow) -> None:
        client.patch("/v1/quotas", json={"jobs_queued": 1, "upload_bytes": 3})
        for answer, name in (
            (client.post("/v1/jobs", json=factories.spec()), "jobs_queued"),
            (client.post("/v1/studies", json=factories.study_spec()), "jobs_queued"),
            (client.post("/v1/uploads", json=sending.announcement(b"1234")), "upload_bytes"),
        ):
            body = answer.json()
            assert (answer.status_code, body["code"]) == (403, "quota_exceeded"), body
            assert body["quota"]["name"] == name
            assert body["retryable"] is False
            assert f"{name} is {body['quota']['limit']}" in body["detail"]


class TestRequestsWithoutRedis:
    def test_are_served_unchecked_and_counted(self, client: TestClient) -> None:
        # Nobody listens where the broker should be.
        for _ in range(3):
            answer = client.get("/v1/usage")
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers
        text = client.get("/metrics").text
        assert 'retort_rate_limited_requests_total{outcome="unchecked"} 3.0' in text


@pytest.mark.slow
class TestRequests:
    @pytest.fixture
    def limited(
        self, settings: Settings, api_key: str, tmp_path: Path, make_app: MakeApp
    ) -> Iterator[tuple[TestClient, TestClient]]:
        """Two api processes, as it were, over one Redis; three requests a minute."""
        with services.redis_server(tmp_path) as broker_url:
            changes = {
                "broker_url": broker_url,
                "quota_requests_per_minute": 3,
                "quota_client_requests_per_minute": 2,
            }
            headers = {"authorization": f"Bearer {api_key}"}
            config = settings.model_copy(update=changes)
            with (
                TestClient(make_app(config), headers=headers) as first,
                TestClient(make_app(config), headers=headers) as second,
            ):
                yield first, second

    def test_beyond_the_limit_are_refused_until_a_token_is_back(
        self, limited: tuple[TestClient, TestClient]
    ) -> None:
        first, second = limited
        began = time.monotonic()
        answers = [first.get("/v1/usage"), second.get("/v1/usage"), first.get("/v1/jobs")]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert answers[0].headers["ratelimit-policy"] == '"project";q=3;w=60'
        assert answers[0].headers["ratelimit"] == '"project";r=2;t=1'
        refused = second.get("/v1/jobs")
        body = refused.json()
        assert (refused.status_code, body["code"], body["retryable"]) == (429, "rate_limited", True)
        # A token comes every 20 s, of which a busy machine may have used some.
        assert 19 - (time.monotonic() - began) <= int(refused.headers["retry-after"]) <= 20
        assert refused.headers["ratelimit"].startswith('"project";r=0;t=')
        assert "requests_per_minute is 3" in body["detail"]
        # Nobody needs a key for these.
        assert first.get("/healthz").status_code == 200
        metrics = second.get("/metrics").text
        assert 'retort_rate_limited_requests_total{outcome="refused"} 1.0' in metrics

    def test_of_a_client_count_neither_against_its_project_nor_against_others(
        self,
        limited: tuple[TestClient, TestClient],
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        remote = federation_scenes.running(sessions, storage, project.id)
        path = f"/v1/federations/{remote.id}/membership"
        (_, north), (_, south) = remote.invite("north"), remote.invite("south")
        of_north, of_south = ({"authorization": f"Bearer {key}"} for key in (north, south))
        first, second = limited
        began = time.monotonic()
        for number in range(3):
            answer = limited[number % 2].get(path, headers=of_north)
            assert answer.status_code == (200 if number < 2 else 429)
        assert 29 - (time.monotonic() - began) <= int(answer.headers["retry-after"]) <= 30
        assert answer.headers["ratelimit-policy"] == '"client";q=2;w=60'
        assert "RETORT_QUOTA_CLIENT_REQUESTS_PER_MINUTE" in answer.json()["detail"]
        assert second.get(path, headers=of_south).status_code == 200
        assert first.get("/v1/usage").headers["ratelimit"] == '"project";r=2;t=1'

"""Probes and measurements: what is down is named, and what is counted is right."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from api.queue import CeleryQueue
from models_registry.persistence import database, outbox, tables
from models_registry.persistence.storage import Storage
from models_registry.settings import Settings
from tests import databases, factories, services, waiting
from tests.conftest import MakeApp
from workers import celery_app


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of our own."""
    with services.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


class TestHealthz:
    @databases.SQLITE_ONLY
    def test_asks_nobody(self, settings: Settings, tmp_path: Path, make_app: MakeApp) -> None:
        nowhere = f"sqlite:///{tmp_path}/no/such/folder/x.sqlite3"
        app = make_app(settings.model_copy(update={"database_url": nowhere}))
        with TestClient(app) as client:
            assert client.get("/healthz").json() == {"status": "alive"}


class TestReadyz:
    @databases.SQLITE_ONLY
    def test_is_degraded_but_ready_without_a_broker(self, app: FastAPI) -> None:
        with TestClient(app) as client:
            answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["status"] == "degraded"
        assert answer.json()["checks"]["broker"] == "cannot be reached"
        assert answer.json()["checks"]["database"] == "ok"

    def test_is_ready_with_one(self, settings: Settings, redis_url: str, make_app: MakeApp) -> None:
        app = make_app(settings.model_copy(update={"broker_url": redis_url}))
        with TestClient(app) as client:
            assert client.get("/readyz").json()["status"] == "ready"

    @databases.SQLITE_ONLY
    def test_names_a_database_that_is_down(
        self, settings: Settings, tmp_path: Path, make_app: MakeApp
    ) -> None:
        nowhere = f"sqlite:///{tmp_path}/no/such/folder/x.sqlite3"
        app = make_app(settings.model_copy(update={"database_url": nowhere}))
        with TestClient(app) as client:
            answer = client.get("/readyz")
        assert answer.status_code == 503
        pointers = [fault["pointer"] for fault in answer.json()["errors"]]
        assert "/checks/database" in pointers
        assert answer.headers["retry-after"]

    def test_names_migrations_that_are_missing(
        self, app: FastAPI, sessions: database.Sessions
    ) -> None:
        version = sa.table("alembic_version", sa.column("version_num"))
        with sessions.begin() as session:
            newest = session.scalars(sa.select(version.c.version_num)).one()
            session.execute(sa.update(version).values(version_num="0000"))
        with TestClient(app) as client:
            answer = client.get("/readyz")
            with sessions.begin() as session:
                session.execute(sa.update(version).values(version_num=newest))
            after = client.get("/readyz")
        assert answer.status_code == 503
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/checks/migrations"]
        assert after.status_code == 200

    @databases.SQLITE_ONLY
    def test_names_a_store_that_is_gone(self, app: FastAPI, tmp_path: Path) -> None:
        with TestClient(app) as client:
            shutil.rmtree(tmp_path / "storage")
            answer = client.get("/readyz")
        assert answer.status_code == 503
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/checks/storage"]

    @databases.POSTGRES_ONLY
    def test_names_a_database_that_does_not_answer_within_two_seconds(
        self, settings: Settings, database_url: str, make_app: MakeApp
    ) -> None:
        with services.Line(database_url) as line:
            app = make_app(settings.model_copy(update={"database_url": line.url}))
            with TestClient(app) as client:
                assert client.get("/readyz").status_code == 200
                with line.silence():
                    answer = waiting.once_within(2, lambda: client.get("/readyz"))
                assert answer.status_code == 503
                faults = {fault["pointer"]: fault["detail"] for fault in answer.json()["errors"]}
                assert "database has not answered for 1.5 s" in faults["/checks/database"]
                assert client.get("/healthz").status_code == 200
                # The check that got no answer ends, and the next one finds the database again.
                waiting.until(lambda: client.get("/readyz").status_code == 200, "it is ready")


_LABELS = ("method", "route", "state", "queue", "outcome", "reason", "status")


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return each sample by its name and the values of its labels."""
    return {
        (sample.name, *(sample.labels[name] for name in _LABELS if name in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestMetrics:
    @databases.SQLITE_ONLY
    def test_may_ask_for_a_token_of_the_operator(
        self, settings: Settings, api_key: str, make_app: MakeApp
    ) -> None:
        closed = settings.model_copy(update={"metrics_token": SecretStr("between-us")})
        with TestClient(make_app(closed)) as client:
            refused = client.get("/metrics", headers={"authorization": f"Bearer {api_key}"})
            assert refused.status_code == client.get("/metrics").status_code == 401
            assert "RETORT_METRICS_TOKEN" in refused.json()["detail"]
            answer = client.get("/metrics", headers={"authorization": "Bearer between-us"})
            assert "retort_" in answer.text

    @databases.SQLITE_ONLY
    def test_count_requests_by_template(self, client: TestClient) -> None:
        for number in range(3):
            client.get(f"/v1/jobs/job_{number}")
        client.get("/nowhere/at/all")
        text = client.get("/metrics").text
        found = samples(text)
        name = "retort_http_request_seconds_count"
        assert found[(name, "GET", "/v1/jobs/{job_id}", "404")] == 3
        assert found[(name, "GET", "unknown", "404")] == 1
        assert "job_1" not in text

    def test_tell_the_state_of_the_service(
        self, client: TestClient, sessions: database.Sessions, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            jobs = [factories.job(session, project_id=teacher.project_id) for _ in range(3)]
            factories.running(session, jobs[0])
            factories.running(session, jobs[1])
            factories.lost(session, jobs[1])
        found = samples(client.get("/metrics").text)
        assert found[("retort_jobs", "running", "")] == 1
        assert found[("retort_jobs", "queued", "")] == 1
        assert found[("retort_jobs", "queued", "attempt_lost")] == 1
        assert found[("retort_lease_expiries_total",)] == 1
        assert found[("retort_attempts_ended_total", "attempt_lost")] == 1
        assert found[("retort_queue_age_seconds", "any")] >= 0
        assert found[("retort_outbox_lag_seconds",)] >= 0

    @databases.SQLITE_ONLY
    def test_survive_a_database_that_is_down(
        self, settings: Settings, tmp_path: Path, make_app: MakeApp
    ) -> None:
        nowhere = f"sqlite:///{tmp_path}/no/such/folder/x.sqlite3"
        app = make_app(settings.model_copy(update={"database_url": nowhere}))
        with TestClient(app) as client:
            client.get("/nowhere")
            assert "retort_http_request_seconds" in client.get("/metrics").text


class TestQueue:
    def test_delivers_to_the_workers_application(
        self,
        settings: Settings,
        redis_url: str,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
        api_key: str,
        make_app: MakeApp,
    ) -> None:
        with sessions.begin() as session:
            factories.teacher(session, storage, project_id=project.id)
        app = make_app(settings.model_copy(update={"broker_url": redis_url}))
        with TestClient(app, headers={"authorization": f"Bearer {api_key}"}) as client:
            job_id = client.post("/v1/jobs", json=factories.spec(priority=5)).json()["id"]
        with celery_app.app.connection_for_read(redis_url) as connection:
            connection.transport_options = celery_app.app.conf.broker_transport_options
            with connection.SimpleQueue("any") as queue:
                message = queue.get(timeout=waiting.PATIENCE_SECONDS)
                message.ack()
        _, arguments, _ = message.payload
        assert message.headers["task"] == "jobs.run"
        assert arguments["job_id"] == job_id
        with sessions() as session:
            assert outbox.lag_seconds(session) == 0

    @databases.SQLITE_ONLY
    def test_takes_urgent_messages_first(self, redis_url: str, database_url: str) -> None:
        queue = CeleryQueue(redis_url)
        for priority in (0, 9, 5):
            queue.send("jobs.run", "cpu", {"priority": priority}, priority)
        queue.close()
        order = []
        with celery_app.app.connection_for_read(redis_url) as connection:
            connection.transport_options = celery_app.app.conf.broker_transport_options
            with connection.SimpleQueue("cpu") as queue:
                for _ in range(3):
                    message = queue.get(timeout=waiting.PATIENCE_SECONDS)
                    message.ack()
                    order.append(message.payload[1]["priority"])
        assert order == [9, 5, 0]

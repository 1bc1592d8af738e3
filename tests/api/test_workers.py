"""Workers over HTTP: who is there, who fell silent, and who holds a job of ours."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from models_registry import ids
from models_registry.access import keys
from models_registry.jobs import workers
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories


def announce(sessions: database.Sessions, name: str, *, silent_seconds: float = 0) -> str:
    """Announce a worker that was last seen some time ago, and return its id."""
    with sessions.begin() as session:
        worker_id = workers.announce(
            session,
            worker_id=ids.new("wrk"),
            name=name,
            queues=["any", "cuda"],
            devices=[{"kind": "cuda", "name": "H200", "memory_bytes": 1}],
            memory_bytes=2**30,
            versions={"torch": "2.15"},
        ).id
        seen = database.now(session) - timedelta(seconds=silent_seconds)
        row = tables.WorkerRow
        session.execute(sa.update(row).where(row.id == worker_id).values(last_seen_at=seen))
        return worker_id


class TestWorkers:
    def test_are_online_lost_or_stopped(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        announce(sessions, "here")
        announce(sessions, "silent", silent_seconds=600)
        announce(sessions, "forgotten", silent_seconds=100_000)
        gone = announce(sessions, "gone")
        with sessions.begin() as session:
            workers.stopped(session, worker_id=gone)
        body = client.get("/v1/workers").json()
        assert {entry["name"]: entry["state"] for entry in body["data"]} == {
            "here": "online",
            "silent": "lost",
            "gone": "stopped",
        }
        assert body["data"][0]["device"] == "H200"

    def test_that_are_suspended_say_why_and_take_nothing(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        worker_id = announce(sessions, "full")
        at = "2026-01-01T00:00:00+00:00"
        fault = {"code": "no_disk", "message": "full", "since": at, "retry_at": at}
        with sessions.begin() as session:
            workers.seen(session, worker_id=worker_id, fault=fault)
            assert not workers.anyone_takes(session, queue="any")
        (entry,) = client.get("/v1/workers").json()["data"]
        assert entry["state"] == "suspended"
        assert entry["fault"]["code"] == "no_disk"
        assert entry["fault"]["retry_at"] == "2026-01-01T00:00:00Z"
        text = client.get("/metrics").text
        assert 'retort_workers{fault="no_disk",state="suspended"} 1.0' in text
        with sessions.begin() as session:
            workers.seen(session, worker_id=worker_id)
        assert client.get("/v1/workers").json()["data"][0]["fault"] is None

    def test_come_back_when_they_are_seen_again(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        worker_id = announce(sessions, "silent", silent_seconds=600)
        with sessions.begin() as session:
            workers.seen(session, worker_id=worker_id)
        assert client.get("/v1/workers").json()["data"][0]["state"] == "online"

    def test_may_announce_more_of_themselves_later(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        worker_id = announce(sessions, "here")
        with sessions.begin() as session:
            workers.announce(
                session,
                worker_id=worker_id,
                name="here",
                queues=["cpu"],
                devices=[],
                memory_bytes=1,
                versions={},
                slots=3,
                total_devices=4,
            )
        [entry] = client.get("/v1/workers").json()["data"]
        assert entry["queues"] == ["cpu"]
        assert (entry["slots"], entry["total_devices"]) == (3, 4)
        text = client.get("/metrics").text
        assert 'retort_queue_slots{queue="cpu"} 3.0' in text
        assert 'retort_queue_slots{queue="cuda"} 0.0' in text

    def test_tell_only_of_the_callers_own_jobs(
        self,
        client: TestClient,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        mine, theirs = announce(sessions, "mine"), announce(sessions, "theirs")
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
            for owner, worker_id in ((project, mine), (other, theirs)):
                factories.teacher(session, storage, project_id=owner.id)
                job = factories.job(session, project_id=owner.id)
                factories.running(session, job, worker_id=worker_id)
            beside = factories.job(session, project_id=project.id)
            factories.running(session, beside, worker_id=mine)
        found = {w["name"]: w for w in client.get("/v1/workers").json()["data"]}
        assert found["mine"]["job_ids"] == [found["mine"]["job_id"], beside.id]
        assert found["mine"]["job_id"].startswith("job_")
        assert (found["theirs"]["job_id"], found["theirs"]["job_ids"]) == (None, [])


class TestAnyoneTakes:
    @pytest.mark.parametrize(("silent_seconds", "expected"), [(0, True), (600, False)])
    def test_counts_those_that_are_online(
        self, sessions: database.Sessions, silent_seconds: float, expected: bool
    ) -> None:
        announce(sessions, "w", silent_seconds=silent_seconds)
        with sessions() as session:
            assert workers.anyone_takes(session, queue="cuda") is expected
            assert workers.anyone_takes(session, queue="cpu") is False

"""Streams and long polls over a real server: order, resumption, progress, ends and drains."""

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api import streams
from models_registry.access import keys
from models_registry.jobs import actions, leases, logs, queries, transitions
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.settings import Settings
from retort import server_events
from tests import databases, factories, services, serving, waiting
from tests.contracts import source


@pytest.fixture
def http(app: FastAPI, api_key: str) -> Iterator[httpx.Client]:
    """A client of the app behind a real server."""
    headers = {"authorization": f"Bearer {api_key}"}
    with (
        serving.served(app) as running,
        httpx.Client(
            base_url=running.url, headers=headers, timeout=waiting.PATIENCE_SECONDS, trust_env=False
        ) as client,
    ):
        yield client


@pytest.fixture
def job_id(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> str:
    """A queued job, with two events so far."""
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id)
        return factories.job(session, project_id=project.id).id


class Reader:
    """Reads a stream in a thread, so that a test can act meanwhile."""

    def __init__(
        self,
        http: httpx.Client,
        job_id: str,
        headers: dict[str, str] | None = None,
        stream: str = "stream",
    ):
        self.events: list[server_events.ServerEvent] = []
        self.ended = threading.Event()
        self._news = threading.Condition()
        arguments = (http, f"/v1/jobs/{job_id}/{stream}", headers or {})
        self.thread = threading.Thread(target=self._read, args=arguments)
        self.thread.start()

    def _read(self, http: httpx.Client, url: str, headers: dict[str, str]) -> None:
        with http.stream("GET", url, headers=headers) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-cache"
            lines = server_events.lines(response.iter_bytes())
            for found in server_events.parse(lines):
                with self._news:
                    self.events.append(found)
                    self._news.notify_all()
        self.ended.set()

    def wait_for(self, kind: str) -> server_events.ServerEvent:
        """Return the first event of a kind, once it is there."""
        with self._news:
            there = self._news.wait_for(lambda: self._of(kind), waiting.PATIENCE_SECONDS)
            assert there, f"no {kind} came"
            return self._of(kind)[0]

    def finish(self) -> list[server_events.ServerEvent]:
        """Return everything, once the stream has ended."""
        assert self.ended.wait(waiting.PATIENCE_SECONDS), "the stream did not end"
        self.thread.join()
        return self.events

    def _of(self, kind: str) -> list[server_events.ServerEvent]:
        return [found for found in self.events if found.event == kind]


def numbered(events: list[server_events.ServerEvent]) -> list[int]:
    """Return the sequence numbers of what was sent, and check that ids say the same."""
    records = [found for found in events if found.event.startswith("job.")]
    sequences = [json.loads(found.data)["sequence"] for found in records]
    assert [found.id for found in records] == [str(sequence) for sequence in sequences]
    return sequences


def act(sessions: database.Sessions, job_id: str, verb: Callable[..., object]) -> None:
    """Do something to a job as another process would."""
    with sessions.begin() as session:
        row = session.get_one(tables.JobRow, job_id)
        verb(session, project_id=row.project_id, job_id=job_id)


def cancel(sessions: database.Sessions, job_id: str) -> None:
    """Cancel a job as another process would."""
    act(sessions, job_id, actions.cancel)


class TestStream:
    @databases.SQLITE_ONLY
    def test_ends_soon_after_its_key(
        self,
        http: httpx.Client,
        sessions: database.Sessions,
        storage: Storage,
        job_id: str,
        api_key: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(streams, "KEY_SECONDS", 0.1)
        with sessions.begin() as session:
            job = session.get_one(tables.JobRow, job_id)
            other = factories.key(session, project_id=job.project_id)
            lease = factories.running(session, job)
            logs.keep(session, lease, [logs.Slice(0, 7, "step 1\n")])
        reader = Reader(http, job_id)
        log_reader = Reader(http, job_id, stream="logs/stream")
        lasting = Reader(http, job_id, {"authorization": f"Bearer {other}"})
        for one in (reader, lasting):
            one.wait_for("job.queued")
        log_reader.wait_for("log")
        with sessions.begin() as session:
            keys.revoke(session, project_id=job.project_id, key_id=f"key_{api_key.split('_')[2]}")
        reader.finish()
        log_reader.finish()
        assert not lasting.ended.is_set()
        cancel(sessions, job_id)
        with sessions.begin() as session:
            leases.stopped(session, lease, log_tail=[])
        assert lasting.finish()[-1].event == "job.cancelled"

    def test_tells_what_happens_elsewhere_and_ends_with_the_job(
        self,
        http: httpx.Client,
        sessions: database.Sessions,
        storage: Storage,
        job_id: str,
    ) -> None:
        reader = Reader(http, job_id)
        reader.wait_for("job.queued")
        with sessions.begin() as session:
            lease = factories.running(session, session.get_one(tables.JobRow, job_id))
        reader.wait_for("job.running")
        with sessions.begin() as session:
            point = leases.MetricSample("loss/total", 1, 1, float("inf"))
            leases.report(session, lease, progress=0.25, estimated_end_at=None, samples=[point])
        told: dict[str, Any] = {}

        def is_told() -> bool:
            seen = [found for found in reader.events if found.event == "progress"]
            told.update(json.loads(seen[-1].data) if seen else {})
            return told.get("progress") == 0.25

        waiting.until(is_told, "progress is told")
        assert told["state"] == "running"
        assert told["metrics"] == {"loss/total": "Infinity"}
        with sessions.begin() as session:
            transitions.add_event(session, job_id, "warning", {"code": "slow", "message": "x"})
        reader.wait_for("job.warning")
        cancel(sessions, job_id)
        with sessions.begin() as session:
            leases.stopped(session, lease, log_tail=[])
        events = reader.finish()
        assert numbered(events) == list(range(1, len(numbered(events)) + 1))
        assert events[-1].event == "job.cancelled"
        # What is not numbered must not move the place from which a reader resumes.
        progress = [json.loads(found.data) for found in events if found.event == "progress"]
        assert progress
        assert not any("sequence" in told for told in progress)

    @databases.SQLITE_ONLY
    def test_tells_no_progress_behind_the_event_that_ends_the_job(
        self, sessions: database.Sessions, job_id: str
    ) -> None:
        """What the poller saw may be older than the events that are read after it."""
        hub = streams.Hub(sessions)
        with sessions() as session:
            snapshot = queries.snapshots(session, job_ids=[job_id])[job_id]
        cancel(sessions, job_id)

        async def follow() -> list[str]:
            told = []
            with hub.watching(job_id) as watched:
                watched.update(streams.Progress(snapshot, {}))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        async for one in hub.follow(job_id, 0, credential_id="key_1"):
                            told.append(
                                "progress" if isinstance(one, streams.Progress) else one.type
                            )
            return told

        assert asyncio.run(follow())[-1] == "job.cancelled"

    def test_of_a_log_carries_lines_as_they_are_shipped_and_resumes(
        self,
        http: httpx.Client,
        sessions: database.Sessions,
        storage: Storage,
        job_id: str,
    ) -> None:
        with sessions.begin() as session:
            lease = factories.running(session, session.get_one(tables.JobRow, job_id))
            logs.keep(session, lease, [logs.Slice(0, 7, "step 1\n")])
        [log] = http.get(f"/v1/jobs/{job_id}/logs").json()["data"]
        assert (log["lines"], log["ended_at"], log["position"]) == (["step 1"], None, "1:7")
        whole = Reader(http, job_id, stream="logs/stream")
        rest = Reader(http, job_id, {"last-event-id": log["position"]}, stream="logs/stream")
        whole.wait_for("log")
        with sessions.begin() as session:
            logs.keep(session, lease, [logs.Slice(7, 14, "step 2\n")])
        assert json.loads(rest.wait_for("log").data) == {"attempt": 1, "lines": ["step 2"]}
        with sessions.begin() as session:
            logs.keep(session, lease, [logs.Slice(14, 18, "end\n")])
            leases.fail(session, lease, code="c", message="m", retryable=False, log_tail=[])
        lines = [json.loads(found.data)["lines"] for found in whole.finish()]
        assert lines == [["step 1"], ["step 2"], ["end"]]
        assert [found.id for found in rest.finish()] == ["1:14", "1:18"]
        bad = http.get(f"/v1/jobs/{job_id}/logs/stream", headers={"last-event-id": "7"})
        assert (bad.status_code, bad.json()["code"]) == (400, "bad_event_id")

    @databases.SQLITE_ONLY
    def test_of_a_known_length_is_answered_to_head_with_that_length(
        self, http: httpx.Client, job_id: str
    ) -> None:
        whole = http.get(f"/v1/jobs/{job_id}")
        # Twice on one connection: a server that waits for the body would break it off.
        for _ in range(2):
            head = http.head(f"/v1/jobs/{job_id}")
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == whole.headers["content-length"]

    @databases.SQLITE_ONLY
    def test_answers_head_at_once(self, http: httpx.Client, job_id: str) -> None:
        head = http.head(f"/v1/jobs/{job_id}/stream")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")

    @databases.SQLITE_ONLY
    def test_resumes_after_the_last_event_that_was_seen(
        self, http: httpx.Client, sessions: database.Sessions, job_id: str
    ) -> None:
        cancel(sessions, job_id)
        assert numbered(Reader(http, job_id).finish()) == [1, 2, 3]
        assert numbered(Reader(http, job_id, {"last-event-id": "2"}).finish()) == [3]
        assert numbered(Reader(http, job_id, {"last-event-id": "3"}).finish()) == []

    def test_carries_more_events_than_fit_into_one_read(
        self, http: httpx.Client, sessions: database.Sessions, job_id: str
    ) -> None:
        with sessions.begin() as session:
            for _ in range(600):
                transitions.add_event(session, job_id, "warning", {})
        cancel(sessions, job_id)
        assert numbered(Reader(http, job_id).finish()) == list(range(1, 604))

    @databases.SQLITE_ONLY
    def test_feeds_many_readers_of_one_job_alike(
        self, http: httpx.Client, sessions: database.Sessions, job_id: str
    ) -> None:
        readers = [Reader(http, job_id) for _ in range(8)]
        for reader in readers:
            reader.wait_for("job.queued")
        cancel(sessions, job_id)
        assert {tuple(numbered(reader.finish())) for reader in readers} == {(1, 2, 3)}

    def test_holds_no_connection_to_the_database_while_it_waits(
        self, http: httpx.Client, app: FastAPI, sessions: database.Sessions, job_id: str
    ) -> None:
        readers = [Reader(http, job_id) for _ in range(5)]
        for reader in readers:
            reader.wait_for("progress")
        pool = app.state.service.engine.pool
        # The one poller looks twice a second; in between, nobody holds anything.
        for _ in range(10):
            waiting.until(lambda: pool.checkedout() == 0, "nobody holds a connection")
            time.sleep(0.02)
        cancel(sessions, job_id)
        for reader in readers:
            reader.finish()

    def test_ends_when_the_job_is_deleted(
        self, http: httpx.Client, sessions: database.Sessions, job_id: str
    ) -> None:
        reader = Reader(http, job_id)
        reader.wait_for("job.queued")
        cancel(sessions, job_id)
        http.delete(f"/v1/jobs/{job_id}")
        assert numbered(reader.finish()) == [1, 2, 3]

    @databases.SQLITE_ONLY
    def test_ends_on_a_drain_and_says_when_to_come_back(
        self, http: httpx.Client, app: FastAPI, job_id: str
    ) -> None:
        reader = Reader(http, job_id)
        reader.wait_for("progress")
        app.state.service.hub.drain_soon()
        last = reader.finish()[-1]
        assert last.retry_seconds == streams.RETRY_MILLISECONDS / 1000
        ready = http.get("/readyz")
        assert ready.status_code == 503
        assert "shutting down" in ready.json()["detail"]

    @databases.SQLITE_ONLY
    def test_has_a_limit_per_project(
        self,
        http: httpx.Client,
        sessions: database.Sessions,
        job_id: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(streams, "STREAMS_PER_PROJECT", 1)
        reader = Reader(http, job_id)
        reader.wait_for("job.queued")
        refused = http.get(f"/v1/jobs/{job_id}/stream")
        assert refused.status_code == 429
        assert refused.json()["code"] == "too_many_streams"
        assert refused.headers["retry-after"]
        cancel(sessions, job_id)
        reader.finish()
        assert numbered(Reader(http, job_id).finish()) == [1, 2, 3]

    @databases.SQLITE_ONLY
    @pytest.mark.parametrize("value", ["-1", "x", "1.5", "99999999999"])
    def test_refuses_an_event_id_that_is_none(
        self, http: httpx.Client, job_id: str, value: str
    ) -> None:
        answer = http.get(f"/v1/jobs/{job_id}/stream", headers={"last-event-id": value})
        assert answer.status_code == 400


class TestLongPoll:
    @databases.SQLITE_ONLY
    def test_returns_at_once_where_there_is_something(
        self, http: httpx.Client, job_id: str
    ) -> None:
        def ask() -> httpx.Response:
            return http.get(f"/v1/jobs/{job_id}/events?wait_seconds=25")

        assert len(waiting.once_within(22, ask).json()["data"]) == 2

    def test_wakes_up_when_something_happens(
        self, http: httpx.Client, sessions: database.Sessions, job_id: str
    ) -> None:
        verbs = itertools.cycle([(actions.pause, "job.paused"), (actions.resume, "job.queued")])
        seen = itertools.count(2)

        def woken() -> float:
            verb, kind = next(verbs)
            timer = threading.Timer(0.5, act, (sessions, job_id, verb))
            timer.start()
            started = time.monotonic()
            path = f"/v1/jobs/{job_id}/events?after={next(seen)}&wait_seconds=25"
            found = http.get(path).json()
            took = time.monotonic() - started
            timer.join()
            assert [event["type"] for event in found["data"]] == [kind]
            return took

        waiting.takes_less_than(22, woken)

    @databases.SQLITE_ONLY
    def test_gives_up_after_the_time_it_was_given(self, http: httpx.Client, job_id: str) -> None:
        started = time.monotonic()
        found = http.get(f"/v1/jobs/{job_id}/events?after=2&wait_seconds=0.3").json()
        assert found == {"data": [], "has_more": False}
        assert time.monotonic() - started >= 0.3

    @databases.SQLITE_ONLY
    def test_does_not_wait_for_a_job_that_has_ended(
        self, http: httpx.Client, sessions: database.Sessions, job_id: str
    ) -> None:
        cancel(sessions, job_id)

        def ask() -> httpx.Response:
            return http.get(f"/v1/jobs/{job_id}/events?after=3&wait_seconds=25")

        assert waiting.once_within(22, ask).json()["data"] == []


@pytest.mark.slow
@databases.SQLITE_ONLY
class TestSignal:
    def test_stops_a_server_at_once_although_streams_are_open(
        self, settings: Settings, api_key: str, job_id: str, tmp_path: Path
    ) -> None:
        def stopped() -> float:
            port = services.free_port()
            command = [sys.executable, "-m", "api.server", "--port", str(port)]
            variables = {
                "RETORT_DATABASE_URL": settings.database_url,
                "RETORT_STORAGE_URL": settings.storage_url,
                "RETORT_BROKER_URL": settings.broker_url,
                "RETORT_CURSOR_SECRET": "x" * 32,
            }
            with (tmp_path / "server.log").open("wb") as log:
                server = subprocess.Popen(
                    [*command, "--timeout-graceful-shutdown", "30"],
                    cwd=source.ROOT,
                    env=source.environment(variables),
                    stderr=log,
                )
            http = httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"authorization": f"Bearer {api_key}"},
                timeout=waiting.PATIENCE_SECONDS,
                trust_env=False,
                transport=httpx.HTTPTransport(retries=0),
            )
            try:
                with http:
                    waiting.until(lambda: answers(http), "the server answers")
                    reader = Reader(http, job_id)
                    reader.wait_for("progress")
                    server.send_signal(signal.SIGTERM)
                    asked = time.monotonic()
                    assert reader.finish()[-1].retry_seconds is not None
                    assert server.wait(waiting.PATIENCE_SECONDS) in {0, -signal.SIGTERM}
                    return time.monotonic() - asked
            finally:
                server.kill()
                server.wait()

        waiting.takes_less_than(25, stopped)


def answers(http: httpx.Client) -> bool:
    """Return whether a server answers."""
    try:
        return http.get("/healthz").is_success
    except httpx.ConnectError:
        return False

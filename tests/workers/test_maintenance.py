import dataclasses
import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models_registry.jobs import actions
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import outbox, tables, task_leases
from models_registry.settings import Settings
from models_registry.studies import studies
from tests import factories
from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import context as contexts
from workers import inspector, maintenance, runner, staging, tasks
from workers.context import Context

Message = tuple[str, str, dict[str, Any], int]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings under which nothing is published again, lost or late unless a test says so."""
    return settings.model_copy(update={"republish_after_seconds": 3600, "sweep_seconds": 600})


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    """A watch of its own for each test, as each process has one."""
    maintenance._polling_time.cache_clear()
    yield
    maintenance._polling_time.cache_clear()


@pytest.fixture
def project(context: Context) -> str:
    return scenes.project(context)


@pytest.fixture
def sent() -> list[Message]:
    return []


def sweep(context: Context, sent: list[Message]) -> dict[str, int]:
    return maintenance.sweep(context, lambda *message: sent.append(message))


def hasty(context: Context, **clocks: float) -> Context:
    """Return the same worker with other clocks.

    Its connections are as they were: one of a worker whose lease is short is soon cut off.
    """
    return dataclasses.replace(context, settings=context.settings.model_copy(update=clocks))


class TestSweep:
    def test_relays_what_waits(self, context: Context, project: str, sent: list[Message]) -> None:
        job_id = scenes.submit(context, project, priority=7)
        assert sweep(context, sent)["relayed"] == 1
        assert sweep(context, sent)["relayed"] == 0
        ((task, queue, payload, priority),) = sent
        assert (task, queue, priority) == ("jobs.run", "any", 7)
        assert payload["job_id"] == job_id

    def test_relays_what_a_crashed_relay_had_claimed_once_the_claim_has_expired(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        job_id = scenes.submit(context, project)
        minute = timedelta(minutes=1)
        for expires_at, relayed in (
            (datetime.now(UTC) + minute, 0),
            (datetime.now(UTC) - minute, 1),
        ):
            with context.sessions.begin() as session:
                session.query(tables.OutboxRow).one().claim_expires_at = expires_at
            assert sweep(context, sent)["relayed"] == relayed
        assert [payload["job_id"] for _, _, payload, _ in sent] == [job_id]

    def test_publishes_again_what_nobody_claims(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        eager = hasty(context, republish_after_seconds=0.1)
        job_id = scenes.submit(context, project)
        sweep(context, sent)
        time.sleep(0.2)
        assert sweep(eager, sent)["jobs_republished"] == 1
        assert [payload["job_id"] for _, _, payload, _ in sent] == [job_id, job_id]

    def test_publishes_an_inspection_again(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        eager = hasty(context, republish_after_seconds=0.1)
        version_id = scenes.uploaded_model(context, project, b"weights")
        sweep(context, sent)
        time.sleep(0.2)
        assert sweep(eager, sent)["inspections_republished"] == 1
        message = ("models.inspect", "inspect", {"version_id": version_id}, 0)
        assert sent == [message, message]

    def test_ends_the_leases_of_silent_workers(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        quick = hasty(context, lease_seconds=0.2)
        job_id = scenes.submit(context, project)
        with context.sessions.begin() as session:
            row = session.get_one(tables.JobRow, job_id)
            factories.running(session, row)
            row.lease_expires_at = datetime.now(UTC) - timedelta(minutes=5)
        assert sweep(context, sent)["leases_ended"] == 0  # it has only begun to look
        # Not after a pause: where the machine stops for a moment, the watch begins again.
        ended = scenes.wait_until(lambda: sweep(quick, sent)["leases_ended"], "the lease is ended")
        assert ended == 1
        job = scenes.job(context, job_id)
        assert (job.state, job.state_reason) == (State.QUEUED, Reason.ATTEMPT_LOST)
        assert job.fence == 2

    def test_ends_jobs_whose_time_is_up(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        job_id = scenes.submit(context, project, resources={"queue_deadline_seconds": 0.1})
        time.sleep(0.2)
        assert sweep(context, sent)["deadlines"] == 1
        job = scenes.job(context, job_id)
        assert (job.state, job.state_reason) == (State.FAILED, Reason.QUEUE_DEADLINE)

    def test_keeps_messages_that_the_broker_does_not_take(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        def refuse(*_: Any) -> None:
            raise ConnectionError("the broker is away")

        scenes.submit(context, project)
        with pytest.raises(ConnectionError):
            maintenance.sweep(context, refuse)
        assert sweep(context, sent)["relayed"] == 1


class TestWatch:
    """The reaper must tell "the worker is dead" from "I could not look"."""

    def test_begins_with_nothing(self) -> None:
        assert maintenance._PollingTime().seconds(60) < 10

    def test_grows_while_the_database_answers(self) -> None:
        watch = maintenance._PollingTime()
        for _ in range(3):
            time.sleep(0.05)
            watch.seconds(60)
            watch.record()
        assert watch.seconds(60) >= 0.15

    def test_begins_again_after_a_gap(self) -> None:
        watch = maintenance._PollingTime()
        time.sleep(0.4)
        began = time.monotonic()
        assert watch.seconds(0.05) == 0
        watch.record()
        time.sleep(0.1)
        assert 0.1 <= watch.seconds(60) <= time.monotonic() - began

    def test_does_not_count_looks_at_a_database_that_is_away(self) -> None:
        watch = maintenance._PollingTime()
        for _ in range(8):
            time.sleep(0.05)
            watch.seconds(0.05)
        assert watch.seconds(0.05) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    def test_grants_every_lease_a_full_period_after_an_outage(
        self, context: Context, project: str, sent: list[Message]
    ) -> None:
        quick = hasty(context, sweep_seconds=0.2, lease_seconds=0.3)
        job_id = scenes.submit(context, project)
        sweep(quick, sent)
        time.sleep(0.3)
        sweep(quick, sent)  # it has looked for a whole lease by now
        with context.sessions.begin() as session:
            row = session.get_one(tables.JobRow, job_id)
            factories.running(session, row)
            row.lease_expires_at = datetime.now(UTC)
        time.sleep(1.4)  # longer than six sweeps
        back = time.monotonic()
        assert sweep(quick, sent)["leases_ended"] == 0
        scenes.wait_until(lambda: sweep(quick, sent)["leases_ended"], "the lease is ended")
        assert time.monotonic() - back >= 0.3


class TestCollect:
    def test_expires_uploads_forgets_keys_and_messages_and_deletes_bytes(
        self, context: Context, project: str
    ) -> None:
        long_ago = datetime.now(UTC) - timedelta(days=3)
        upload_id = scenes.upload(context, project, b"idle", purpose="model", name="x.pt")
        orphan = context.storage.put(io.BytesIO(b"orphan"))
        young = context.storage.put(io.BytesIO(b"young"))
        job_id = scenes.submit(context, project)
        outbox.relay(context.sessions, lambda *_: None)
        with context.sessions.begin() as session:
            session.get_one(tables.UploadRow, upload_id).expires_at = long_ago
            session.add(
                tables.IdempotencyRow(
                    project_id=project,
                    route="POST /v1/jobs",
                    key="k",
                    body_sha256="0" * 64,
                    created_at=long_ago,
                )
            )
            for kept in (orphan, young):
                at = long_ago if kept is orphan else None
                session.add(
                    tables.BlobRow(
                        sha256=kept.sha256,
                        size_bytes=kept.size_bytes,
                        storage_key=kept.key,
                        adopted_at=long_ago,
                        marked_at=at,
                    )
                )
            for message in session.query(tables.OutboxRow):
                message.published_at = long_ago
        done = maintenance.collect(context)
        assert done["uploads_expired"] == 1
        assert done["keys_forgotten"] == 1
        assert done["messages_forgotten"] == 1
        assert done["blobs_swept"] == 1
        assert context.storage.exists(young.key)
        with context.readers.begin() as session:
            assert session.get_one(tables.UploadRow, upload_id).state == "expired"
            assert session.get(tables.BlobRow, orphan.sha256) is None
        assert scenes.job(context, job_id).state == State.QUEUED
        again = maintenance.collect(context)
        assert set(again.values()) == {0}


class TestRetain:
    def test_sweeps_one_project_and_not_beside_another_sweep(
        self, context: Context, project: str
    ) -> None:
        others = scenes.project(context, "another")
        hasty = contexts.build(context.settings.model_copy(update={"retention_grace_seconds": 0}))
        made = [scenes.submit(context, project), scenes.submit(context, others)]
        with context.sessions.begin() as session:
            for job_id in made:
                job = session.get_one(tables.JobRow, job_id)
                actions.cancel(session, project_id=job.project_id, job_id=job.id)
                job.finished_at = datetime.now(UTC) - timedelta(days=400)
        with task_leases.held(context.sessions, "collect"):
            assert maintenance.retain(hasty, project) == {}
        assert maintenance.retain(hasty, project)["events_deleted"] > 0
        assert maintenance.retain(hasty, project)["events_deleted"] == 0
        assert maintenance.collect(hasty)["events_deleted"] > 0
        hasty.engine.dispose()


class TestTidy:
    def test_drops_old_inputs_and_the_folders_of_killed_processes(self, context: Context) -> None:
        small = contexts.build(context.settings.model_copy(update={"worker_cache_bytes": 5}))
        (context.settings.cache_dir / "a").write_bytes(b"1234567")
        left = [
            folder / "left"
            for folder in (
                context.settings.scratch_dir,
                inspector.builtin_folder(context.settings.cache_dir),
            )
        ]
        for path in left:
            path.mkdir(parents=True)
            (path / ".lock").touch()
        with staging.scratch(context.settings.scratch_dir, "ours") as ours:
            done = maintenance.tidy(small)
            assert ours.exists()
        assert done == {"scratch_removed": 2, "cache_bytes_dropped": 7}
        assert not any(path.exists() for path in left)
        small.engine.dispose()

    def test_happens_when_a_worker_starts_and_before_pictures_are_answered(
        self, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A killed process may have left pictures, which nobody else would delete for hours."""
        left = context.settings.scratch_dir / "left"
        monkeypatch.setattr(tasks, "_context", lambda: context)
        monkeypatch.setattr(tasks, "settings", context.settings)
        for begin in (tasks.sweep_scratch, lambda: tasks.predict("prd_none")):
            left.mkdir(parents=True)
            (left / ".lock").touch()
            begin()
            assert not left.exists()


class TestNothing:
    def test_is_done_twice(self, context: Context, project: str, sent: list[Message]) -> None:
        """Two workers with the same clock: the second finds nothing to do."""
        scenes.submit(context, project)
        other = contexts.build(context.settings)
        counts = [sweep(context, sent), sweep(other, sent)]
        assert [sum(count.values()) for count in counts] == [1, 0]
        assert len(sent) == 1
        other.engine.dispose()


@SQLITE_ONLY
class TestSearches:
    @pytest.fixture
    def study_id(self, context: Context, project: str) -> str:
        space = {"space": {"type": "float", "low": 0.01, "high": 0.2, "log": True}}
        with context.sessions.begin() as session:
            return factories.study(
                session,
                project_id=project,
                teacher=None,
                student=scenes.TINY,
                methods=[{"name": "ce"}],
                training={"epochs": 2, "optimizer": {"learning_rate": space}},
                seeds=[0],
                report=False,
                search={"trials": 2, "pruning": None, "confirm_seeds": 2},
            ).id

    def test_have_trials_after_a_sweep(
        self, context: Context, study_id: str, sent: list[Message]
    ) -> None:
        sweep(context, sent)
        tasks = [(task, queue) for task, queue, _, _ in sent]
        assert tasks == [("studies.advance", "maintenance"), ("jobs.run", "any")]
        maintenance.advance_search(context, study_id)  # the message itself comes late
        with context.sessions.begin() as session:
            assert session.query(tables.JobRow).count() == 1

    def test_that_cannot_go_on_say_so_and_hold_up_nothing(
        self, context: Context, study_id: str, project: str, sent: list[Message]
    ) -> None:
        with context.sessions.begin() as session:
            study = session.get_one(tables.StudyRow, study_id)
            study.spec = {**study.spec, "seeds": "none"}  # as a later version may write it
        scenes.submit(context, project)
        assert sweep(context, sent)["searches_failed"] == 1
        assert "jobs.run" in [task for task, *_ in sent]
        with context.sessions.begin() as session:
            study = session.get_one(tables.StudyRow, study_id)
            assert study.search_phase == "trials"
            assert "is tried again: ValidationError" in (study.search or {})["message"]

    @pytest.mark.slow  # six trainings
    def test_are_carried_out_to_their_end(
        self, context: Context, study_id: str, sent: list[Message]
    ) -> None:
        sweep(context, sent)
        for _ in range(10):
            waiting = [message[2]["job_id"] for message in sent if message[0] == "jobs.run"]
            sent.clear()
            for job_id in waiting:
                runner.run_job(context, job_id)
                maintenance.advance_search_of(
                    context, job_id, lambda *message: sent.append(message)
                )
        with context.sessions.begin() as session:
            study = session.get_one(tables.StudyRow, study_id)
            assert study.search_phase == "done"
            assert (study.search or {})["counts"]["complete"] == 2
            board = studies.compare(session, study)
            assert {row.variant.role for row in board.rows} == {None, "best"}
            assert all(row.finished == 2 for row in board.rows)
            trials = session.query(tables.TrialRow).all()
            assert all(0 < (trial.value or 0) <= 1 for trial in trials)

"""One attempt after the other, with the real engine; what is wrong with one is really wrong."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from safetensors.numpy import load

from models_registry import errors
from models_registry.artifacts import models
from models_registry.jobs import actions, leases, logs
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import storage, tables
from tests import factories, waiting
from tests.workers import scenes
from workers import context as contexts
from workers import inspector, machine_health, runner, staging
from workers.context import Context
from workers.engine_launcher import EngineLauncher
from workers.machine_health import MachineHealth

pytestmark = pytest.mark.usefixtures("tidiness")

EPOCHS = 3
SPEC: dict[str, Any] = {"training": {"epochs": EPOCHS, "checkpoint_seconds": 1}}


@pytest.fixture(scope="module")
def project(workshop: Context) -> str:
    return scenes.project(workshop)


@pytest.fixture(scope="module")
def undisturbed(workshop: Context, project: str) -> tables.JobRow:
    """A job that nothing happened to; its student may teach others."""
    job_id = scenes.submit(workshop, project, name="undisturbed", **SPEC)
    assert runner.run_job(workshop, job_id) == State.SUCCEEDED
    return scenes.job(workshop, job_id)


def student_of(context: Context, job: tables.JobRow) -> tables.ModelVersionRow:
    with context.readers.begin() as session:
        return session.get_one(tables.ModelVersionRow, job.student_version_id)


def files_of(context: Context, version: tables.ModelVersionRow) -> dict[str, bytes]:
    with context.readers.begin() as session:
        files = models.files(session, [version])[version.id]
        keys = {row.path: session.get_one(tables.BlobRow, row.sha256).storage_key for row in files}
    return {path: b"".join(context.storage.open(key)) for path, key in keys.items()}


def steps_of(context: Context, job_id: str, key: str = "loss/total") -> dict[int, list[int]]:
    """Return the steps of a metric by attempt."""
    row, found = tables.MetricRow, dict[int, list[int]]()
    with context.readers.begin() as session:
        points = session.query(row).filter_by(job_id=job_id, key=key).order_by(row.step)
        for point in points:
            found.setdefault(point.attempt, []).append(point.step)
    return found


def make_due(context: Context, job_id: str) -> None:
    with context.sessions.begin() as session:
        session.get_one(tables.JobRow, job_id).not_before = datetime.now(UTC)


def when(context: Context, job_id: str, state: State, act: Callable[[], None]) -> Any:
    """Do something as soon as the job has a state, while the block runs."""

    def wait_and_act() -> None:
        scenes.wait_until(scenes.has_state(context, job_id, state), f"the job is {state}")
        act()

    return scenes.meanwhile(wait_and_act)


def when_trained_a_step(context: Context, job_id: str, act: Callable[[], None]) -> Any:
    """Do something once there is a step to save: before that, a stop leaves no checkpoint."""

    def wait_and_act() -> None:
        scenes.wait_until(lambda: scenes.job(context, job_id).progress > 0, "it has trained a step")
        act()

    return scenes.meanwhile(wait_and_act)


def when_checkpointed(context: Context, job_id: str, act: Callable[[], None]) -> Any:
    def is_so() -> bool:
        return any(event.type == "job.checkpoint" for event in scenes.events(context, job_id))

    def wait_and_act() -> None:
        scenes.wait_until(is_so, "there is a checkpoint")
        act()

    return scenes.meanwhile(wait_and_act)


@pytest.mark.slow
class TestSuccess:
    def test_registers_the_student_with_its_files(
        self, workshop: Context, undisturbed: tables.JobRow
    ) -> None:
        version = student_of(workshop, undisturbed)
        files = files_of(workshop, version)
        assert files.keys() == {
            *("model.safetensors", "config.json", "metrics.json"),
            *("card.md", "manifest.json", "model.py"),
        }
        weights = files["model.safetensors"]
        assert hashlib.sha256(weights).hexdigest() == version.sha256
        assert sum(tensor.size for tensor in load(weights).values()) >= (version.parameters or 0)
        config = json.loads(files["config.json"])
        assert config["network"] == version.network == "retort/resnet8"
        assert config["arguments"] == version.arguments == scenes.TINY["arguments"]
        assert version.classes == [str(digit) for digit in range(10)]
        assert version.state == "ready"

    def test_writes_card_and_lineage(self, workshop: Context, undisturbed: tables.JobRow) -> None:
        version = student_of(workshop, undisturbed)
        files = files_of(workshop, version)
        assert version.card == files["card.md"].decode()
        assert undisturbed.id in version.card
        assert f"{version.scores['accuracy']:.2%}" in version.card
        assert version.lineage == json.loads(files["manifest.json"])
        assert version.lineage["job"] == undisturbed.id
        assert version.lineage["dataset"] == "digits@1"
        assert version.lineage["training"]["epochs"] == EPOCHS
        assert version.lineage["versions"]["torch"]

    def test_writes_the_result(self, undisturbed: tables.JobRow) -> None:
        result = undisturbed.result
        assert result is not None
        assert result["student"] == "undisturbed@1"
        assert result["digest"].startswith("sha256:")
        assert result["scores"]["student"]["samples"] == 360
        assert result["scores"]["teacher"] is None
        assert "files" not in result
        assert undisturbed.progress == 1.0
        assert undisturbed.failure is None
        assert undisturbed.lease_owner is None

    def test_relays_metrics_and_events(self, workshop: Context, undisturbed: tables.JobRow) -> None:
        assert list(steps_of(workshop, undisturbed.id)) == [1]
        accuracies = steps_of(workshop, undisturbed.id, "validation/accuracy")[1]
        assert len(accuracies) == EPOCHS
        kinds = [event.type for event in scenes.events(workshop, undisturbed.id)]
        assert kinds[:4] == ["job.validating", "job.queued", "job.starting", "job.running"]
        assert kinds[-1] == "job.succeeded"
        (attempt,) = scenes.attempts(workshop, undisturbed.id)
        assert (attempt.outcome, attempt.device, attempt.worker_id) == ("succeeded", "cpu", "wrk_1")

    def test_of_a_job_with_teacher_and_baseline_scores_all_three(
        self, workshop: Context, project: str, undisturbed: tables.JobRow
    ) -> None:
        job_id = scenes.submit(
            workshop,
            project,
            name="taught",
            teacher="undisturbed@1",
            method={"name": "kd"},
            baseline=True,
        )
        assert runner.run_job(workshop, job_id) == State.SUCCEEDED
        job = scenes.job(workshop, job_id)
        assert job.result is not None
        assert undisturbed.result is not None
        scores = job.result["scores"]
        assert scores["teacher"]["accuracy"] == undisturbed.result["scores"]["student"]["accuracy"]
        assert "agreement" in scores["student"]
        assert scores["baseline"]["samples"] == 360
        version = student_of(workshop, job)
        assert version.lineage["teacher"] == "undisturbed@1"
        assert version.lineage["teacher_digest"] == undisturbed.result["digest"]
        assert all(f"| {who}" in version.card for who in ("teacher", "**student", "baseline"))
        kept = workshop.settings.cache_dir / undisturbed.result["digest"].removeprefix("sha256:")
        assert kept.exists()


class TestClaim:
    def test_of_a_job_that_does_not_exist_is_nothing(self, workshop: Context) -> None:
        assert runner.run_job(workshop, "job_none") is None

    def test_of_a_cancelled_job_is_nothing(self, workshop: Context, project: str) -> None:
        job_id = scenes.submit(workshop, project)
        with workshop.sessions.begin() as session:
            actions.cancel(session, project_id=project, job_id=job_id)
        assert runner.run_job(workshop, job_id) is None
        assert scenes.job(workshop, job_id).attempt == 0

    def test_of_a_job_in_its_back_off_is_nothing(self, workshop: Context, project: str) -> None:
        job_id = unstageable(workshop, project)
        assert runner.run_job(workshop, job_id) == State.QUEUED
        assert runner.run_job(workshop, job_id) is None

    def test_by_two_workers_has_one_winner(self, workshop: Context, project: str) -> None:
        job_id = unstageable(workshop, project)
        others = [
            contexts.build(workshop.settings, worker_id=f"wrk_{n}", launcher=workshop.launcher)
            for n in range(2, 6)
        ]
        answers: list[State | None] = []
        start = threading.Barrier(len(others))

        def run(context: Context) -> None:
            start.wait()
            answers.append(runner.run_job(context, job_id))

        threads = [threading.Thread(target=run, args=(context,)) for context in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for context in others:
            context.engine.dispose()
        assert sorted(answers, key=str) == [None, None, None, State.QUEUED]
        assert scenes.job(workshop, job_id).attempt == 1


def unstageable(context: Context, project: str, **changes: Any) -> str:
    """Submit a job whose teacher's bytes are missing in storage."""
    name = f"teacher-{os.urandom(4).hex()}"
    with context.sessions.begin() as session:
        teacher = factories.teacher(
            session, context.storage, project_id=project, name=name, content=name.encode()
        )
        blob = session.get_one(tables.BlobRow, teacher.sha256)
        context.storage.delete(blob.storage_key)
    return scenes.submit(context, project, teacher=f"{name}@1", method={"name": "kd"}, **changes)


class TestStaging:
    def test_that_fails_is_tried_again_after_a_back_off(
        self, workshop: Context, project: str
    ) -> None:
        job_id = unstageable(workshop, project)
        assert runner.run_job(workshop, job_id) == State.QUEUED
        job = scenes.job(workshop, job_id)
        assert job.state_reason == Reason.ATTEMPT_FAILED
        assert "could not be staged" in (job.state_message or "")
        assert job.queued_at is not None
        assert job.not_before > job.queued_at
        assert job.lease_owner is None

    def test_that_always_fails_fails_the_job(self, workshop: Context, project: str) -> None:
        job_id = unstageable(workshop, project, max_attempts=2)
        assert runner.run_job(workshop, job_id) == State.QUEUED
        make_due(workshop, job_id)
        assert runner.run_job(workshop, job_id) == State.FAILED
        job = scenes.job(workshop, job_id)
        assert job.state_reason == Reason.ATTEMPTS_EXHAUSTED
        assert job.failure is not None
        assert (job.failure["code"], job.failure["retryable"]) == ("staging_failed", True)

    def test_of_other_bytes_than_the_digest_says_fails(
        self, workshop: Context, project: str
    ) -> None:
        job_id = unstageable(workshop, project)
        with workshop.readers.begin() as session:
            job = session.get_one(tables.JobRow, job_id)
            teacher = session.get_one(tables.ModelVersionRow, job.teacher_version_id)
            key = session.get_one(tables.BlobRow, teacher.sha256).storage_key
        path = workshop.settings.data_dir / "storage" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"something else")
        assert runner.run_job(workshop, job_id) == State.QUEUED
        assert "other bytes" in (scenes.job(workshop, job_id).state_message or "")

    def test_where_no_folder_can_be_made_hands_the_job_to_the_next(
        self, workshop: Context, project: str, tmp_path: Path
    ) -> None:
        """A file stands where the working folders should be: true for root, too."""
        (tmp_path / "scratch").touch()
        broken = dataclasses.replace(
            workshop,
            settings=workshop.settings.model_copy(update={"data_dir": tmp_path}),
            health=MachineHealth(),
        )
        job_id = scenes.submit(workshop, project)
        assert runner.run_job(broken, job_id) is None
        assert broken.health.suspension is not None
        assert broken.health.suspension.code == machine_health.DISK_FAILED
        assert scenes.job(workshop, job_id).attempt == 0

    @pytest.mark.slow
    def test_is_given_up_when_the_user_cancels_meanwhile(
        self, workshop: Context, project: str, undisturbed: tables.JobRow
    ) -> None:
        """Staging is made slow by another process that writes the same built-in data set."""
        job_id = scenes.submit(workshop, project)

        def cancel() -> None:
            with workshop.sessions.begin() as session:
                actions.cancel(session, project_id=project, job_id=job_id)
            assert scenes.job(workshop, job_id).state == State.CANCELLING
            # Renewing the lease is how the heartbeat learns of it; once more, and it surely has.
            for _ in range(2):
                before = scenes.job(workshop, job_id).lease_expires_at
                scenes.wait_until(functools.partial(is_renewed, before), "the lease is renewed")
            release.set()

        def is_renewed(before: datetime | None) -> bool:
            return scenes.job(workshop, job_id).lease_expires_at != before

        release = threading.Event()
        lock = inspector.builtin_folder(workshop.settings.cache_dir) / ".digits.lock"
        with (
            held_until(lock, release),
            when(workshop, job_id, State.STARTING, cancel),
        ):
            assert runner.run_job(workshop, job_id) == State.CANCELLED
        (attempt,) = scenes.attempts(workshop, job_id)
        assert attempt.device is None  # no engine was started


@contextlib.contextmanager
def held_until(lock: Path, release: threading.Event) -> Iterator[None]:
    """Hold a lock until an event."""
    held = threading.Event()

    def hold() -> None:
        with staging.locked(lock):
            held.set()
            release.wait(scenes.PATIENCE_SECONDS)

    with scenes.meanwhile(hold):
        held.wait()
        yield


@pytest.mark.slow
class TestFailure:
    def test_of_the_engine_has_code_sentence_and_log(self, workshop: Context, project: str) -> None:
        job_id = scenes.submit(
            workshop,
            project,
            # Each step multiplies every weight by -99.
            training={
                "epochs": 2,
                "optimizer": {"name": "sgd", "learning_rate": 100.0, "weight_decay": 1.0},
            },
        )
        assert runner.run_job(workshop, job_id) == State.FAILED
        job = scenes.job(workshop, job_id)
        assert job.state_reason == Reason.ENGINE_FAILED
        assert job.failure is not None
        assert job.failure["code"] == "diverged"
        assert job.failure["retryable"] is False
        assert job.failure["message"] == job.state_message
        assert "Traceback" in str(job.failure["log_tail"])
        assert job.student_version_id is None
        (attempt,) = scenes.attempts(workshop, job_id)
        assert attempt.log_tail == job.failure["log_tail"]
        with workshop.sessions() as session:
            (tail,) = logs.tails(session, job_id=job_id)
        # Shipped in whole, and not only the last lines.
        assert tail.end > 0
        assert tail.lines[-1][:50] == job.failure["log_tail"][-1][:50]

    def test_by_a_kill_is_tried_again(self, workshop: Context, project: str) -> None:
        job_id = scenes.submit(workshop, project, training=scenes.ENDLESS)

        def kill() -> None:
            (engine,) = scenes.wait_until(scenes.engines, "the engine runs")
            engine.kill()

        with when(workshop, job_id, State.RUNNING, kill):
            assert runner.run_job(workshop, job_id) == State.QUEUED
        job = scenes.job(workshop, job_id)
        assert job.state_reason == Reason.ATTEMPT_FAILED
        assert "signal 9" in (job.state_message or "")
        assert "memory" in (job.state_message or "")
        assert job.queued_at is not None
        assert job.not_before > job.queued_at


@pytest.mark.slow
class TestStopping:
    def test_by_a_cancellation_takes_seconds_and_registers_nothing(
        self, workshop: Context, project: str
    ) -> None:
        def cancelled() -> float:
            job_id = scenes.submit(workshop, project, name="cancelled", training=scenes.ENDLESS)
            environments: list[dict[str, str]] = []
            asked: list[datetime] = []

            def cancel() -> None:
                environments.extend(engine.environ() for engine in scenes.engines())
                asked.append(datetime.now(UTC))
                with workshop.sessions.begin() as session:
                    actions.cancel(session, project_id=project, job_id=job_id)

            with when(workshop, job_id, State.RUNNING, cancel):
                assert runner.run_job(workshop, job_id) == State.CANCELLED
            job = scenes.job(workshop, job_id)
            assert job.state_reason == Reason.CANCELLED_BY_CALLER
            assert job.student_version_id is None
            (environment,) = environments
            assert not [name for name in environment if name.startswith(("RETORT_", "AWS_", "PG"))]
            assert job.finished_at is not None
            return (job.finished_at - asked[0]).total_seconds()

        waiting.takes_less_than(15, cancelled)

    def test_by_a_pause_keeps_a_checkpoint_from_which_it_goes_on(
        self, workshop: Context, project: str, undisturbed: tables.JobRow
    ) -> None:
        job_id = scenes.submit(workshop, project, name="paused", **SPEC)

        def pause() -> None:
            (engine,) = scenes.engines()
            with scenes.suspended(engine):
                with workshop.sessions.begin() as session:
                    actions.pause(session, project_id=project, job_id=job_id)
                scenes.wait_until(lambda: scenes.is_told_to_stop(engine), "it is told to stop")

        with when_trained_a_step(workshop, job_id, pause):
            assert runner.run_job(workshop, job_id) == State.PAUSED
        with workshop.readers.begin() as session:
            saved = leases.checkpoints(session, job_id=job_id)
        assert saved
        assert scenes.job(workshop, job_id).state_reason == Reason.PAUSED_BY_CALLER
        with workshop.sessions.begin() as session:
            actions.resume(session, project_id=project, job_id=job_id)
        assert runner.run_job(workshop, job_id) == State.SUCCEEDED
        _, second = scenes.attempts(workshop, job_id)
        assert second.resumed_from_step == max(row.step for row in saved)
        steps = steps_of(workshop, job_id)
        assert min(steps[2]) > max(steps.get(1, [0]))
        assert sorted([*steps.get(1, []), *steps[2]]) == steps_of(workshop, undisturbed.id)[1]
        student = student_of(workshop, scenes.job(workshop, job_id))
        assert student.sha256 == student_of(workshop, undisturbed).sha256

    def test_by_a_shutdown_hands_the_job_back_without_counting(
        self, workshop: Context, project: str
    ) -> None:
        job_id = scenes.submit(workshop, project, training=scenes.ENDLESS, max_attempts=1)
        leaving = dataclasses.replace(workshop, shutting_down=threading.Event())
        with when_trained_a_step(workshop, job_id, leaving.shutting_down.set):
            assert runner.run_job(leaving, job_id) == State.QUEUED
        job = scenes.job(workshop, job_id)
        assert job.state_reason == Reason.WORKER_SHUTDOWN
        assert (job.attempt, job.releases) == (1, 1)
        assert job.not_before <= datetime.now(UTC)
        with workshop.readers.begin() as session:
            assert leases.checkpoints(session, job_id=job_id)

    def test_by_a_shutdown_before_the_engine_starts_none(
        self, workshop: Context, project: str, undisturbed: tables.JobRow
    ) -> None:
        job_id = scenes.submit(workshop, project)
        leaving = dataclasses.replace(workshop, shutting_down=threading.Event())
        leaving.shutting_down.set()
        assert runner.run_job(leaving, job_id) == State.QUEUED
        assert scenes.job(workshop, job_id).releases == 1

    def test_by_a_lost_lease_kills_the_engine_and_writes_nothing(
        self, workshop: Context, project: str
    ) -> None:
        job_id = scenes.submit(workshop, project, training=scenes.ENDLESS)

        def lose() -> None:
            with workshop.sessions.begin() as session:
                factories.lost(session, session.get_one(tables.JobRow, job_id))
            before.extend(event.sequence for event in scenes.events(workshop, job_id))

        before: list[int] = []
        with (
            structlog.testing.capture_logs() as logged,
            when(workshop, job_id, State.RUNNING, lose),
        ):
            assert runner.run_job(workshop, job_id) is None
        assert {line["event"] for line in logged} & {"attempt_lost", "attempt_stale"}
        job = scenes.job(workshop, job_id)
        assert (job.state, job.state_reason, job.fence) == (State.QUEUED, Reason.ATTEMPT_LOST, 2)
        assert [event.sequence for event in scenes.events(workshop, job_id)] == before
        (attempt,) = scenes.attempts(workshop, job_id)
        assert attempt.outcome == "attempt_lost"


@contextlib.contextmanager
def with_launcher(context: Context, *preload: str) -> Iterator[Context]:
    """Give the same worker a server of its own."""
    with contextlib.closing(EngineLauncher(is_warm=True, preload=preload)) as launcher:
        yield dataclasses.replace(context, launcher=launcher)


@pytest.mark.slow
class TestEngineServer:
    def test_that_cannot_be_used_changes_the_time_and_not_the_student(
        self, workshop: Context, project: str, undisturbed: tables.JobRow
    ) -> None:
        job_id = scenes.submit(workshop, project, name="cold", **SPEC)
        with with_launcher(workshop, "tests.workers.no_such_module", "--") as cold:
            assert runner.run_job(cold, job_id) == State.SUCCEEDED
        student = student_of(workshop, scenes.job(workshop, job_id))
        assert student.sha256 == student_of(workshop, undisturbed).sha256
        (warning,) = [e.data for e in scenes.events(workshop, job_id) if e.type == "job.warning"]
        assert warning["code"] == "engine_cold"
        assert "no_such_module" in warning["message"]
        assert [e for e in scenes.events(workshop, undisturbed.id) if e.type == "job.warning"] == []

    def test_that_is_killed_takes_the_engine_along_and_the_job_is_tried_again(
        self, workshop: Context, project: str
    ) -> None:
        job_id = scenes.submit(workshop, project)

        def kill() -> None:
            (engine,) = scenes.wait_until(scenes.engines, "the engine runs")
            server = engine.parent()
            assert server is not None
            server.kill()

        with (
            # Imports nothing, so that the engine still starts when it is killed.
            with_launcher(workshop, "--") as own,
            scenes.meanwhile(kill),
        ):
            assert runner.run_job(own, job_id) == State.QUEUED
        job = scenes.job(workshop, job_id)
        assert job.state_reason == Reason.ATTEMPT_FAILED
        assert "process that the engine was forked from" in (job.state_message or "")

    def test_that_still_starts_does_not_hold_up_a_cancellation(
        self, workshop: Context, project: str
    ) -> None:
        job_id = scenes.submit(workshop, project)

        def cancel() -> None:
            with workshop.sessions.begin() as session:
                actions.cancel(session, project_id=project, job_id=job_id)

        others = scenes.engines("workers.engine_server")
        # Its imports take seconds, so that it is suspended before it is ready.
        with with_launcher(workshop, "torch", "--") as own:
            own.launcher.warm_up()
            found = functools.partial(scenes.engines, "workers.engine_server")
            server = scenes.wait_until(lambda: [p for p in found() if p not in others], "it runs")[
                0
            ]
            server.suspend()
            with when(workshop, job_id, State.STARTING, cancel):
                assert runner.run_job(own, job_id) == State.CANCELLED
            server.resume()
        (attempt,) = scenes.attempts(workshop, job_id)
        assert attempt.device is None  # no engine was started


@pytest.mark.slow
class TestCheckpoints:
    def test_that_cannot_be_used_cost_time_and_not_the_job(
        self, workshop: Context, project: str
    ) -> None:
        """One is damaged in itself, of the other the store has lost the bytes."""
        job_id = scenes.submit(workshop, project)
        with workshop.sessions.begin() as session:
            lease = factories.running(session, session.get_one(tables.JobRow, job_id))
            for step in (10, 20):
                stored = workshop.storage.put(io.BytesIO(b"no checkpoint %d" % step))
                file = leases.OutputFile(
                    f"checkpoints/step-{step:08d}.ckpt",
                    stored.sha256,
                    stored.size_bytes,
                    stored.key,
                )
                leases.checkpoint(session, lease, file, step=step, epoch=1, phase="student")
            leases.release(session, lease, log_tail=[])
        workshop.storage.delete(stored.key)
        with structlog.testing.capture_logs() as logged:
            assert runner.run_job(workshop, job_id) == State.SUCCEEDED
        assert "checkpoint_not_restored" in {line["event"] for line in logged}
        warnings = [
            event.data["code"]
            for event in scenes.events(workshop, job_id)
            if event.type == "job.warning"
        ]
        assert "checkpoint_unreadable" in warnings
        assert scenes.attempts(workshop, job_id)[1].resumed_from_step == 0
        with workshop.readers.begin() as session:
            assert leases.checkpoints(session, job_id=job_id) == []


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestOutage:
    def test_of_the_database_does_not_cost_a_finished_student(
        self, context: Context, workshop: Context, database_url: str
    ) -> None:
        """Nobody may connect from the first checkpoint on until the engine has ended."""
        project = scenes.project(context, "elsewhere")
        builtin = workshop.settings.cache_dir / "builtin"
        if builtin.exists():
            shutil.copytree(builtin, context.settings.cache_dir / "builtin")
        job_id = scenes.submit(context, project)

        def take_away() -> None:
            (engine,) = scenes.engines()
            with scenes.suspended(engine):
                away.enter_context(scenes.unreachable(database_url))
            with away:
                scenes.wait_until(lambda: scenes.has_ended(engine.pid), "the engine has ended")

        away = contextlib.ExitStack()
        with (
            structlog.testing.capture_logs() as logged,
            when(context, job_id, State.RUNNING, take_away),
        ):
            assert runner.run_job(context, job_id) == State.SUCCEEDED
        assert "transaction_repeated" in {line["event"] for line in logged}
        assert scenes.job(context, job_id).student_version_id is not None


class Choosy(storage.LocalStorage):
    """A store that breaks down when it is handed a certain file."""

    def put(self, stream: storage.Source, *, expected: str | None = None) -> storage.StoredBlob:
        if str(getattr(stream, "name", "")).endswith("tsne.png"):
            raise errors.StorageFull("the disk of the byte store is full")
        return super().put(stream, expected=expected)


@pytest.mark.slow
class TestReport:
    def test_is_kept_with_the_student_and_never_costs_it(
        self, workshop: Context, project: str, undisturbed: tables.JobRow
    ) -> None:
        job_id = scenes.submit(workshop, project, name="undisturbed", report=True, **SPEC)
        where = workshop.settings.data_dir / "storage"
        broken = dataclasses.replace(workshop, storage=Choosy(where))
        assert runner.run_job(broken, job_id) == State.SUCCEEDED
        job = scenes.job(workshop, job_id)
        files = files_of(workshop, student_of(workshop, job))
        assert files["report/accuracy.png"].startswith(b"\x89PNG")
        assert b"<svg" in files["report/confusion.svg"]
        assert "report/tsne.png" not in files
        topics = json.loads(files["report/index.json"])["topics"]
        assert {topic["numbers"] for topic in topics} <= {path[7:] for path in files}
        assert "](report/accuracy.png)" in files["card.md"].decode()
        assert "](accuracy.png)" in files["report/card.md"].decode()
        assert "tsne.png" not in files["card.md"].decode()
        warned = [e.data["code"] for e in scenes.events(workshop, job_id) if "warning" in e.type]
        assert warned == ["report_not_stored"]
        assert job.result is not None
        assert job.result["report_seconds"] > 0
        # Drawing changes nothing of what is drawn.
        assert student_of(workshop, job).sha256 == student_of(workshop, undisturbed).sha256

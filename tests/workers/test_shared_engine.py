"""Jobs of one study in one engine: each ends as it would have ended alone."""

import dataclasses
import io
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from models_registry.jobs import actions, leases
from models_registry.jobs.lifecycle import Reason, State
from models_registry.persistence import tables
from models_registry.studies import studies
from models_registry.studies.spec import StudySpec
from tests import factories
from tests.workers import scenes, weights
from workers import runner
from workers.context import Context

pytestmark = pytest.mark.usefixtures("tidiness")

TRAINING: dict[str, Any] = {"epochs": 4, "checkpoint_seconds": 0.3}
# With the larger one, each step multiplies every weight by -99.
WILD: dict[str, Any] = {"name": "sgd", "learning_rate": {"grid": [0.01, 100.0]}, "weight_decay": 1}
TAME: dict[str, Any] = {**WILD, "learning_rate": 0.01}

Jobs = dict[str, str]


@pytest.fixture(scope="module")
def project(workshop: Context) -> str:
    """A project with a teacher; how good it is does not matter."""
    made = scenes.project(workshop)
    with workshop.sessions.begin() as session:
        factories.teacher(
            session,
            workshop.storage,
            project_id=made,
            name="teacher",
            content=weights.tiny_safetensors(),
            **scenes.TINY,
        )
    return made


@pytest.fixture(scope="module")
def alone(workshop: Context, project: str) -> str:
    """The digest of KD's student, trained by an engine of its own."""
    job_id = scenes.submit(
        workshop,
        project,
        teacher="teacher@1",
        method={"name": "kd"},
        training={**TRAINING, "optimizer": TAME, "seed": 7},
    )
    assert runner.run_job(workshop, job_id) == State.SUCCEEDED
    return digest(workshop, job_id)


def digest(context: Context, job_id: str) -> str:
    return str((scenes.job(context, job_id).result or {})["digest"])


def study(context: Context, project: str, *methods: str, **changes: Any) -> Jobs:
    """Submit a study of one seed, and return its jobs by method and what they are called for."""
    spec = {
        "name": "-".join(methods),
        "teacher": "teacher@1",
        "student": scenes.TINY,
        "dataset": "digits@1",
        "methods": [{"name": name} for name in methods],
        "baseline": False,
        "report": False,
        "seeds": [7],
        "training": {**TRAINING, "optimizer": changes.pop("optimizer", TAME)},
        **changes,
    }
    with context.sessions.begin() as session:
        row = studies.submit(session, project_id=project, spec=StudySpec.model_validate(spec))
        found = session.query(tables.JobRow).filter_by(study_id=row.id).all()
        return {
            job.method
            + (" wild" if job.spec["training"]["optimizer"]["learning_rate"] > 1 else ""): job.id
            for job in found
        }


def once_all_are_kept(
    context: Context, made: Jobs, act: Callable[[], None]
) -> AbstractContextManager[None]:
    """Do something as soon as this attempt has left a checkpoint of each job, beside the block."""
    before = {job_id: scenes.job(context, job_id).attempt for job_id in made.values()}

    def is_kept(job_id: str) -> bool:
        with context.readers.begin() as session:
            kept = leases.checkpoints(session, job_id=job_id)
        return any(row.attempt > before[job_id] for row in kept)

    def wait_and_act() -> None:
        scenes.wait_until(lambda: all(map(is_kept, before)), "all have a checkpoint")
        act()

    return scenes.meanwhile(wait_and_act)


def states(context: Context, made: Jobs) -> dict[str, tuple[str, str | None]]:
    found = {name: scenes.job(context, job_id) for name, job_id in made.items()}
    return {name: (job.state, job.state_reason) for name, job in found.items()}


@pytest.mark.slow
class TestSharedEngine:
    def test_ends_each_job_as_it_would_end_alone(
        self, workshop: Context, project: str, alone: str
    ) -> None:
        """Three of six diverge, and the lease of one is taken away."""
        made = study(workshop, project, "kd", "ce", "dkd", optimizer=WILD)
        seen: list[int] = []

        def lose() -> None:
            seen.extend(engine.pid for engine in scenes.engines())
            with workshop.sessions.begin() as session:
                factories.lost(session, session.get_one(tables.JobRow, made["dkd"]))

        tame = {name: made[name] for name in ("kd", "ce", "dkd")}
        with once_all_are_kept(workshop, tame, lose):
            assert runner.run_job(workshop, made["ce"]) == State.SUCCEEDED
        assert len(seen) == 1
        diverged = (State.FAILED, Reason.ENGINE_FAILED)
        assert states(workshop, made) == {
            "kd": (State.SUCCEEDED, None),
            "ce": (State.SUCCEEDED, None),
            "dkd": (State.QUEUED, Reason.ATTEMPT_LOST),
            **dict.fromkeys(("kd wild", "ce wild", "dkd wild"), diverged),
        }
        assert digest(workshop, made["kd"]) == alone
        assert (scenes.job(workshop, made["kd"]).result or {})["shared_with"] == 5
        failure = scenes.job(workshop, made["kd wild"]).failure or {}
        assert (failure["code"], failure["retryable"]) == ("diverged", False)

    def test_that_is_stopped_for_one_goes_on_with_the_others(
        self, workshop: Context, project: str, alone: str
    ) -> None:
        made = study(workshop, project, "kd", "ce", "dkd", max_attempts=1)

        def cancel() -> None:
            (engine,) = scenes.engines()
            with scenes.suspended(engine):
                with workshop.sessions.begin() as session:
                    actions.cancel(session, project_id=project, job_id=made["dkd"])
                scenes.wait_until(lambda: scenes.is_told_to_stop(engine), "it is told to stop")

        with once_all_are_kept(workshop, made, cancel):
            assert runner.run_job(workshop, made["kd"]) == State.QUEUED
        goes_on = (State.QUEUED, Reason.COMPANION_STOPPED)
        cancelled = (State.CANCELLED, Reason.CANCELLED_BY_CALLER)
        assert states(workshop, made) == {"kd": goes_on, "ce": goes_on, "dkd": cancelled}
        assert runner.run_job(workshop, made["ce"]) == State.SUCCEEDED
        job = scenes.job(workshop, made["kd"])
        assert (job.state, job.attempt, job.releases) == (State.SUCCEEDED, 2, 1)
        assert digest(workshop, job.id) == alone
        assert (job.result or {})["shared_with"] == 1
        resumed = [scenes.attempts(workshop, made[name])[1] for name in ("kd", "ce")]
        (step,) = {attempt.resumed_from_step for attempt in resumed}
        assert step

    def test_that_dies_uses_up_no_attempt(self, workshop: Context, project: str) -> None:
        made = study(workshop, project, "kd", "ce", max_attempts=1)

        def kill() -> None:
            # An engine that dies as it is forked is started another way.
            for job_id in made.values():
                scenes.wait_until(scenes.has_state(workshop, job_id, State.RUNNING), "it runs")
            (engine,) = scenes.engines()
            engine.kill()

        with scenes.meanwhile(kill):
            assert runner.run_job(workshop, made["kd"]) == State.QUEUED
        handed_back = (State.QUEUED, Reason.SHARED_ENGINE_FAILED)
        assert states(workshop, made) == dict.fromkeys(made, handed_back)
        for job_id in made.values():
            (attempt,) = scenes.attempts(workshop, job_id)
            assert "signal 9" in (attempt.message or "")
            assert scenes.job(workshop, job_id).releases == 1


class TestStaging:
    """Of inputs that are not there: no engine is started."""

    @pytest.fixture
    def content(self) -> bytes:
        return os.urandom(8)

    @pytest.fixture
    def made(self, workshop: Context, content: bytes) -> Jobs:
        """The jobs of a study whose teacher's bytes are missing in storage."""
        elsewhere = scenes.project(workshop, f"elsewhere-{content.hex()}")
        with workshop.sessions.begin() as session:
            teacher = factories.teacher(
                session, workshop.storage, project_id=elsewhere, name="teacher", content=content
            )
            blob = session.get_one(tables.BlobRow, teacher.sha256)
            workshop.storage.delete(blob.storage_key)
        return study(workshop, elsewhere, "kd", "ce", "dkd")

    def test_that_fails_is_tried_alone(self, workshop: Context, made: Jobs) -> None:
        assert runner.run_job(workshop, made["kd"]) == State.QUEUED
        handed_back = (State.QUEUED, Reason.SHARED_ENGINE_FAILED)
        assert states(workshop, made) == dict.fromkeys(made, handed_back)
        assert runner.run_job(workshop, made["kd"]) == State.QUEUED
        assert states(workshop, made) == {
            "kd": (State.QUEUED, Reason.ATTEMPT_FAILED),
            "ce": handed_back,
            "dkd": handed_back,
        }

    def test_is_for_one_job_where_sharing_is_switched_off(
        self, workshop: Context, made: Jobs
    ) -> None:
        settings = workshop.settings.model_copy(update={"study_students": 1})
        alone = dataclasses.replace(workshop, settings=settings)
        assert runner.run_job(alone, made["kd"]) == State.QUEUED
        attempts = {name: scenes.job(workshop, job_id).attempt for name, job_id in made.items()}
        assert attempts == {"kd": 1, "ce": 0, "dkd": 0}

    @pytest.mark.slow
    def test_is_given_up_by_a_worker_that_shuts_down(
        self, workshop: Context, made: Jobs, content: bytes
    ) -> None:
        leaving = dataclasses.replace(workshop, shutting_down=threading.Event())
        leaving.shutting_down.set()
        workshop.storage.put(io.BytesIO(content))
        assert runner.run_job(leaving, made["kd"]) == State.QUEUED
        released = (State.QUEUED, Reason.WORKER_SHUTDOWN)
        assert states(workshop, made) == dict.fromkeys(made, released)

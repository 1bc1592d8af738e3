"""The whole path, over HTTP: teacher in, student out, and what happens on the way."""

import contextlib
import hashlib
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retort import errors, types
from retort.client import Client
from tests import waiting
from tests.journeys.stacks import ON_EMBEDDED, ON_PRODUCTION, PATIENCE_SECONDS, Stack
from workers.distill.evaluation import evaluate

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

TINY = {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 8, 16]}}


def a_job(teacher: str | None, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": "journey",
        "teacher": teacher,
        "student": TINY,
        "dataset": "digits@1",
        "method": {"name": "kd"},
        "training": {"epochs": 4},
        "report": False,
    }
    return {**spec, **changes}


def wait_for(retort: Client, job_id: str, state: str) -> None:
    """Wait until the job is in this state."""

    def is_there() -> bool:
        job = retort.jobs.get(job_id)
        assert job.state == state or not job.is_final, job
        return job.state == state

    waiting.until(is_there, f"{job_id} is {state}", seconds=PATIENCE_SECONDS)


def wait_for_event(retort: Client, job_id: str, kind: str) -> None:
    """Wait until the job's log has an event of this type."""
    after = 0

    def is_there() -> bool:
        nonlocal after
        page = retort.jobs.events(job_id, after=after, wait_seconds=5)
        after = max([after, *(event.sequence for event in page.data)])
        return kind in [event.type for event in page.data]

    what = f"{job_id} has a {kind}"
    waiting.until(is_there, what, seconds=PATIENCE_SECONDS, pause_seconds=0)


@contextlib.contextmanager
def cancelled_at_the_end(retort: Client, spec: dict[str, Any]) -> Iterator[types.Job]:
    """Submit a job that outlasts the block, however slow this machine is; nothing waits for it."""
    job = retort.jobs.submit(spec)
    try:
        yield job
    finally:
        retort.jobs.cancel(job.id)
        ended = retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS)
    assert ended.state == "cancelled", ended


class TestAJob:
    def test_gives_a_student_that_scores_what_the_registry_states(
        self,
        stack: Stack,
        retort: Client,
        teacher: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ):
        method = {"name": "dkd", "warmup_epochs": 2}
        # The engine draws the same everywhere; its files travel farther over S3.
        with_report = not stack.restarts_workers
        spec = a_job(teacher, method=method, baseline=True, report=with_report)
        job = retort.jobs.submit(spec)
        events = list(retort.jobs.stream(job.id))
        ended = retort.jobs.get(job.id)
        assert ended.state == "succeeded", ended
        assert ended.result is not None
        assert set(ended.result.scores) == {"teacher", "student", "baseline"}
        kinds = [event.type for event in events]
        assert kinds[:2] == ["job.validating", "job.queued"]
        assert kinds[-1] == "job.succeeded"
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        series = {one.key: one.points for one in retort.jobs.metrics(job.id)}
        assert {"loss/total", "loss/task", "loss/dkd", "validation/accuracy"} <= series.keys()
        assert "baseline/validation/accuracy" in series
        assert [p.epoch for p in series["validation/accuracy"]] == [1, 2, 3, 4]

        student = retort.jobs.download_student(job.id, tmp_path / "student.safetensors")
        digest = hashlib.sha256(student.read_bytes()).hexdigest()
        assert ended.result.digest == f"sha256:{digest}"
        assert evaluate.main([str(student), "--dataset", "digits"]) == 0
        measured = json.loads(capsys.readouterr().out)
        stated = ended.result.scores["student"]
        assert stated is not None
        assert measured["accuracy"] == stated["accuracy"]
        version = retort.models.resolve(ended.result.student or "")
        lineage = retort.models.lineage(version.name, version.version)
        assert job.id in json.dumps(lineage)
        assert teacher in json.dumps(lineage)
        if not with_report:
            return
        drawn = {file.path for file in retort.jobs.report(job.id)}
        assert {"tsne.png", "correlation.svg", "curves.json", "card.md", "index.json"} <= drawn
        archive = retort.jobs.download_report(job.id, tmp_path / "report.zip")
        with zipfile.ZipFile(archive) as opened:
            assert opened.testzip() is None
            assert set(opened.namelist()) == {f"report/{path}" for path in drawn}

    @ON_EMBEDDED
    def test_shows_metrics_and_progress_while_it_runs(self, retort: Client, teacher: str):
        with cancelled_at_the_end(retort, a_job(teacher, training={"epochs": 1000})) as job:
            wait_for(retort, job.id, "running")

            def is_known() -> bool:
                now = retort.jobs.get(job.id)
                assert now.state == "running"
                # The first metrics may arrive before the first progress that knows a rate.
                return bool(now.metrics and now.estimated_end_at) and 0 < now.progress < 1

            waiting.until(is_known, "metrics, progress and its end are shown")

    @ON_EMBEDDED
    def test_that_is_cancelled_stops_within_seconds_and_registers_nothing(
        self, retort: Client, teacher: str
    ):
        student = {**TINY, "register_as": "never"}

        def cancelled() -> float:
            job = retort.jobs.submit(a_job(teacher, student=student, training={"epochs": 500}))
            wait_for(retort, job.id, "running")
            assert retort.jobs.cancel(job.id).state == "cancelling"
            began = time.monotonic()
            wait_for(retort, job.id, "cancelled")
            return time.monotonic() - began

        waiting.takes_less_than(15, cancelled)
        with pytest.raises(errors.ProblemError) as caught:
            retort.models.get("never")
        assert caught.value.status == 404

    @ON_PRODUCTION
    def test_that_is_paused_goes_on_where_it_stopped(self, retort: Client, teacher: str):
        with cancelled_at_the_end(retort, a_job(teacher, training={"epochs": 1000})) as job:
            wait_for(retort, job.id, "running")
            waiting.until(lambda: retort.jobs.get(job.id).metrics, "metrics are shown")
            retort.jobs.pause(job.id)
            wait_for(retort, job.id, "paused")
            retort.jobs.resume(job.id)
            wait_for(retort, job.id, "running")
            # That it ends as if it had never been paused is tried with the worker's runner.
            first, second = retort.jobs.attempts(job.id)
            assert (first.resumed_from_step, first.outcome) == (0, "paused_by_caller")
            assert second.resumed_from_step
            log = [event.type for event in retort.jobs.events_after(job.id)]
            assert log.count("job.running") == 2

    def test_survives_the_death_of_worker_and_engine_with_the_same_bytes(
        self, stack: Stack, retort: Client, teacher: str
    ):
        spec = a_job(
            teacher,
            training={"epochs": 16, "checkpoint_seconds": 0.5},
            method={"name": "dkd"},
        )
        # On a machine that stands still for a while, a job may end before the kill.
        for _ in range(3):
            job = retort.jobs.submit(spec)
            wait_for_event(retort, job.id, "job.checkpoint")
            stack.kill_worker_and_engine()
            ended = retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS)
            assert ended.state == "succeeded", ended
            if ended.attempt > 1:
                break
        assert ended.attempt == 2
        log = [event.type for event in retort.jobs.events_after(job.id)]
        assert log.count("job.succeeded") == 1
        if stack.restarts_workers:  # the engine is the same: its bytes are compared on one stack
            return
        undisturbed = retort.jobs.wait(retort.jobs.submit(spec).id, timeout=PATIENCE_SECONDS)
        assert undisturbed.attempt == 1
        assert ended.result is not None
        assert undisturbed.result is not None
        assert ended.result.digest == undisturbed.result.digest


@ON_PRODUCTION
class TestAStudy:
    def test_compares_a_method_with_its_baseline_over_seeds(self, retort: Client, teacher: str):
        study = retort.studies.submit(
            {
                "name": "journey-study",
                "teacher": teacher,
                "dataset": "digits@1",
                "student": TINY,
                "methods": [{"name": "combine", "methods": [{"name": "kd"}, {"name": "fitnet"}]}],
                "seeds": [0, 1],
                "training": {"epochs": 2},
                "report": False,
            }
        )
        assert retort.studies.wait(study.id, timeout=PATIENCE_SECONDS).state == "succeeded"
        rows = retort.studies.leaderboard(study.id).rows
        assert [row.finished for row in rows] == [2, 2]
        assert [row.difference.pairs for row in rows if row.difference] == [2]


@ON_PRODUCTION
class TestBadInput:
    def test_a_misspelt_hyper_parameter_is_refused_with_its_name_and_the_nearest(
        self, stack: Stack, teacher: str, tmp_path: Path
    ):
        spec = tmp_path / "spec.json"
        wrong = a_job(teacher, method={"name": "dkd", "betta": 8})
        spec.write_text(json.dumps(wrong))
        answer = stack.run("submit", str(spec))
        assert answer.returncode == 3
        assert "betta" in answer.stderr
        assert "beta" in answer.stderr
        assert "Traceback" not in answer.stderr

    def test_a_pickle_with_code_is_rejected_and_not_run(
        self, stack: Stack, retort: Client, tmp_path: Path
    ):
        marker = tmp_path / "executed"
        path = tmp_path / "evil.pt"
        path.write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
        answer = stack.run(
            *("upload", "model", "evil", str(path), "--network", "retort/resnet8"),
            *("--classes", "10", "--channels", "1", "--height", "8", "--width", "8"),
            *("--mean", "0.3", "--std", "0.4", "--wait"),
        )
        assert answer.returncode == 3, answer
        assert retort.models.version("evil", 1).state == "rejected"
        assert not marker.exists()

    def test_a_teacher_of_another_shape_is_rejected_with_the_keys(
        self, retort: Client, teacher: str, tmp_path: Path
    ):
        made = retort.models.resolve(teacher)
        path = retort.models.download(made, tmp_path / "teacher.safetensors")
        upload = retort.uploads.send(path, purpose="model")
        version = retort.models.register(
            "too-deep", upload, network="retort/resnet14", classes=10, input=made.input or {}
        )
        with pytest.raises(errors.Rejected) as caught:
            retort.models.wait("too-deep", version.version, timeout=PATIENCE_SECONDS)
        assert "layer1.1" in str(caught.value)
        rejected = retort.models.version("too-deep", 1)
        assert rejected.state == "rejected"
        assert rejected.rejection is not None
        assert "layer1.1.conv1.weight" in rejected.rejection.missing_keys
        with pytest.raises(errors.ProblemError) as refused:
            retort.jobs.submit(a_job("too-deep@1"))
        assert refused.value.status == 422

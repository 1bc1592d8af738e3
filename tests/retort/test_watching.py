import io
from datetime import UTC, datetime, timedelta

import pytest
import rich.console

from retort import client, errors, types, watching
from retort.metrics import PRIMARY_METRICS
from tests.retort.wire import Reply, problem, stream, told

SPEC = {"training": {"epochs": 30}}
DAY = timedelta(days=1)
LOST = Reply(cut_after=-1)


def job(state: str, **more: object) -> dict[str, object]:
    return {"id": "job_1", "state": state, "spec": SPEC, **more}


def series(key: str, epoch: int, at: datetime) -> dict[str, object]:
    points = [{"step": 1, "epoch": epoch, "value": 0.5, "at": at.isoformat()}]
    return {"key": key, "points": points}


@pytest.fixture
def retort(wire, monkeypatch):
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.02)
    with client.Client(wire.url, "k") as made:
        yield made


@pytest.fixture
def page():
    """What a log file would hold."""
    return io.StringIO()


@pytest.fixture
def lines(page):
    return watching.Lines(rich.console.Console(file=page, width=200, highlight=False, markup=False))


class TestFollow:
    def test_shows_changes_of_state_and_warnings(self, wire, retort, lines, page):
        # Three of each: the reader of the stream asks for the job now and then as well.
        states = [state for state in ("queued", "starting", "running") for _ in range(3)]
        wire.on("GET", "/v1/jobs/job_1", *[told(job(s)) for s in (*states, "succeeded")])
        warning = (
            'id: 1\nevent: job.warning\ndata: {"sequence": 1, "type": "job.warning", '
            '"data": {"code": "odd", "message": "compile is off"}}\n\n'
        )
        wire.on("GET", "/v1/jobs/job_1/stream", stream(warning))
        assert watching.follow(retort, "job_1", lines).state == "succeeded"
        shown = page.getvalue().splitlines()
        assert "warning: compile is off" in shown
        assert [line.split()[0] for line in shown if "%" in line] == [
            "queued",
            "starting",
            "running",
            "succeeded",
        ]

    def test_waits_through_an_outage(self, wire, retort, lines, page, monkeypatch):
        monkeypatch.setattr("retort.transport.backoff_seconds", lambda *_: 0.0)
        lost = [LOST] * 8
        wire.on("GET", "/v1/jobs/job_1", told(job("running")), *lost, told(job("succeeded")))
        assert watching.follow(retort, "job_1", lines).state == "succeeded"
        assert page.getvalue().count("trying again, the job is not affected") == 1

    def test_gives_up_when_the_outage_lasts(self, wire, retort, lines, monkeypatch):
        monkeypatch.setattr("retort.transport.backoff_seconds", lambda *_: 0.0)
        monkeypatch.setattr(watching, "PATIENCE_SECONDS", 0.0)
        wire.on("GET", "/v1/jobs/job_1", told(job("running")), LOST)
        with pytest.raises(errors.ConnectionFailed):
            watching.follow(retort, "job_1", lines)

    def test_ends_with_the_problem_of_a_job_that_was_deleted(self, wire, retort, lines):
        wire.on("GET", "/v1/jobs/job_1", told(job("running")), problem(410, "gone", "deleted"))
        with pytest.raises(errors.ProblemError, match="deleted"):
            watching.follow(retort, "job_1", lines)


class TestSnapshot:
    def test_gathers_what_the_service_says(self, wire, retort):
        now = datetime.now(UTC)
        found = types.Job.model_validate(
            job(
                "running",
                progress=0.42,
                metrics={"validation/accuracy": 0.931, "throughput/images_per_second": 812.0},
                estimated_end_at=(now + timedelta(seconds=100)).isoformat(),
            )
        )
        both = [series("loss/total", 13, now), series("baseline/loss/total", 30, now - DAY)]
        wire.on("GET", "/v1/jobs/job_1/metrics", told({"data": both}))
        snapshot = watching.snapshot_of(retort, found)
        assert snapshot.details() in {
            f"epoch 13/30, validation accuracy 0.931, 812 images/s, 1:{second} left"
            for second in (38, 39, 40)
        }

    def test_shows_the_baseline_while_that_is_trained(self, wire, retort):
        now = datetime.now(UTC)
        found = types.Job.model_validate(
            job("running", metrics={"baseline/validation/accuracy": 0.5, "validation/accuracy": 1})
        )
        both = [series("loss/total", 30, now - DAY), series("baseline/loss/total", 2, now)]
        wire.on("GET", "/v1/jobs/job_1/metrics", told({"data": both}))
        assert watching.snapshot_of(retort, found).details() == (
            "baseline, epoch 2/30, validation accuracy 0.500"
        )

    @pytest.mark.parametrize(("task", "metric"), PRIMARY_METRICS.items())
    def test_names_the_metric_that_decides(self, retort, task, metric):
        measured = {"validation/accuracy": 0.9, f"validation/{metric}": 0.5}
        body = job("paused", spec={"task": task}, metrics=measured)
        snapshot = watching.snapshot_of(retort, types.Job.model_validate(body))
        assert snapshot.details() == f"validation {metric} 0.500"

    def test_does_without_an_epoch_if_there_is_none(self, wire, retort):
        found = types.Job.model_validate(job("running"))
        assert watching.snapshot_of(retort, found).details() == ""

    def test_says_what_a_job_waits_for(self, retort):
        found = types.Job.model_validate(
            job("queued", state_reason="attempt_lost", state_message="The worker fell silent.")
        )
        assert watching.snapshot_of(retort, found).details() == "The worker fell silent."


class TestLines:
    def test_come_at_intervals_unless_the_state_changes(self, lines, page, monkeypatch):
        moments = iter([0.0, 100.0, 101.0, 109.0, 110.5, 110.5, 200.0, 200.0])
        monkeypatch.setattr("time.monotonic", lambda: next(moments))
        lines.show(watching.ProgressSnapshot("running", 0.1))
        lines.show(watching.ProgressSnapshot("running", 0.2))
        lines.show(watching.ProgressSnapshot("running", 0.3))
        lines.show(watching.ProgressSnapshot("running", 0.4))
        assert page.getvalue().splitlines() == ["running 10 %", "running 40 %"]


class TestBar:
    def test_draws_on_a_terminal(self):
        screen = io.StringIO()
        console = rich.console.Console(file=screen, force_terminal=True, width=120)
        shown = watching.view(console, "job_1")
        shown.show(
            watching.ProgressSnapshot("running", 0.42, epoch=3, epochs=30, metric="ap", score=0.9)
        )
        shown.say("warning: [bold] is not markup")
        shown.close()
        assert "epoch 3/30, validation ap 0.900" in screen.getvalue()
        assert "42 %" in screen.getvalue()
        assert "[bold]" in screen.getvalue()


class TestClock:
    @pytest.mark.parametrize(
        ("seconds", "shown"), [(-1, "0:00"), (59.6, "1:00"), (61, "1:01"), (7325, "2:02:05")]
    )
    def test_is_read_at_a_glance(self, seconds, shown):
        assert watching.clock(seconds) == shown

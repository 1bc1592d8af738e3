"""One trace from a caller's request over the outbox to the phases of a real engine."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from models_registry.access import keys
from models_registry.jobs import leases
from models_registry.jobs.lifecycle import State
from models_registry.settings import Settings
from tests import databases, factories, otlp
from tests.workers import scenes
from workers import context as contexts
from workers import maintenance, runner
from workers.engine_launcher import EngineLauncher

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PHASES = ("stage", "prepare", "build", "train", "evaluate", "report", "register")


@pytest.fixture
def collector() -> Iterator[otlp.Collector]:
    with otlp.collector() as running:
        yield running


@pytest.fixture
def settings(settings: Settings, collector: otlp.Collector) -> Settings:
    changes = {
        "otlp_endpoint": collector.url,
        "cursor_secret": "a secret of the tests, 32 bytes",
        "republish_after_seconds": 3600,  # one message for each job, however slow the machine is
    }
    return Settings.model_validate({**settings.model_dump(), **changes})


@pytest.mark.slow
@databases.SQLITE_ONLY
def test_leads_from_the_request_to_the_phases_of_the_engine(
    settings: Settings, collector: otlp.Collector, warm_launcher: EngineLauncher
) -> None:
    context = contexts.build(settings, launcher=warm_launcher)
    with context.sessions.begin() as session:
        project = keys.create_project(session, name="laboratory")
        key = factories.key(session, project_id=project.id)
    spec = {
        "name": "tiny",
        "student": scenes.TINY,
        "dataset": "digits@1",
        "method": {"name": "ce"},
        "training": {"epochs": 1},
        "baseline": False,
        "report": False,
    }
    headers = {"authorization": f"Bearer {key}", "traceparent": CALLER}
    with TestClient(create_app(settings), headers=headers) as client:
        job_id = client.post("/v1/jobs", json=spec).json()["id"]  # no broker: the message stays
    maintenance.sweep(context, lambda *_: None)
    assert runner.run_job(context, job_id) == State.SUCCEEDED
    context.tracer.close()
    context.engine.dispose()

    found = collector.wait_for("POST /v1/jobs", "publish jobs.run", "attempt", "epochs", *PHASES)
    request, attempt = found["POST /v1/jobs"], found["attempt"]
    assert {span.trace for span in found.values()} == {CALLER.split("-")[1]}
    assert request.parent == CALLER.split("-")[2]
    assert request.attributes["http.route"] == "/v1/jobs"
    assert request.attributes["http.response.status_code"] == 202
    assert attempt.parent == request.id
    assert attempt.links == [request.id]
    assert attempt.attributes["retort.job.id"] == job_id
    assert attempt.attributes["retort.outcome"] == "succeeded"
    assert not attempt.is_failed
    phases = [found[name] for name in PHASES]
    assert {phase.parent for phase in phases} == {attempt.id}
    ends = [phase.ended for phase in phases]
    assert ends == sorted(ends)
    assert [phase.began for phase in phases[1:]] == ends[:-1]  # without gaps
    assert attempt.began <= phases[0].began
    assert ends[-1] <= attempt.ended
    assert found["epochs"].parent == found["train"].id
    assert (request.service, attempt.service) == ("retort-api", "retort-worker")
    published = [span for span in collector.spans if span.name == "publish jobs.run"]
    assert {span.parent for span in published} == {request.id}
    assert [span.is_failed for span in published] == [True, False]
    statement = found["INSERT"]
    assert statement.parent == request.id
    assert "INSERT INTO" in statement.attributes["db.query.text"]
    assert "tiny" not in statement.attributes["db.query.text"]


@databases.SQLITE_ONLY
def test_tells_of_an_attempt_that_was_lost(settings: Settings, collector: otlp.Collector) -> None:
    from workers.attempt_trace import AttemptTrace

    context = contexts.build(settings)
    trace = AttemptTrace(context.tracer, leases.Lease("job_1", 1, 1), worker_id="wrk_1")
    trace.enter("stage")
    trace.fail("given up: frozen")
    trace.end(None)
    context.tracer.close()
    context.engine.dispose()
    attempt = collector.wait_for("attempt", "stage")["attempt"]
    assert attempt.is_failed
    assert attempt.parent == ""
    assert attempt.attributes["retort.outcome"] == "lost"

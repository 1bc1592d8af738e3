"""Quotas and webhooks from the command line, against the real service."""

import json

import pytest
from typer.testing import CliRunner

from models_registry.jobs import actions
from models_registry.persistence import database, tables
from retort.cli.app import app

URL = "https://93.184.216.34/hook"


@pytest.fixture(autouse=True)
def real(monkeypatch: pytest.MonkeyPatch, service: str, api_key: str) -> None:
    """The service that every command talks to."""
    monkeypatch.setenv("RETORT_URL", service)
    monkeypatch.setenv("RETORT_API_KEY", api_key)


def run(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_quotas_are_shown_and_set(job: tables.JobRow) -> None:
    shown = run("quota", "jobs_running=3", "storage_bytes=1073741824", "share_weight=2.5")
    assert "weight 2.5" in shown
    assert "1.0 GiB" in shown
    quotas = {one["name"]: one for one in json.loads(run("usage", "--json"))["quotas"]}
    assert (quotas["jobs_running"]["limit"], quotas["jobs_queued"]["used"]) == (3, 1)
    run("quota", "jobs_running=none")
    assert "none" in run("usage").splitlines()[3]
    refused = CliRunner().invoke(app, ["quota", "jobs_running"])
    assert refused.exit_code == 2
    assert "jobs_running=4" in refused.stderr


def test_webhooks_are_created_watched_and_deleted(
    job: tables.JobRow, sessions: database.Sessions
) -> None:
    made = json.loads(run("webhooks", "create", URL, "--event", "job.cancelled", "--json"))
    assert made["secret"].startswith("whsec_")
    with sessions.begin() as session:
        actions.cancel(session, project_id=job.project_id, job_id=job.id)
    listed = run("webhooks", "deliveries", made["id"])
    assert "job.cancelled" in listed
    (delivery,) = json.loads(run("webhooks", "deliveries", made["id"], "--json"))
    assert "is pending" in run("webhooks", "redeliver", made["id"], delivery["id"])
    assert run("webhooks", "rotate", made["id"]).strip() != made["secret"]
    assert "disabled (disabled_by_caller)" in run("webhooks", "disable", made["id"])
    assert "is enabled" in run("webhooks", "enable", made["id"])
    assert URL in run("webhooks", "list")
    assert "is deleted" in run("webhooks", "delete", made["id"])
    assert json.loads(run("webhooks", "list", "--json")) == []

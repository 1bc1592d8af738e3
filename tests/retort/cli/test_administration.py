"""Keys, the audit log, retention and erasure from the command line, against the real service."""

import json

import pytest
from typer.testing import CliRunner

from models_registry.persistence import database, tables
from retort import client, errors
from retort.cli import app
from tests import factories
from tests.databases import SQLITE_ONLY


@pytest.fixture
def run(monkeypatch, service, api_key):
    """Run the command line as an administrator of the service; return what it says."""
    monkeypatch.setenv("RETORT_URL", service)
    monkeypatch.setenv("RETORT_API_KEY", api_key)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app.app, arguments, prog_name="retort")
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.output

    return run


@SQLITE_ONLY
class TestKeys:
    def test_are_limited_rotated_and_logged(self, run, service):
        made = json.loads(
            run("--json", "key", "create", "ci", "--scope", "jobs:read", "--days", "3")
        )
        assert made["scopes"] == ["jobs:read"]
        assert made["expires_at"] is not None
        rotated = json.loads(run("--json", "key", "rotate", made["id"], "--overlap-hours", "1"))
        for text in (made["api_key"], rotated["api_key"]):
            with client.Client(service, text) as limited:
                assert list(limited.jobs.list()) == []
                with pytest.raises(errors.ProblemError, match="scope models:read"):
                    list(limited.models.list())
        assert "valid, rotated" in run("key", "list")
        entries = json.loads(run("--json", "audit", "--action", "key", "--limit", "1"))
        assert [one["action"] for one in entries] == ["key.rotated"]
        assert made["id"] in run("audit")


@SQLITE_ONLY
class TestRetention:
    def test_is_tried_out_set_and_shown(self, run):
        assert "forever" in run("retention", "set", "--logs-days", "forever", "--dry-run")
        assert "forever" not in run("retention", "show")
        assert "90 d" in run("retention", "set", "--logs-days", "90", "--checkpoints-last", "3")
        shown = json.loads(run("--json", "retention", "sweep", "--dry-run"))
        assert (shown["policy"]["logs_days"], shown["policy"]["checkpoints_last"]) == (90, 3)
        assert "--logs-days is a number of days" in run(
            "retention", "set", "--logs-days", "soon", code=2
        )
        assert "name what to change" in run("retention", "set", code=2)


@SQLITE_ONLY
class TestErase:
    def test_asks_first_and_lists_what_remains(
        self, run, sessions: database.Sessions, project: tables.ProjectRow
    ):
        with sessions.begin() as session:
            factories.dataset_version(session, project_id=project.id)
        assert "nothing was done" in run("dataset", "erase", "faces@1", code=130)
        said = run("dataset", "erase", "faces@1", "--yes")
        assert "faces@1 is erased" in said
        assert "lineage" in said
        # What was deleted or erased before can be erased once more.
        assert "prepared files" in run("dataset", "erase", "faces@1", "--yes")

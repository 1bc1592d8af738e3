"""`retort federation` and `retort client`, within 80 columns."""

import io

import pytest
import rich.console

from retort import types
from retort.cli import federation_display
from tests import federation_scenes
from tests.retort.cli.test_app import one_error, run

FEDERATION = types.Federation(
    id="fed_1",
    job="job_1",
    method="dsfl",
    state="running",
    round=12,
    rounds=100,
    joined=19,
    invited=20,
    min_clients=15,
)
CLIENTS = [
    types.FederationClient(
        id="fcl_1",
        name="university-hospital-north-west",
        state="answered",
        samples=1_234_567,
        metrics={"accuracy": 0.87654},
        last_round=12,
        bytes_up=123_456_789,
        bytes_down=987_654_321,
        late=12,
        refused=3,
    ),
    types.FederationClient(id="fcl_2", name="b", state="invited"),
]


class TestTable:
    def test_fits_into_80_columns(self):
        page = io.StringIO()
        console = rich.console.Console(file=page, width=80)
        console.print(federation_display.whole(FEDERATION, CLIENTS))
        lines = page.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        (row,) = [line for line in lines if "answered" in line]
        for cell in ("university", "1,234,567", "12", "117.7 MiB", "941.9 MiB", "0.877", "15"):
            assert cell in row
        (other,) = [line for line in lines if "invited " in line and "b " in line[:3]]
        assert other.split()[2:] == ["-", "-", "0", "B", "0", "B", "-", "-"]

    def test_says_where_it_stands_in_one_line(self):
        told = federation_display.line(FEDERATION, CLIENTS)
        assert told == (
            "running: dsfl, round 12 of 100; 19 of 20 clients joined (a round needs 15); "
            "mean client accuracy 0.877"
        )


@pytest.fixture
def real(monkeypatch, service, api_key):
    """The real service, found in the environment."""
    monkeypatch.setenv("RETORT_URL", service)
    monkeypatch.setenv("RETORT_API_KEY", api_key)


@pytest.fixture
def remote(real, sessions, storage, project):
    """A federated job that waits for its clients."""
    return federation_scenes.running(sessions, storage, project.id)


class TestOwner:
    def test_invites_shows_and_revokes(self, remote):
        invited = run("federation", "invite", remote.id, "north", "south")
        keys = [line.split()[1] for line in invited.stdout.splitlines()]
        assert [key[:8] for key in keys] == ["ck_test_"] * 2
        shown = run("federation", "show", remote.federation.job_id)
        assert "0 of 2 clients joined" in shown.stdout
        assert run("federation", "revoke", remote.id, "north").exit_code == 0
        assert "revoked" in run("federation", "show", remote.id).stdout
        assert remote.id in run("federation", "list").stdout
        assert run("federation", "rounds", remote.id).exit_code == 0
        missing = run("federation", "revoke", remote.id, "east")
        assert "no client 'east'" in one_error(missing)


class TestClient:
    def test_is_told_that_its_key_is_not_one(self, remote, tmp_path):
        refused = run(
            *("client", "join", remote.id, "--data", str(tmp_path), "--client-key", "ck_nobody")
        )
        assert refused.exit_code == 3
        assert "unknown" in one_error(refused)

    def test_is_told_that_there_is_no_server(self, tmp_path):
        refused = run(
            *("client", "join", "fed_1", "--data", str(tmp_path), "--client-key", "ck_nobody")
        )
        assert refused.exit_code == 2
        assert "--url" in one_error(refused)

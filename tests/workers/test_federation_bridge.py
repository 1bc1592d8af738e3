"""Between an engine's folder and database and storage: the engine's side is written by hand."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.federations import rounds
from models_registry.persistence import database, tables
from tests import databases, factories, federation_scenes
from tests.federation_scenes import OPEN_DIGEST, OPEN_SET, RemoteJob
from tests.workers import scenes
from workers import federation_bridge
from workers.context import Context
from workers.federation_bridge import FederationBridge

pytestmark = databases.SQLITE_ONLY
T = TypeVar("T")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll whenever a test says so."""
    monkeypatch.setattr(federation_bridge, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(federation_bridge, "SLOW_POLL_SECONDS", 0.0)


@pytest.fixture
def remote(context: Context) -> RemoteJob:
    project_id = scenes.project(context)
    return federation_scenes.running(context.sessions, context.storage, project_id)


def bridge(context: Context, remote: RemoteJob, workdir: Path) -> FederationBridge:
    def persist(write: Callable[[Session], T]) -> T:
        return context.persist(write, hopeless=lambda: False)

    return FederationBridge(context, remote.lease, workdir, persist)


def engine_writes(workdir: Path, path: str, content: bytes | object) -> None:
    target = workdir / "federation" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    target.write_bytes(raw)


def task(number: int) -> object:
    return {"expected": federation_scenes.expected(number), "open_rows": None}


class TestPoll:
    def test_carries_a_round_to_and_fro(
        self, context: Context, remote: RemoteJob, tmp_path: Path
    ) -> None:
        workdir = tmp_path / "work"
        carrier = bridge(context, remote, workdir)
        carrier.poll()
        engine_writes(workdir, "open_set.safetensors", OPEN_SET)
        engine_writes(workdir, "plan.json", {"method": "dsfl"})
        carrier.poll()
        with context.readers() as session:
            row = session.get_one(tables.FederationRow, remote.id)
        assert (row.plan, row.open_set_sha256) == ({"method": "dsfl"}, OPEN_DIGEST)
        folder = workdir / "federation"
        (north,) = remote.joined("north")
        carrier.poll()
        assert not (folder / "clients.json").exists()
        (south,) = remote.joined("south")
        carrier.poll()
        assert json.loads((folder / "clients.json").read_text()) == sorted((north.id, south.id))
        engine_writes(workdir, "rounds/0000/consensus.safetensors", b"start")
        engine_writes(workdir, "rounds/0001/task.json", task(1))
        carrier.poll()
        first = remote.answer(north)
        carrier.poll()
        assert not (folder / "rounds/0001/closed.json").exists()
        remote.answer(south)
        carrier.poll()
        closed = json.loads((folder / "rounds/0001/closed.json").read_text())
        assert closed == {"clients": sorted((north.id, south.id))}
        came = folder / "rounds/0001/replies" / f"{north.id}.safetensors"
        assert came.read_bytes() == first
        engine_writes(workdir, "rounds/0001/consensus.safetensors", b"targets")
        carrier.poll()
        with context.readers() as session:
            states = {row.number: row.state for row in rounds.all_of(session, remote.id)}
        assert states == {1: rounds.RoundState.PUBLISHED}

    def test_of_another_worker_finds_the_round_as_it_was(
        self, context: Context, remote: RemoteJob, tmp_path: Path
    ) -> None:
        """The first worker is killed in the middle of a round; its folder is lost."""
        north, south = remote.joined("north", "south")
        first = bridge(context, remote, tmp_path / "first")
        engine_writes(tmp_path / "first", "plan.json", {})
        engine_writes(tmp_path / "first", "rounds/0001/task.json", task(1))
        first.poll()
        first.poll()
        content = remote.answer(north)
        with context.sessions.begin() as session:
            job = session.get_one(tables.JobRow, remote.lease.job_id)
            factories.lost(session, job)
            lease = factories.running(session, job, worker_id="wrk_2")
        with pytest.raises(errors.StaleFence):
            first.poll()
        remote.lease = lease
        second = bridge(context, remote, tmp_path / "second")
        engine_writes(tmp_path / "second", "plan.json", {})
        engine_writes(tmp_path / "second", "rounds/0001/task.json", task(1))
        second.poll()
        remote.answer(south)
        second.poll()
        folder = tmp_path / "second/federation/rounds/0001"
        assert (folder / "closed.json").exists()
        assert (folder / f"replies/{north.id}.safetensors").read_bytes() == content

    def test_gives_the_engine_the_reason_when_too_few_answer(
        self, context: Context, remote: RemoteJob, tmp_path: Path
    ) -> None:
        remote.joined("north", "south")
        carrier = bridge(context, remote, tmp_path / "work")
        engine_writes(tmp_path / "work", "plan.json", {})
        engine_writes(tmp_path / "work", "rounds/0001/task.json", task(1))
        carrier.poll()
        carrier.poll()
        with context.sessions.begin() as session:
            row = session.get_one(tables.FederationRoundRow, (remote.id, 1))
            row.deadline_at = database.now(session) - timedelta(seconds=1)
        carrier.poll()
        told = json.loads((tmp_path / "work/federation/failure.json").read_text())
        assert "0 of at least 2 clients answered" in told["message"]

    def test_tells_the_user_when_a_round_was_computed_again_with_other_numbers(
        self, context: Context, remote: RemoteJob, tmp_path: Path
    ) -> None:
        remote.publish(0, b"start")
        carrier = bridge(context, remote, tmp_path / "work")
        engine_writes(tmp_path / "work", "plan.json", {})
        engine_writes(tmp_path / "work", "rounds/0000/consensus.safetensors", b"other")
        carrier.poll()
        carrier.poll()
        warned = [event.data for event in scenes.events(context, remote.lease.job_id)]
        assert [one for one in warned if one.get("code") == "consensus_differs"]

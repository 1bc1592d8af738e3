"""Federations as tests need them: the worker's side played through the registry's own verbs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models_registry.federations import clients, federations, replies, rounds
from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from retort import tensors
from tests import factories

CLASSES = 10
ROWS = 2
UNIFORM = [[1 / CLASSES] * CLASSES] * ROWS
OPEN_SET = b"an open set"
OPEN_DIGEST = hashlib.sha256(OPEN_SET).hexdigest()
REMOTE = {"clients": "remote", "min_clients": 2}


def spec(method: str = "dsfl", **federation: Any) -> dict[str, Any]:
    """Return the changes of a job's body that make it a federated one with remote clients."""
    return {
        "name": f"remote-{method}",
        "teacher": None,
        "method": {"name": method, "federation": {**REMOTE, **federation}},
        "training": {"epochs": 2},
    }


def expected(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return what a reply of `dsfl` must be."""
    return {
        "method": "dsfl",
        "round": number,
        "classes": CLASSES,
        "kinds": ["probabilities"],
        "rows": ROWS,
        "open_set": OPEN_DIGEST,
        **changes,
    }


def reply(
    sender: str,
    number: int = 1,
    rows: Sequence[Any] = UNIFORM,
    strings: Mapping[str, str] | None = None,
) -> bytes:
    """Return a reply of `dsfl` as it is sent."""
    given = {
        "kinds": "probabilities",
        "method": "dsfl",
        "round": str(number),
        "sender": sender,
        "classes": str(CLASSES),
        "open_set": OPEN_DIGEST,
        "samples": "40",
        **(strings or {}),
    }
    return tensors.encode({"probabilities": tensors.of(rows, "F32")}, given)


@dataclass
class RemoteJob:
    """A running federated job, and the worker that holds it."""

    sessions: database.Sessions
    storage: Storage
    federation: tables.FederationRow
    lease: leases.Lease

    @property
    def id(self) -> str:
        """Return the federation's id."""
        return self.federation.id

    def invite(self, name: str) -> tuple[tables.FederationClientRow, str]:
        """Add a client, and return it with its key."""
        with self.sessions.begin() as session:
            return clients.invite(session, self.federation, name=name, environment="test")

    def joined(self, *names: str, samples: int = 40) -> list[tables.FederationClientRow]:
        """Add clients that have joined."""
        made = []
        for name in names:
            client, _ = self.invite(name)
            with self.sessions.begin() as session:
                member = clients.Member(self.federation, client)
                clients.join(session, member, samples=samples, classes=CLASSES)
            made.append(self.client(client.id))
        return made

    def plan(self) -> None:
        """Publish the plan and the open set."""
        with self.sessions.begin() as session:
            file = factories.stored(session, self.storage, OPEN_SET)
            rounds.publish_plan(session, self.lease, plan={"method": "dsfl"}, open_set=file)

    def open(self, number: int = 1) -> None:
        """Open a round."""
        task = {"expected": expected(number), "open_rows": None}
        with self.sessions.begin() as session:
            rounds.open_round(session, self.lease, number=number, task=task)

    def answer(self, client: tables.FederationClientRow, number: int = 1) -> bytes:
        """Let a client answer a round, and return what it has sent."""
        content = reply(client.id, number)
        replies.receive(
            self.sessions,
            self.storage,
            member=clients.Member(self.federation, client),
            number=number,
            chunks=[content],
            announced_bytes=None,
            announced_sha256=None,
        )
        return content

    def close(self, number: int = 1) -> bool:
        """Close a round if that is due."""
        with self.sessions.begin() as session:
            return rounds.close_if_due(session, self.lease, number=number)

    def publish(self, number: int = 1, content: bytes = b"consensus") -> bool:
        """Publish a round's consensus."""
        with self.sessions.begin() as session:
            file = factories.stored(session, self.storage, content)
            return rounds.publish(session, self.lease, number=number, file=file)

    def client(self, client_id: str) -> tables.FederationClientRow:
        """Return a client as it is now."""
        with self.sessions() as session:
            return session.get_one(tables.FederationClientRow, client_id)


def running(
    sessions: database.Sessions, storage: Storage, project_id: str, **federation: Any
) -> RemoteJob:
    """Submit a federated job, and have a worker start it."""
    with sessions.begin() as session:
        job = factories.job(session, project_id=project_id, **spec(**federation))
        lease = factories.running(session, job)
        row = session.get_one(tables.FederationRow, federations.id_of(job.id))
    return RemoteJob(sessions, storage, row, lease)

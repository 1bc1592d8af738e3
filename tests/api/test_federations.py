"""Federations over HTTP: what owners see, what clients may, and every way to send it wrong."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from retort import tensors
from tests import databases, factories, federation_scenes
from tests.federation_scenes import CLASSES, OPEN_DIGEST, OPEN_SET, UNIFORM, RemoteJob

pytestmark = databases.SQLITE_ONLY


@pytest.fixture
def remote(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> RemoteJob:
    """A federated job that waits for its clients."""
    return federation_scenes.running(sessions, storage, project.id)


@dataclass
class Party:
    """A client that talks HTTP with its key."""

    http: TestClient
    path: str
    id: str

    def reply(self, content: bytes, number: int = 1, headers: Mapping[str, str] | None = None):
        """Send a reply."""
        return self.http.put(
            f"{self.path}/rounds/{number}/reply", content=content, headers=dict(headers or {})
        )

    def message(self, number: int = 1, strings: Mapping[str, str] | None = None) -> bytes:
        """Return a good reply, but for the strings that are given."""
        given = dict(strings or {})
        sender = given.pop("sender", self.id)
        return federation_scenes.reply(sender, number, strings=given)


def party(client: TestClient, app: FastAPI, remote: RemoteJob, name: str) -> Party:
    """Invite a client over HTTP, and let it join."""
    path = f"/v1/federations/{remote.id}"
    made = client.post(f"{path}/clients", json={"name": name})
    assert made.status_code == 201, made.text
    key = made.json()["client_key"]
    http = TestClient(app, headers={"authorization": f"Bearer {key}"})
    joined = http.post(f"{path}/join", json={"samples": 40, "classes": CLASSES})
    assert joined.status_code == 200, joined.text
    return Party(http, path, made.json()["id"])


@pytest.fixture
def north(client: TestClient, app: FastAPI, remote: RemoteJob) -> Party:
    """A client that has joined."""
    return party(client, app, remote, "north")


@pytest.fixture
def asked(north: Party, remote: RemoteJob) -> Party:
    """A client in an open round."""
    remote.plan()
    remote.open()
    return north


def fault(response) -> tuple[int, str, str]:
    """Return status, code and field of a refusal."""
    body = response.json()
    return (
        response.status_code,
        body["code"],
        (body.get("errors") or [{"pointer": ""}])[0]["pointer"],
    )


class TestOwner:
    def test_sees_federation_clients_and_rounds(
        self, client: TestClient, remote: RemoteJob, asked: Party
    ):
        asked.reply(asked.message(strings={"metric.accuracy": "0.5"}))
        here = f"/v1/federations/{remote.id}"
        shown = client.get(here).json()
        assert (shown["state"], shown["round"], shown["rounds"]) == ("running", 1, 2)
        assert (shown["joined"], shown["invited"], shown["min_clients"]) == (1, 1, 2)
        (row,) = client.get(f"{here}/clients").json()["data"]
        assert (row["name"], row["state"], row["samples"]) == ("north", "answered", 40)
        assert row["metrics"] == {"accuracy": 0.5}
        assert row["bytes_up"] > 0
        assert "client_key" not in row
        (one,) = client.get(f"{here}/rounds").json()["data"]
        assert (one["number"], one["state"], one["replies"]) == (1, "open", 1)
        listed = client.get("/v1/federations", params={"job": shown["job"]}).json()["data"]
        assert listed == [shown]
        assert client.get("/v1/federations", params={"job": "job_x"}).json()["data"] == []

    def test_of_another_project_sees_nothing(self, stranger: TestClient, remote: RemoteJob):
        here = f"/v1/federations/{remote.id}"
        for path in (here, f"{here}/clients", f"{here}/rounds"):
            assert stranger.get(path).status_code == 404
        assert stranger.post(f"{here}/clients", json={"name": "spy"}).status_code == 404

    def test_needs_to_be_an_editor_to_invite(
        self, app: FastAPI, client: TestClient, remote: RemoteJob, sessions: database.Sessions
    ):
        with sessions.begin() as session:
            text = factories.key(session, project_id=remote.federation.project_id, role="viewer")
        viewer = TestClient(app, headers={"authorization": f"Bearer {text}"})
        made = viewer.post(f"/v1/federations/{remote.id}/clients", json={"name": "spy"})
        assert made.status_code == 403


class TestKey:
    def test_of_a_client_opens_nothing_else(self, north: Party, remote: RemoteJob):
        for path in ("/v1/jobs", "/v1/models", f"/v1/federations/{remote.id}", "/v1/api-keys"):
            refused = north.http.get(path)
            assert refused.status_code == 403, path
            assert "client key" in refused.json()["detail"]

    def test_is_refused_once_it_is_revoked(
        self, client: TestClient, north: Party, remote: RemoteJob
    ):
        gone = client.delete(f"/v1/federations/{remote.id}/clients/{north.id}")
        assert gone.status_code == 204
        assert fault(north.http.get(f"{north.path}/situation"))[:2] == (401, "key_revoked")

    def test_of_a_project_does_not_take_part(self, client: TestClient, remote: RemoteJob):
        refused = client.get(f"/v1/federations/{remote.id}/situation")
        assert refused.status_code == 403
        assert "ck_" in refused.json()["detail"]


class TestParty:
    def test_walks_through_a_round(self, remote: RemoteJob, north: Party):
        assert north.http.get(f"{north.path}/plan").status_code == 409
        remote.plan()
        remote.publish(0, b"start")
        remote.open()
        situation = north.http.get(f"{north.path}/situation").json()
        assert (situation["round"], situation["round_state"]) == (1, "open")
        assert (situation["published"], situation["has_answered"]) == (0, False)
        assert north.http.get(f"{north.path}/plan").json()["open_set"] == OPEN_DIGEST
        got = north.http.get(f"{north.path}/open-set")
        assert got.content == OPEN_SET
        known = {"if-none-match": got.headers["etag"]}
        assert north.http.get(f"{north.path}/open-set", headers=known).status_code == 304
        task = north.http.get(f"{north.path}/rounds/1/task").json()
        assert task["expected"]["kinds"] == ["probabilities"]
        assert north.http.get(f"{north.path}/rounds/0/consensus").content == b"start"
        assert north.reply(north.message()).status_code == 201
        assert north.http.get(f"{north.path}/situation").json()["has_answered"]
        assert north.http.get(f"{north.path}/rounds/1/consensus").status_code == 202
        remote.publish(1, b"targets")
        assert north.http.get(f"{north.path}/rounds/1/consensus").content == b"targets"
        assert remote.client(north.id).bytes_down == len(OPEN_SET) + len(b"start" + b"targets")

    def test_may_look_before_it_joins_and_leave(self, north: Party):
        looked = north.http.get(f"{north.path}/membership").json()
        assert (looked["client"], looked["method"], looked["rounds"]) == (north.id, "dsfl", 2)
        assert len(looked["classes"]) == CLASSES
        assert north.http.post(f"{north.path}/leave").status_code == 204

    def test_that_joins_with_other_classes_is_refused(self, north: Party):
        refused = north.http.post(f"{north.path}/join", json={"samples": 4, "classes": 11})
        assert fault(refused) == (422, "wrong_classes", "/classes")

    def test_is_told_that_there_is_no_such_round(self, north: Party):
        assert north.http.get(f"{north.path}/rounds/1/task").status_code == 404
        assert north.http.get(f"{north.path}/rounds/9/consensus").status_code == 404


class TestWait:
    def test_ends_when_the_consensus_is_published(self, remote: RemoteJob, asked: Party):
        later = threading.Timer(0.3, remote.publish, args=(1, b"targets"))
        later.start()
        got = asked.http.get(f"{asked.path}/rounds/1/consensus", params={"wait_seconds": 20})
        later.join()
        assert got.content == b"targets"

    def test_ends_with_any_change_of_the_situation(self, remote: RemoteJob, asked: Party):
        now = asked.http.get(f"{asked.path}/situation").json()
        started = time.monotonic()
        wait = {"after": now["revision"], "wait_seconds": 0.2}
        assert asked.http.get(f"{asked.path}/situation", params=wait).json() == now
        assert time.monotonic() - started >= 0.2
        remote.publish(1)
        wait["wait_seconds"] = 20
        then = asked.http.get(f"{asked.path}/situation", params=wait).json()
        assert then["round_state"] == "published"

    def test_ends_when_the_job_has_failed(self, remote: RemoteJob, asked: Party):
        with remote.sessions.begin() as session:
            leases.fail(
                session,
                remote.lease,
                code="too_few_clients",
                message="1 of at least 2 clients answered",
                retryable=False,
                log_tail=[],
            )
        wait = {"after": 1000, "wait_seconds": 20}
        told = asked.http.get(f"{asked.path}/situation", params=wait).json()
        assert (told["state"], told["message"]) == ("failed", "1 of at least 2 clients answered")
        assert asked.http.get(f"{asked.path}/rounds/1/consensus").status_code == 404


class TestReply:
    def test_is_the_same_however_often_it_is_sent(self, remote: RemoteJob, asked: Party):
        content = asked.message()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        first = asked.reply(content, headers={"repr-digest": f"sha-256=:{digest}:"})
        again = asked.reply(content)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json()
        remote.publish(1)
        assert asked.reply(content).status_code == 200, "also when the round is over"
        assert remote.client(asked.id).bytes_up == len(content)

    def test_with_other_bytes_is_refused_the_second_time(self, asked: Party):
        asked.reply(asked.message())
        other = asked.reply(asked.message(strings={"samples": "41"}))
        assert fault(other)[:2] == (409, "reply_differs")

    def test_that_comes_late_is_dropped_and_counted(self, remote: RemoteJob, asked: Party):
        remote.publish(1)
        late = asked.reply(asked.message())
        assert fault(late)[:2] == (409, "wrong_round")
        assert "too late" in late.json()["detail"]
        assert remote.client(asked.id).late == 1

    def test_to_a_round_that_is_not_open_is_refused(self, asked: Party):
        assert fault(asked.reply(asked.message(number=2), number=2))[:2] == (409, "wrong_round")
        assert fault(asked.reply(asked.message(number=2)))[:2] == (409, "wrong_round")

    def test_before_joining_is_refused(self, asked: Party):
        asked.http.post(f"{asked.path}/leave")
        assert fault(asked.reply(asked.message()))[:2] == (409, "not_joined")

    @pytest.mark.parametrize(
        ("row", "code"),
        [
            ([float("nan"), *[0.1] * 9], "not_finite"),
            ([-0.1, 0.3, *[0.1] * 8], "negative"),
            ([0.5, *[0.1] * 9], "not_normalised"),
        ],
    )
    def test_with_rows_that_are_no_distributions_is_refused(
        self, remote: RemoteJob, asked: Party, row: list[float], code: str
    ):
        content = federation_scenes.reply(asked.id, rows=[UNIFORM[0], row])
        assert fault(asked.reply(content)) == (422, code, "/probabilities")
        assert remote.client(asked.id).refused == 1

    @pytest.mark.parametrize(
        ("strings", "code"),
        [
            ({"open_set": "ab" * 32}, "wrong_open_set"),
            ({"classes": "11"}, "wrong_classes"),
            ({"sender": "fcl_somebody_else"}, "wrong_sender"),
            ({"method": "fd"}, "wrong_method"),
        ],
    )
    def test_of_something_else_is_refused(self, asked: Party, strings: dict[str, str], code: str):
        assert fault(asked.reply(asked.message(strings=strings))) == (
            422,
            code,
            f"/{next(iter(strings))}",
        )

    def test_with_more_than_the_method_sends_is_refused(self, asked: Party):
        given = {"probabilities": tensors.of(UNIFORM, "F32")}
        given["labels"] = tensors.of([1, 2, 3], "I32")
        content = tensors.encode(given, strings_of(asked))
        assert fault(asked.reply(content)) == (422, "unexpected_tensor", "/labels")

    def test_of_ten_gigabytes_is_refused_before_it_is_read(self, asked: Party):
        huge = asked.http.put(
            f"{asked.path}/rounds/1/reply",
            content=b"",
            headers={"content-length": str(10 * 2**30)},
        )
        assert fault(huge)[:2] == (413, "too_large")
        grows = asked.reply(bytes(2 * 2**20))
        assert fault(grows)[:2] == (413, "too_large")

    @pytest.mark.parametrize("content", [b"", b"x" * 100])
    def test_of_nothing_or_noise_is_refused(self, asked: Party, content: bytes):
        assert fault(asked.reply(content))[:2] == (422, "unreadable")

    def test_with_a_name_that_no_database_takes_is_refused(self, asked: Party):
        nul = asked.message(strings={"metric.a\0b": "0.5"})
        assert fault(asked.reply(nul)) == (422, "bad_string", "/metric.")

    def test_that_was_damaged_on_the_way_is_refused(self, asked: Party):
        digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        damaged = asked.reply(asked.message(), headers={"repr-digest": f"sha-256=:{digest}:"})
        assert fault(damaged)[:2] == (422, "digest_mismatch")


def strings_of(asked: Party) -> dict[str, str]:
    """Return the header strings of a good reply."""
    content = asked.message()
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])

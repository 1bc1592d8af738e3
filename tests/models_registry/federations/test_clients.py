"""Keys of clients: what they open, and what they do not."""

import pytest

from models_registry import errors
from models_registry.federations import clients, federations
from models_registry.federations.clients import Member
from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import databases, federation_scenes
from tests.federation_scenes import CLASSES, RemoteJob

pytestmark = databases.SQLITE_ONLY


class TestInvite:
    def test_shows_the_key_once_and_stores_its_hash(self, remote: RemoteJob) -> None:
        client, text = remote.invite("north")
        assert text.startswith(f"ck_test_{client.id.removeprefix('fcl_')}_")
        assert client.secret_sha256 not in text
        with remote.sessions() as session:
            member = clients.authenticate(session, text=text, federation_id=remote.id)
        assert member.client.id == client.id

    @pytest.mark.parametrize("name", ["", " north", "a/b", "x" * 97, "no\nway"])
    def test_refuses_names_that_cannot_be_shown(self, remote: RemoteJob, name: str) -> None:
        with pytest.raises(errors.Refused) as caught:
            remote.invite(name)
        assert caught.value.faults[0].pointer == "/name"

    def test_refuses_a_name_twice(self, remote: RemoteJob) -> None:
        remote.invite("north")
        with pytest.raises(errors.AlreadyExists, match="north"):
            remote.invite("north")

    def test_refuses_when_the_job_has_ended(self, remote: RemoteJob) -> None:
        with remote.sessions.begin() as session:
            leases.fail(session, remote.lease, code="x", message="x", retryable=False, log_tail=[])
        with pytest.raises(errors.Conflict, match="has failed"):
            remote.invite("north")


class TestAuthenticate:
    def test_refuses_other_federations_keys(
        self,
        remote: RemoteJob,
        sessions: database.Sessions,
        storage: Storage,
        project: tables.ProjectRow,
    ) -> None:
        other = federation_scenes.running(sessions, storage, project.id)
        _, text = other.invite("north")
        with sessions() as session, pytest.raises(errors.Forbidden, match=other.id):
            clients.authenticate(session, text=text, federation_id=remote.id)

    def test_refuses_revoked_unknown_and_api_keys(self, remote: RemoteJob) -> None:
        client, text = remote.invite("north")
        with remote.sessions.begin() as session:
            clients.revoke(session, remote.federation, client_id=client.id)
            clients.revoke(session, remote.federation, client_id=client.id)
        for wrong, kind, word in (
            (text, errors.Unauthenticated, "revoked"),
            (text[:-1] + "x", errors.Unauthenticated, "unknown"),
            ("ck_", errors.Unauthenticated, "unknown"),
            ("ak_test_a_b", errors.Forbidden, "client key"),
        ):
            with remote.sessions() as session, pytest.raises(kind, match=word):
                clients.authenticate(session, text=wrong, federation_id=remote.id)

    def test_revokes_no_client_of_another_federation(self, remote: RemoteJob) -> None:
        with remote.sessions.begin() as session, pytest.raises(errors.NotFound):
            clients.revoke(session, remote.federation, client_id="fcl_nobody")


class TestJoin:
    def test_may_be_repeated_and_undoes_leaving(self, remote: RemoteJob) -> None:
        (client,) = remote.joined("north")
        member = Member(remote.federation, client)
        with remote.sessions.begin() as session:
            clients.leave(session, member)
        with remote.sessions.begin() as session:
            clients.join(session, member, samples=50, classes=CLASSES)
        now = remote.client(client.id)
        assert (now.samples, now.left_at) == (50, None)
        assert now.joined_at is not None

    def test_refuses_another_number_of_classes(self, remote: RemoteJob) -> None:
        client, _ = remote.invite("north")
        with remote.sessions.begin() as session, pytest.raises(errors.Refused) as caught:
            clients.join(
                session, Member(remote.federation, client), samples=40, classes=CLASSES + 1
            )
        assert caught.value.faults[0].pointer == "/classes"
        assert "10 classes" in caught.value.message


class TestSubmission:
    def test_opens_a_federation_with_the_job(self, remote: RemoteJob) -> None:
        row = remote.federation
        assert row.id == federations.id_of(row.job_id)
        assert (row.method, row.rounds, row.min_clients) == ("dsfl", 2, 2)

    def test_opens_none_for_clients_of_one_process(self, remote: RemoteJob) -> None:
        assert federations.is_remote(federation_scenes.spec()["method"])
        assert not federations.is_remote({"name": "dsfl", "federation": {"clients": 10}})
        assert not federations.is_remote({"name": "kd"})

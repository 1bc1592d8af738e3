"""Rounds: who may move them, when they close, and what is said when nobody comes."""

from datetime import timedelta

import pytest

from models_registry import errors
from models_registry.federations import clients, federations, rounds
from models_registry.federations.clients import Member
from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.retention import blobs
from tests import factories
from tests.federation_scenes import RemoteJob


def two_rounds_of(remote: RemoteJob, *present: tables.FederationClientRow) -> None:
    """Publish a round that only these clients have answered, and let them answer the second."""
    remote.open()
    for client in present:
        remote.answer(client)
    pass_deadline(remote)
    remote.close()
    remote.publish()
    remote.open(2)
    for client in present:
        remote.answer(client, 2)


def pass_deadline(remote: RemoteJob, number: int = 1) -> None:
    """Let the time of a round be over."""
    with remote.sessions.begin() as session:
        row = session.get_one(tables.FederationRoundRow, (remote.id, number))
        row.deadline_at = database.now(session) - timedelta(seconds=1)


class TestGather:
    def test_waits_until_enough_have_joined(self, remote: RemoteJob) -> None:
        (first,) = remote.joined("north")
        with remote.sessions.begin() as session:
            assert rounds.gather(session, remote.lease) == rounds.Gathering(
                (first.id,), is_complete=False
            )
        (second,) = remote.joined("south")
        with remote.sessions.begin() as session:
            gathered = rounds.gather(session, remote.lease)
        assert gathered.is_complete
        assert gathered.clients == tuple(sorted((first.id, second.id)))

    def test_fails_with_who_has_joined_when_the_time_is_over(self, remote: RemoteJob) -> None:
        remote.joined("north")
        with remote.sessions.begin() as session:
            rounds.gather(session, remote.lease)
            row = session.get_one(tables.FederationRow, remote.id)
            row.gathering_since = database.now(session) - timedelta(days=2)
        with remote.sessions.begin() as session, pytest.raises(rounds.TooFewClientsError) as caught:
            rounds.gather(session, remote.lease)
        assert "1 of at least 2 clients joined" in caught.value.message
        assert "north" in caught.value.message

    def test_leaves_out_who_has_left_or_was_revoked(self, remote: RemoteJob) -> None:
        gone, revoked, stays = remote.joined("gone", "revoked", "stays")
        with remote.sessions.begin() as session:
            clients.leave(session, Member(remote.federation, gone))
            clients.revoke(session, remote.federation, client_id=revoked.id)
        with remote.sessions.begin() as session:
            assert rounds.gather(session, remote.lease).clients == (stays.id,)


class TestClose:
    def test_happens_when_all_have_answered(self, remote: RemoteJob) -> None:
        north, south = remote.joined("north", "south")
        remote.open()
        remote.answer(north)
        assert not remote.close()
        remote.answer(south)
        assert remote.close()
        assert remote.close(), "closing again changes nothing"

    def test_happens_at_the_deadline_with_enough_replies(self, remote: RemoteJob) -> None:
        north, south, _ = remote.joined("north", "south", "silent")
        remote.open()
        remote.answer(north)
        remote.answer(south)
        assert not remote.close()
        pass_deadline(remote)
        assert remote.close()

    def test_fails_at_the_deadline_with_too_few(self, remote: RemoteJob) -> None:
        north, _ = remote.joined("north", "silent")
        remote.open()
        remote.answer(north)
        pass_deadline(remote)
        with pytest.raises(rounds.TooFewClientsError, match="1 of at least 2 clients answered"):
            remote.close()

    def test_does_not_wait_for_a_client_that_is_away(self, remote: RemoteJob) -> None:
        """It missed the round before, and was not seen since this one is open."""
        north, south, away = remote.joined("north", "south", "away")
        two_rounds_of(remote, north, south)
        assert remote.close(2)
        assert remote.client(away.id).last_round is None

    def test_waits_for_a_client_that_has_come_back(self, remote: RemoteJob) -> None:
        north, south, back = remote.joined("north", "south", "back")
        two_rounds_of(remote, north, south)
        with remote.sessions.begin() as session:
            clients.note_seen(session, client_id=back.id)
        assert not remote.close(2)
        remote.answer(back, 2)
        assert remote.close(2)


class TestAnotherAttempt:
    def test_finds_each_round_as_it_was_left(self, remote: RemoteJob) -> None:
        north, south = remote.joined("north", "south")
        remote.publish(0, b"start")
        remote.open()
        remote.answer(north)
        with remote.sessions.begin() as session:
            job = session.get_one(tables.JobRow, remote.lease.job_id)
            factories.lost(session, job)
            lease = factories.running(session, job, worker_id="wrk_2")
        with remote.sessions.begin() as session, pytest.raises(errors.StaleFence):
            rounds.close_if_due(session, remote.lease, number=1)
        remote.lease = lease
        assert remote.publish(0, b"start")
        assert not remote.publish(0, b"other"), "what clients have is not replaced"
        remote.open()
        remote.answer(south)
        assert remote.close()
        with remote.sessions() as session:
            found = rounds.replies(session, remote.id, 1)
        assert [reply.client_id for reply in found] == sorted((north.id, south.id))

    def test_gives_clients_their_time_again(self, remote: RemoteJob) -> None:
        remote.joined("north", "south")
        remote.open()
        pass_deadline(remote)
        remote.open()
        assert not remote.close()


class TestBytes:
    def test_are_kept_while_a_resume_may_need_them_and_released_afterwards(
        self, remote: RemoteJob
    ) -> None:
        north, south = remote.joined("north", "south")
        remote.open()
        remote.answer(north)
        remote.answer(south)
        remote.publish(0, b"start")

        def sweep() -> int:
            with remote.sessions.begin() as session:
                federations.release(session)
            return blobs.sweep(remote.sessions, remote.storage, grace=timedelta(0))

        assert sweep() == 0
        with remote.sessions.begin() as session:
            leases.fail(session, remote.lease, code="x", message="x", retryable=False, log_tail=[])
        assert sweep() == 2, "the start stays for clients that come back late"

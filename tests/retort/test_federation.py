"""Members of a federation, against the real service and one that breaks off."""

import numpy as np
import pytest

from models_registry.jobs import leases
from retort import errors, federation, tensors, transport
from tests import federation_scenes
from tests.federation_scenes import CLASSES, UNIFORM, RemoteJob
from tests.retort.wire import Reply, problem, told

TABLE = np.array(UNIFORM, np.float32)


@pytest.fixture
def remote(sessions, storage, project) -> RemoteJob:
    """A federated job that waits for its clients."""
    return federation_scenes.running(sessions, storage, project.id)


@pytest.fixture
def key(retort, remote) -> str:
    """The key of a client."""
    return retort.federations.invite(remote.id, "north").client_key


@pytest.fixture
def member(service, remote, key):
    """A client with a loop of its own."""
    with federation.join(service, remote.id, key, samples=40, classes=CLASSES) as made:
        yield made


def start(remote: RemoteJob) -> None:
    """Publish what clients start from, and open the first round."""
    remote.publish(0, tensors.encode({}, {}))
    remote.open()


class TestRounds:
    def test_are_walked_through_as_the_docstring_says(self, retort, remote, member):
        remote.plan()
        start(remote)
        walk = iter(member)
        first = next(walk)
        assert (first.number, first.start, first.rows) == (1, {}, slice(None))
        assert first.submit(TABLE, metrics={"accuracy": 0.5})
        targets = tensors.encode({"targets": tensors.of(UNIFORM, "F32")}, {})
        remote.publish(1, targets)
        remote.open(2)
        second = next(walk)
        assert np.allclose(np.asarray(second.start["targets"]), 0.1)
        assert second.submit(probabilities=UNIFORM)
        remote.publish(2, targets)
        assert next(walk, None) is None
        assert member.consensus().keys() == {"targets"}
        (client,) = retort.federations.clients(remote.id)
        assert client.metrics == {}
        assert client.last_round == 2
        assert [one.replies for one in retort.federations.rounds(remote.id)] == [1, 1]

    def test_that_were_answered_before_a_restart_are_not_asked_again(
        self, service, remote, member, key
    ):
        start(remote)
        assert next(iter(member)).submit(TABLE)
        again = federation.Member(transport.Transport(service, key), remote.id)
        again.join(samples=40, classes=CLASSES)
        assert again.situation().has_answered
        remote.publish(2)
        assert again.next_round() is None
        again.close()

    def test_say_that_a_reply_is_late(self, remote, member):
        start(remote)
        late = next(iter(member))
        remote.publish(1)
        assert late.submit(TABLE) is False

    def test_say_what_is_wrong_with_a_reply(self, remote, member):
        start(remote)
        current = next(iter(member))
        with pytest.raises(errors.ProblemError, match="must sum to 1"):
            current.submit(TABLE * 2)
        with pytest.raises(errors.BadOption, match="asks for probabilities; got labels"):
            current.submit(labels=[1, 2])

    def test_end_with_the_reason_when_the_job_fails(self, remote, member):
        with remote.sessions.begin() as session:
            leases.fail(
                session,
                remote.lease,
                code="too_few_clients",
                message="nobody came",
                retryable=False,
                log_tail=[],
            )
        with pytest.raises(errors.JobFailed, match="nobody came"):
            next(iter(member))

    def test_end_with_the_reason_when_the_job_is_cancelled(self, retort, remote, member):
        retort.jobs.cancel(remote.federation.job_id)
        with remote.sessions.begin() as session:
            leases.stopped(session, remote.lease, log_tail=[])
        with pytest.raises(errors.JobFailed, match="cancelled: Somebody with a key of the project"):
            next(iter(member))


SITUATION = {"revision": 1, "state": "running", "round": 1, "round_state": "open"}


class TestPatience:
    @pytest.fixture
    def lonely(self, wire, naps):
        """A member whose server comes and goes."""
        said: list[str] = []
        http = transport.Transport(wire.url, "ck_x", attempts=1, sleep=naps.append)
        member = federation.Member(http, "fed_1", patience_seconds=60, say=said.append)
        yield member, said
        member.close()

    def test_outlasts_a_server_that_is_away(self, wire, lonely):
        member, said = lonely
        gone = [Reply(cut_after=-1), problem(503, "not_ready", retryable=True)] * 4
        wire.on("GET", "/v1/federations/fed_1/situation", *gone, told(SITUATION))
        assert member.situation().round == 1
        assert len(said) == 1

    def test_waits_as_long_as_a_refusal_for_too_many_requests_says(self, wire, lonely, naps):
        member, said = lonely
        refused = problem(429, "rate_limited", "all are used", retryable=True)
        refused.headers["retry-after"] = "45"
        wire.on("GET", "/v1/federations/fed_1/situation", refused, told(SITUATION))
        assert member.situation().round == 1
        assert naps == [45]
        assert "all are used" in said[0]

    def test_ends_where_nothing_can_help(self, wire, lonely):
        member, _ = lonely
        wire.on("GET", "/v1/federations/fed_1/situation", problem(401, "key_revoked", "revoked"))
        with pytest.raises(errors.ProblemError, match="revoked"):
            member.situation()

    def test_asks_again_for_a_consensus_that_is_not_there_yet(self, wire, lonely):
        member, _ = lonely
        path = "/v1/federations/fed_1/rounds/1/consensus"
        wire.on("GET", path, Reply(202), Reply(202), Reply(200, b"targets"))
        assert member.consensus_bytes(1) == b"targets"

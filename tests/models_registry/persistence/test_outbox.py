"""Messages leave with their transaction, in order, and a broker that is away loses none."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from models_registry.persistence import database, outbox, tables
from tests import racing

PATIENCE_SECONDS = 60
# A relay that is killed while it sends its third message.
KILLED_RELAY = """
import os, sys
from models_registry.persistence import database, outbox

def send(task, queue, payload, priority):
    if payload["number"] == 2:
        os._exit(9)

outbox.relay(database.sessions(database.connect(sys.argv[1])), send)
"""


class Broker:
    """Takes messages; refuses after `takes` of them, as one that goes away would."""

    def __init__(self, takes: float = float("inf"), *, seconds: float = 0) -> None:
        self.takes = takes
        self.seconds = seconds
        self.taken: list[tuple[str, str, dict[str, Any], int]] = []
        self._lock = threading.Lock()

    def send(self, task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
        time.sleep(self.seconds)
        with self._lock:
            if len(self.taken) >= self.takes:
                raise ConnectionError("the broker is away")
            self.taken.append((task, queue, payload, priority))

    @property
    def numbers(self) -> list[int]:
        return [payload["number"] for _, _, payload, _ in self.taken]


class HangingBroker(Broker):
    """Takes the first message, and answers only once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def send(self, task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
        super().send(task, queue, payload, priority)
        self.reached.set()
        assert self.let_go.wait(PATIENCE_SECONDS)


@contextmanager
def hanging_relay(
    sessions: database.Sessions, broker: HangingBroker, claim: timedelta = outbox.CLAIM
) -> Iterator[futures.Future[int]]:
    """Run the block while a relay waits for its first message to be taken; it may be let go."""
    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(outbox.relay, sessions, broker.send, claim=claim)
        try:
            assert broker.reached.wait(PATIENCE_SECONDS)
            yield running
        finally:
            broker.let_go.set()


def add(sessions: database.Sessions, *numbers: int, priority: int = 0) -> None:
    with sessions.begin() as session:
        for number in numbers:
            outbox.add(session, task="t", queue="q", payload={"number": number}, priority=priority)


def waiting(sessions: database.Sessions) -> int:
    row = tables.OutboxRow
    with sessions.begin() as session:
        count = sa.select(sa.func.count()).where(row.published_at.is_(None))
        return session.scalars(count).one()


def expire_claims(sessions: database.Sessions) -> int:
    """Let every claim run out, and return how many there were."""
    row = tables.OutboxRow
    with sessions.begin() as session:
        past = database.now(session) - timedelta(microseconds=1)
        claimed = sa.update(row).where(row.claim_expires_at.is_not(None))
        expired = claimed.where(row.published_at.is_(None)).values(claim_expires_at=past)
        return len(session.scalars(expired.returning(row.id)).all())


class TestAdd:
    def test_leaves_with_the_transaction_or_not_at_all(self, sessions: database.Sessions) -> None:
        with sessions() as session:
            outbox.add(session, task="t", queue="q", payload={"number": 1})
            session.flush()
            session.rollback()
        broker = Broker()
        assert outbox.relay(sessions, broker.send) == 0
        assert broker.taken == []


class TestRelay:
    def test_hands_on_everything_that_a_message_says(self, sessions: database.Sessions) -> None:
        with sessions.begin() as session:
            outbox.add(session, task="jobs.run", queue="cuda", payload={"number": 1}, priority=7)
        broker = Broker()
        assert outbox.relay(sessions, broker.send) == 1
        assert broker.taken == [("jobs.run", "cuda", {"number": 1}, 7)]

    def test_publishes_in_order_over_several_batches(self, sessions: database.Sessions) -> None:
        count = outbox.BATCH * 2 + 3
        add(sessions, *range(count))
        broker = Broker()
        assert outbox.relay(sessions, broker.send) == count
        assert broker.numbers == list(range(count))

    def test_publishes_urgent_messages_first(self, sessions: database.Sessions) -> None:
        add(sessions, 1, 2)
        add(sessions, 3, 4, priority=5)
        broker = Broker()
        outbox.relay(sessions, broker.send)
        assert broker.numbers == [3, 4, 1, 2]

    def test_publishes_nothing_twice(self, sessions: database.Sessions) -> None:
        add(sessions, 1, 2)
        broker = Broker()
        assert outbox.relay(sessions, broker.send) == 2
        assert outbox.relay(sessions, broker.send) == 0
        assert broker.numbers == [1, 2]

    def test_keeps_what_could_not_be_sent_for_later(self, sessions: database.Sessions) -> None:
        add(sessions, *range(5))
        broker = Broker(takes=2)
        with pytest.raises(ConnectionError, match="away"):
            outbox.relay(sessions, broker.send)
        assert broker.numbers == [0, 1]
        assert waiting(sessions) == 3
        broker.takes = 100
        assert outbox.relay(sessions, broker.send) == 3
        assert broker.numbers == [0, 1, 2, 3, 4]

    def test_keeps_the_message_on_which_it_was_broken_off(
        self, sessions: database.Sessions
    ) -> None:
        # A duplicate is harmless, a loss is not: the claim of the job decides.
        add(sessions, 1)
        broker = Broker()

        class Interrupted(BaseException):
            """Not an exception that anything would catch."""

        def send_and_stop(*message: Any) -> None:
            broker.send(*message)
            raise Interrupted

        with pytest.raises(Interrupted):
            outbox.relay(sessions, send_and_stop)
        assert outbox.relay(sessions, broker.send) == 1
        assert broker.numbers == [1, 1]
        assert waiting(sessions) == 0

    @pytest.mark.slow
    def test_sends_again_what_a_crash_left_once_its_claim_has_expired(
        self, sessions: database.Sessions, database_url: str
    ) -> None:
        add(sessions, *range(4))
        crashed = subprocess.run([sys.executable, "-c", KILLED_RELAY, database_url], check=False)
        assert crashed.returncode == 9
        broker = Broker()
        assert outbox.relay(sessions, broker.send) == 0
        assert waiting(sessions) == 4
        assert expire_claims(sessions) == 4
        assert outbox.relay(sessions, broker.send) == 4
        assert broker.numbers == list(range(4))
        assert waiting(sessions) == 0

    @pytest.mark.parametrize("relays", [2, 4])
    def test_by_several_at_once_publishes_each_message_once(
        self, sessions: database.Sessions, relays: int
    ) -> None:
        count = outbox.BATCH * 6
        add(sessions, *range(count))
        broker = Broker()

        def relay() -> int:
            return outbox.relay(sessions, broker.send)

        assert sum(racing.together([relay] * relays)) == count
        assert sorted(broker.numbers) == list(range(count))
        assert waiting(sessions) == 0

    def test_by_two_at_once_publishes_each_message_once(self, sessions: database.Sessions) -> None:
        # Few messages and a slow broker: each relay begins while the other is sending.
        rounds, count = 8, 10
        broker = Broker(seconds=0.001)

        def relay() -> int:
            return outbox.relay(sessions, broker.send)

        for number in range(rounds):
            add(sessions, *range(number * count, (number + 1) * count))
            assert sum(racing.together([relay] * 2)) == count
        assert sorted(broker.numbers) == list(range(rounds * count))
        assert waiting(sessions) == 0

    def test_sends_nothing_that_another_is_sending(self, sessions: database.Sessions) -> None:
        add(sessions, *range(outbox.BATCH + 2))
        slow, quick = HangingBroker(), Broker()
        with hanging_relay(sessions, slow) as running:
            assert outbox.relay(sessions, quick.send) == 2
            assert outbox.relay(sessions, quick.send) == 0
        assert running.result() == outbox.BATCH
        assert slow.numbers == list(range(outbox.BATCH))
        assert quick.numbers == [outbox.BATCH, outbox.BATCH + 1]
        assert waiting(sessions) == 0

    def test_keeps_no_new_message_waiting_for_a_slow_broker(
        self, sessions: database.Sessions
    ) -> None:
        add(sessions, 1, 2)
        slow, quick = HangingBroker(), Broker()
        with hanging_relay(sessions, slow):
            add(sessions, 3)
            assert outbox.relay(sessions, quick.send) == 1
        assert quick.numbers == [3]
        assert slow.numbers == [1, 2]

    def test_leaves_what_another_has_taken_over(self, sessions: database.Sessions) -> None:
        add(sessions, *range(4))
        late, next_one, third = HangingBroker(), HangingBroker(), Broker()
        with hanging_relay(sessions, late, timedelta(seconds=0.1)) as first:
            time.sleep(0.2)  # the claim has run out by now
            with hanging_relay(sessions, next_one) as second:
                late.let_go.set()
                # It sends no more, and does not give back what is no longer its own.
                assert first.result(PATIENCE_SECONDS) == 1
                assert outbox.relay(sessions, third.send) == 0
            assert second.result() == 4
        assert late.numbers == [0]
        assert next_one.numbers == list(range(4))
        assert third.numbers == []
        assert waiting(sessions) == 0

    def test_goes_on_with_a_new_claim_where_the_broker_is_slow(
        self, sessions: database.Sessions
    ) -> None:
        add(sessions, *range(10))
        broker = Broker(seconds=0.02)
        assert outbox.relay(sessions, broker.send, claim=timedelta(seconds=0.1)) == 10
        assert broker.numbers == list(range(10))
        assert waiting(sessions) == 0


class TestSweep:
    def test_forgets_what_was_published_long_ago_and_nothing_else(
        self, sessions: database.Sessions
    ) -> None:
        add(sessions, 1, 2)
        outbox.relay(sessions, Broker().send)
        add(sessions, 3)
        row = tables.OutboxRow
        with sessions.begin() as session:
            old = database.now(session) - outbox.KEEP_PUBLISHED - timedelta(seconds=1)
            first, _, unsent = session.scalars(sa.select(row).order_by(row.id)).all()
            first.published_at = old
            unsent.created_at = old
        with sessions.begin() as session:
            assert outbox.sweep(session) == 1
            left = session.scalars(sa.select(row).order_by(row.id)).all()
            assert [message.payload["number"] for message in left] == [2, 3]


class TestLag:
    def test_is_the_age_of_the_oldest_message_that_waits(self, sessions: database.Sessions) -> None:
        with sessions.begin() as session:
            assert outbox.lag_seconds(session) == 0
        add(sessions, 1, 2)
        with sessions.begin() as session:
            row = tables.OutboxRow
            oldest = session.scalars(sa.select(row).order_by(row.id).limit(1)).one()
            oldest.created_at = database.now(session) - timedelta(seconds=90)
            session.flush()
            assert 90 <= outbox.lag_seconds(session) < 180
        slow = HangingBroker()
        with hanging_relay(sessions, slow), sessions.begin() as session:
            assert outbox.lag_seconds(session) >= 90
        outbox.relay(sessions, Broker().send)
        with sessions.begin() as session:
            assert outbox.lag_seconds(session) == 0

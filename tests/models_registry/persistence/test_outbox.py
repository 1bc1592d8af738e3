"""Messages leave with their transaction, in order, and a broker that is away loses none."""

import threading
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from models_registry.persistence import database, outbox, tables
from tests import racing

POSTGRES_ONLY = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


class Broker:
    """Takes messages; refuses after `takes` of them, as one that goes away would."""

    def __init__(self, takes: float = float("inf")) -> None:
        self.takes = takes
        self.taken: list[tuple[str, str, dict[str, Any], int]] = []
        self._lock = threading.Lock()

    def send(self, task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
        with self._lock:
            if len(self.taken) >= self.takes:
                raise ConnectionError("the broker is away")
            self.taken.append((task, queue, payload, priority))

    @property
    def numbers(self) -> list[int]:
        return [payload["number"] for _, _, payload, _ in self.taken]


def add(sessions: database.Sessions, *numbers: int, priority: int = 0) -> None:
    with sessions.begin() as session:
        for number in numbers:
            outbox.add(session, task="t", queue="q", payload={"number": number}, priority=priority)


def waiting(sessions: database.Sessions) -> int:
    row = tables.OutboxRow
    with sessions.begin() as session:
        count = sa.select(sa.func.count()).where(row.published_at.is_(None))
        return session.scalars(count).one()


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

    def test_sends_again_what_a_crash_left_unmarked(self, sessions: database.Sessions) -> None:
        # A duplicate is harmless, a loss is not: the claim in the database decides.
        add(sessions, 1)
        broker = Broker()

        class Killed(BaseException):
            """Not an exception that anything would catch."""

        def send_and_die(*message: Any) -> None:
            broker.send(*message)
            raise Killed

        with pytest.raises(Killed):
            outbox.relay(sessions, send_and_die)
        outbox.relay(sessions, broker.send)
        assert broker.numbers == [1, 1]
        assert waiting(sessions) == 0

    @POSTGRES_ONLY
    def test_by_four_at_once_publishes_each_message_once(self, sessions: database.Sessions) -> None:
        count = outbox.BATCH * 6
        add(sessions, *range(count))
        broker = Broker()

        def relay() -> int:
            return outbox.relay(sessions, broker.send)

        # A relay may find everything locked by the others and leave; what is left is for the next.
        total = sum(racing.together([relay] * 4)) + relay()
        assert total == count
        assert sorted(broker.numbers) == list(range(count))

    def test_by_two_at_once_publishes_each_message_once(self, sessions: database.Sessions) -> None:
        add(sessions, *range(30))
        broker = Broker()

        def relay() -> int:
            return outbox.relay(sessions, broker.send)

        assert sum(racing.together([relay] * 2)) + relay() == 30
        assert sorted(broker.numbers) == list(range(30))


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
            assert 90 <= outbox.lag_seconds(session) < 100
        outbox.relay(sessions, Broker().send)
        with sessions.begin() as session:
            assert outbox.lag_seconds(session) == 0

"""A worker that cannot acknowledge a message still takes the next one, on a real Redis."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu.connection import Connection
from kombu.messaging import Consumer, Queue
from kombu.transport.redis import Transport as Stock

from models_registry.persistence import broker
from tests import services
from workers import broker_transport, celery_app

QUEUE = Queue("messages")


class Broker:
    """A Redis that can turn away whoever is not connected, and those who are."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._own = redis.Redis.from_url(url)
        self._password = str(self._own.get_connection_kwargs()["password"])

    @contextlib.contextmanager
    def turning_away(self) -> Iterator[None]:
        """Close all connections, and refuse new ones, as while Redis is started again."""
        with self._own.client() as alone:
            alone.config_set("requirepass", "another")
            alone.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            try:
                yield
            finally:
                alone.config_set("requirepass", self._password)

    def close(self) -> None:
        self._own.close()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with services.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def server(redis_url: str) -> Iterator[Broker]:
    made = Broker(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    yield made
    made.close()


def next_one(connection: Connection, received: list[Any]) -> Any:
    """Return the next message, as a worker waits for it: through lost connections."""
    for _ in range(3):
        with contextlib.suppress(*connection.connection_errors):
            connection.drain_events(timeout=2)
        if received:
            return received.pop()
    raise TimeoutError("no message came")


@pytest.mark.parametrize("answer", ["ack", "reject"])
@pytest.mark.parametrize(
    ("transport", "goes_on"), [(None, True), ("kombu.transport.redis:Transport", False)]
)
def test_goes_on_after_an_answer_that_redis_did_not_take(
    server: Broker, transport: str | None, goes_on: bool, answer: str
) -> None:
    # The stock transport is tried too: once it goes on by itself, ours can go.
    broker_transport.register()
    received: list[Any] = []
    options = dict(broker.TRANSPORT_OPTIONS)
    with Connection(server.url, transport=transport, transport_options=options) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        with Consumer(channel, QUEUE, callbacks=[lambda _body, message: received.append(message)]):
            producer = connection.Producer()
            for number in range(2):
                producer.publish({"number": number}, routing_key=QUEUE.name)
            first = next_one(connection, received)
            with server.turning_away(), pytest.raises(redis.ConnectionError):
                getattr(first, answer)()
            assert channel.qos.can_consume() is goes_on
            if goes_on:
                assert next_one(connection, received).payload == {"number": 1}


@pytest.mark.parametrize("url", ["redis://a:1/0", "rediss://a:1/0", "redis+socket:///a/b.sock"])
def test_is_what_every_url_of_redis_means_to_workers(url: str) -> None:
    with celery_app.app.connection_for_read(url) as connection:
        assert isinstance(connection.transport, broker_transport.Transport)
        assert isinstance(connection.transport, Stock)

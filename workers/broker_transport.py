"""Kombu's Redis transport, with its count of unacknowledged messages kept right when Redis fails.

A worker takes one message at a time: while one is unacknowledged it asks for no other. Kombu
takes a message off that count once Redis has answered the acknowledgement. Where Redis dies in
between, the error is logged and the count stays; the idle connection is not watched meanwhile, so
that its end goes unnoticed too, and the worker never takes a message again, although it lives and
sends heartbeats. Found by killing Redis at random; kombu 5.7.0.
"""

from kombu import transport
from kombu.transport import redis


class _QoS(redis.QoS):
    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message; whatever Redis answers, another one may be taken."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]  # no types in kombu
        except BaseException:
            # It may be delivered again, as any message: each names a row, which says whether there
            # is anything left to do, and maintenance announces what nobody has taken up.
            self._quick_ack(delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Refuse a message; whatever Redis answers, another one may be taken."""
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]  # no types in kombu
        except BaseException:
            self._quick_ack(delivery_tag)
            raise


class _Channel(redis.Channel):
    QoS = _QoS


class Transport(redis.Transport):
    """Kombu's transport with our channel."""

    Channel = _Channel


def register() -> None:
    """Have every URL of Redis mean this transport, sockets and TLS too, in this process."""
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"

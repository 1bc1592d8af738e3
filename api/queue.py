"""Publishes messages to workers without importing them: a task is a name, a message holds ids."""

import time
from dataclasses import dataclass, field
from typing import Any

import celery
import kombu.exceptions

from models_registry import errors
from models_registry.persistence import broker

SOCKET_SECONDS = 2.0
# After a failure no request tries the broker for a while, so that not each one waits for it.
PAUSE_SECONDS = 5.0


@dataclass
class CeleryQueue:
    """The broker from which the Celery workers consume."""

    broker_url: str
    _down_until: float = 0.0
    _app: celery.Celery = field(init=False)

    def __post_init__(self) -> None:
        """Prepare a producer; nothing connects yet."""
        self._app = celery.Celery("retort-api", broker=self.broker_url, set_as_current=False)
        self._app.conf.update(
            task_ignore_result=True,
            task_serializer="json",
            accept_content=["json"],
            broker_connection_timeout=SOCKET_SECONDS,
            broker_pool_acquire_timeout=SOCKET_SECONDS,
            broker_transport_options={
                **broker.TRANSPORT_OPTIONS,
                "socket_timeout": SOCKET_SECONDS,
                "socket_connect_timeout": SOCKET_SECONDS,
                "max_retries": 0,
                "retry_on_timeout": False,
            },
        )

    def send(self, task: str, queue: str, payload: dict[str, Any], priority: int) -> None:
        """Publish one message.

        Raises: errors.QueueDown, immediately while the broker is known to be down.
        """
        if time.monotonic() < self._down_until:
            raise errors.QueueDown("the broker could not be reached a moment ago")
        try:
            self._app.send_task(
                task,
                kwargs=payload,
                queue=queue,
                priority=broker.redis_priority(priority),
                retry=False,
                ignore_result=True,
            )
        except (kombu.exceptions.OperationalError, OSError) as error:
            self._down_until = time.monotonic() + PAUSE_SECONDS
            raise errors.QueueDown(f"the broker cannot be reached: {error}") from error

    def check(self) -> None:
        """Raise QueueDown unless the broker answers."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(
                    max_retries=1, interval_start=0, interval_step=0, timeout=SOCKET_SECONDS
                )
        except (kombu.exceptions.OperationalError, OSError) as error:
            raise errors.QueueDown(f"the broker cannot be reached: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._app.close()

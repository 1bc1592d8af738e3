"""The service, or any application, on a port of this machine, in a thread of the tests."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from api import http_protocol
from tests import waiting


class Served:
    """An application behind the server that the service runs behind."""

    def __init__(
        self,
        app: Any,  # an ASGI application
        *,
        drain: Callable[[], None] = lambda: None,
        protocol: type[http_protocol.LimitedProtocol] = http_protocol.LimitedProtocol,
        lifespan: Any = "on",  # a literal of uvicorn's
    ) -> None:
        config = uvicorn.Config(
            app,
            port=0,
            log_config=None,
            http=protocol,
            loop="api.server:new_event_loop",
            ws="none",
            timeout_graceful_shutdown=2,
            lifespan=lifespan,
        )
        self._drain = drain
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="server")
        self._thread.start()

        def has_started() -> bool:
            assert self._thread.is_alive(), "the application does not start"
            return self._server.started

        waiting.until(has_started, "the server has started", pause_seconds=0.01)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop serving, open streams too; again, that is nothing."""
        if not self._thread.is_alive():
            return
        self._drain()
        self._server.should_exit = True
        self._thread.join()


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[Served]:
    """Serve the service during the block."""
    running = Served(app, drain=lambda: app.state.service.hub.drain_soon())
    try:
        yield running
    finally:
        running.stop()

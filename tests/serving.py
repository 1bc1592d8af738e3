"""The service on a port of this machine, in a thread of the tests."""

import contextlib
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from tests import waiting


class Served:
    """An application behind a real server."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=2, lifespan="on"
        )
        self._app = app
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="server")
        self._thread.start()

        def has_started() -> bool:
            assert self._thread.is_alive(), "the application does not start"
            return self._server.started

        waiting.until(has_started, "the server has started", pause_seconds=0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """Stop serving, open streams too; again, that is nothing."""
        if not self._thread.is_alive():
            return
        self._app.state.service.hub.drain_soon()
        self._server.should_exit = True
        self._thread.join()


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[Served]:
    """Serve an application during the block."""
    running = Served(app)
    try:
        yield running
    finally:
        running.stop()

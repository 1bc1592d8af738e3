"""Serve the API: `python -m api.server`, with the options of uvicorn's command line.

    python -m api.server --host 0.0.0.0 --port 8765 --timeout-graceful-shutdown 10

What is not an option here is how HTTP is read (`api.http_protocol`): a server that is started in
another way has other limits, or none.
"""

import asyncio
import sys

import structlog
import uvicorn

log = structlog.get_logger()

# Web sockets are not served, and the service writes its own line for each request.
OPTIONS = (
    *("api.app:create_app", "--factory"),
    *("--http", "api.http_protocol:LimitedProtocol"),
    *("--loop", "api.server:new_event_loop"),
    *("--ws", "none", "--no-access-log"),
)


def main() -> None:
    """Run uvicorn until it is told to stop."""
    uvicorn.main([*OPTIONS, *sys.argv[1:]], prog_name="python -m api.server")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of libuv; on Windows, which it has no wheels for, asyncio's own."""
    if sys.platform == "win32":
        log.warning("slower_event_loop", reason="uvloop does not exist for Windows")
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    main()

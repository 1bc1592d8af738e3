"""Structured logs: JSON lines in production, coloured text in development.

An event is a noun and a past verb with facts as keywords: `log.info("job_moved", job_id=...)`.
The ids of a request or task are bound once, where it starts (`bind`).
"""

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any

import structlog

_OUTPUT = "retort"


def set_up(*, level: str, as_json: bool) -> None:
    """Send our own and the libraries' log lines to stderr in one form; safe to call again."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    _replace_output(_formatter(shared, as_json=as_json), level)


def bind(**facts: Any) -> AbstractContextManager[None]:
    """Add `facts` to every line that is logged inside the `with` block."""
    return structlog.contextvars.bound_contextvars(**facts)


def _formatter(
    shared: list[structlog.typing.Processor], *, as_json: bool
) -> structlog.stdlib.ProcessorFormatter:
    rendering: list[structlog.typing.Processor]
    if as_json:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        rendering = [structlog.dev.ConsoleRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )


def _replace_output(formatter: logging.Formatter, level: str) -> None:
    output = logging.StreamHandler(sys.stderr)
    output.name = _OUTPUT
    output.setFormatter(formatter)
    root = logging.getLogger()
    for old in [known for known in root.handlers if known.name == _OUTPUT]:
        root.removeHandler(old)
    root.addHandler(output)
    root.setLevel(level.upper())
    # The API logs each request itself; the server's own line would repeat it.
    logging.getLogger("uvicorn.access").disabled = True

"""Traces (OpenTelemetry) from a request over the outbox to the phases of an engine.

A trace context is a W3C `traceparent`, a string of 55 characters. It stands on the job's row and on
the message's row in the outbox, and not in the broker's message: messages may be lost and repeated.
It is stored whether or not this process exports spans, since another one may.

OpenTelemetry is imported only where `RETORT_OTLP_ENDPOINT` is set; without it, spans cost nothing.
Of its packages, only the stable API, SDK and OTLP exporter are used, and no instrumentation.
"""

import contextlib
import contextvars
import importlib.metadata
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlalchemy import event

from models_registry.settings import Settings

# Version 00, and what later versions must still begin with (W3C Trace Context, section 3.2).
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_EXPORT_SECONDS = 5.0
_DELAY_MILLIS = 1000  # a killed process loses the spans of this time
_STATEMENT_CHARACTERS = 2000

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool

_current: contextvars.ContextVar[str | None] = contextvars.ContextVar("traceparent", default=None)


def valid(text: str | None) -> str | None:
    """Return a caller's `traceparent` as version 00, or None where it is absent or malformed.

    A malformed one is ignored, as the W3C's recommendation says: the request begins a new trace.
    """
    match = _TRACEPARENT.fullmatch(text or "")
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return f"00-{match[1]}-{match[2]}-{match[3]}"


def current() -> str | None:
    """Return the trace context of the request that is being served, or None."""
    return _current.get()


def trace_id(traceparent: str) -> str:
    """Return the trace's id: 32 hexadecimal digits."""
    return traceparent.split("-")[1]


@contextlib.contextmanager
def serving(traceparent: str | None) -> Iterator[None]:
    """Make `traceparent` the current context during the block."""
    token = _current.set(traceparent)
    try:
        yield
    finally:
        _current.reset(token)


class Span(Protocol):
    """A part of a trace that has begun."""

    @property
    def traceparent(self) -> str | None:
        """Return what its children name as their parent."""

    def update(self, *, name: str | None = None, **attributes: Value | None) -> None:
        """Give it another name, and attributes; a double underscore in a key is a dot."""

    def fail(self, message: str) -> None:
        """Mark it as failed."""

    def end(self, *, at: float | None = None) -> None:
        """End it, now or `at` a time in seconds since the epoch."""


class Tracer(Protocol):
    """Begins spans, and exports those that have ended."""

    @property
    def exports(self) -> bool:
        """Return whether spans go anywhere."""

    def begin(
        self,
        name: str,
        /,
        *,
        parent: str | None,
        kind: Kind = "internal",
        links: Sequence[str | None] = (),
        at: float | None = None,
        **attributes: Value | None,
    ) -> Span:
        """Begin a span, now or `at` a time in seconds since the epoch.

        Without `parent` it begins a trace of its own. In the keys of `attributes`, a double
        underscore stands for a dot; attributes and links that are None are left out.
        """

    def close(self) -> None:
        """Export what has ended, and stop; it takes seconds where the collector does not answer."""


class _NoSpan:
    """A span where nothing is exported: it hands on the context that it was given."""

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def update(self, *, name: str | None = None, **attributes: Value | None) -> None:
        """Do nothing."""

    def fail(self, message: str) -> None:
        """Do nothing."""

    def end(self, *, at: float | None = None) -> None:
        """Do nothing."""


class _NoTracer:
    exports = False

    def begin(self, _name: str, /, *, parent: str | None, **_: object) -> Span:
        """Return a span that is exported nowhere."""
        return _NoSpan(parent)

    def close(self) -> None:
        """Do nothing."""


OFF: Tracer = _NoTracer()


def check(settings: Settings) -> None:
    """Raise ValueError where an endpoint is set and OpenTelemetry is not installed.

    For a process whose children trace: it should fail itself, and at its start.
    """
    if settings.otlp_endpoint is None:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ValueError(
            f"RETORT_OTLP_ENDPOINT is {settings.otlp_endpoint}, and OpenTelemetry is not installed "
            f"({error.name} is missing): install the extra `retort-distill[otel]`, or leave the "
            "setting empty"
        ) from error


def start(settings: Settings, *, service: str) -> Tracer:
    """Return the tracer of a process, such as `retort-api`; `OFF` without an endpoint.

    Sampling, headers and certificates are set by OpenTelemetry's own variables, such as
    `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`.

    Raises: ValueError where an endpoint is set and OpenTelemetry is not installed.
    """
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return OFF
    check(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {
            "service.name": service,
            "service.version": importlib.metadata.version("retort-distill"),
            "service.instance.id": str(uuid.uuid4()),
            "deployment.environment.name": settings.environment,
        }
    )
    # Not made the process's global provider: what libraries trace by themselves stays theirs.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_SECONDS
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MILLIS))
    return _ExportingTracer(provider)


class _ExportingTracer:
    """Spans of the OpenTelemetry SDK."""

    exports = True

    def __init__(self, provider: Any) -> None:  # Any: its package is optional
        from opentelemetry import trace

        self._provider = provider
        self._tracer = provider.get_tracer("retort")
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
            "producer": trace.SpanKind.PRODUCER,
            "consumer": trace.SpanKind.CONSUMER,
        }

    def begin(
        self,
        name: str,
        /,
        *,
        parent: str | None,
        kind: Kind = "internal",
        links: Sequence[str | None] = (),
        at: float | None = None,
        **attributes: Value | None,
    ) -> Span:
        """Begin a span of the SDK."""
        from opentelemetry import context, trace

        surrounding = context.Context()  # explicit: no thread's own context plays a part
        if parent is not None:
            span = trace.NonRecordingSpan(_span_context(parent))
            surrounding = trace.set_span_in_context(span, surrounding)
        return _ExportedSpan(
            self._tracer.start_span(
                name,
                context=surrounding,
                kind=self._kinds[kind],
                links=[trace.Link(_span_context(link)) for link in links if link is not None],
                attributes=_named(attributes),
                start_time=_nanoseconds(at),
            )
        )

    def close(self) -> None:
        """Export what has ended, and stop."""
        self._provider.shutdown()


class _ExportedSpan:
    def __init__(self, span: Any) -> None:  # Any: its package is optional
        from opentelemetry import trace

        self._span = span
        found = span.get_span_context()
        ids = f"{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}"
        self.traceparent = f"00-{ids}-{found.trace_flags:02x}"

    def update(self, *, name: str | None = None, **attributes: Value | None) -> None:
        """Give it another name, and attributes."""
        if name is not None:
            self._span.update_name(name)
        self._span.set_attributes(_named(attributes))

    def fail(self, message: str) -> None:
        """Mark it as failed."""
        from opentelemetry import trace

        self._span.set_status(trace.Status(trace.StatusCode.ERROR, message))

    def end(self, *, at: float | None = None) -> None:
        """End it."""
        self._span.end(_nanoseconds(at))


def _span_context(traceparent: str) -> Any:  # Any: its package is optional
    from opentelemetry import trace

    _, trace_hex, span_hex, flags = traceparent.split("-")
    return trace.SpanContext(
        int(trace_hex, 16),
        int(span_hex, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(flags, 16)),
    )


def _named(attributes: dict[str, Value | None]) -> dict[str, Value]:
    return {key.replace("__", "."): value for key, value in attributes.items() if value is not None}


def _nanoseconds(at: float | None) -> int | None:
    return None if at is None else round(at * 1e9)


def trace_statements(engine: sa.Engine, tracer: Tracer) -> None:
    """Give each SQL statement of a request a span; those outside of requests have none.

    The text has places for its values, and not the values.
    """
    if not tracer.exports:
        return
    system = "postgresql" if engine.dialect.name == "postgresql" else "sqlite"

    # Any: SQLAlchemy's own types of these are not public.
    @event.listens_for(engine, "before_cursor_execute")
    def begin(_c: Any, _cursor: Any, statement: str, _p: Any, context: Any, _many: bool) -> None:
        parent = current()
        if parent is None or context is None:
            return
        verb = statement.split(None, 1)[0].upper()
        context.retort_span = tracer.begin(
            verb,
            parent=parent,
            kind="client",
            db__system__name=system,
            db__operation__name=verb,
            db__query__text=statement[:_STATEMENT_CHARACTERS],
        )

    @event.listens_for(engine, "after_cursor_execute")
    def end(_c: Any, _cursor: Any, _s: str, _p: Any, context: Any, _many: bool) -> None:
        span = getattr(context, "retort_span", None)
        if span is not None:
            span.end()

    @event.listens_for(engine, "handle_error")
    def end_failed(failure: sa.engine.ExceptionContext) -> None:
        span = getattr(failure.execution_context, "retort_span", None)
        if span is not None:
            span.fail(type(failure.original_exception).__name__)
            span.end()

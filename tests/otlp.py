"""A collector of traces: a real HTTP server that decodes what an OTLP exporter sends."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests import waiting


@dataclass(frozen=True)
class Received:
    """One span; ids are hexadecimal, `parent` is empty at the root of a trace."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    links: list[str]
    attributes: dict[str, Any]
    began: int
    ended: int
    is_failed: bool


@dataclass
class Collector:
    """What has arrived so far."""

    url: str
    spans: list[Received] = field(default_factory=list)

    def wait_for(self, *names: str) -> dict[str, Received]:
        """Return the last span of each name, once all have arrived."""
        found: dict[str, Received] = {}

        def have_arrived() -> bool:
            found.update({span.name: span for span in list(self.spans)})
            return set(names) <= set(found)

        waiting.until(have_arrived, f"{names} arrive")
        return found


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on a port of its own."""

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            made.spans.extend(decoded(ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        made = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def decoded(request: ExportTraceServiceRequest) -> Iterator[Received]:
    """Yield the spans of one request."""
    for resource in request.resource_spans:
        facts = attributes_of(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Received(
                    name=span.name,
                    service=facts["service.name"],
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    links=[link.span_id.hex() for link in span.links],
                    attributes=attributes_of(span.attributes),
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    is_failed=span.status.code == span.status.STATUS_CODE_ERROR,
                )


def attributes_of(pairs: Any) -> dict[str, Any]:
    """Return attributes by key."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}

"""Traces: a span for every prediction, and in it those of its waiting, decoding, network and encoding.

They are made once the answer is known, out of its `Course`, and sent by OTLP over HTTP from a thread of their own,
where the environment names a collector by one of ENDPOINTS; without these nothing is imported.
Names are those of OpenTelemetry's semantic conventions for servers of HTTP and RPC; the project's own begin with maskx.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..settings import MODEL, TRACES_SETUP
from .answers import Answered

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
"""Of HTTP; another is `_OTHER`, so that nobody can make names without end."""
FLUSH = 5.0
"""Seconds that the last spans have to reach the collector when the server ends."""

Pairs = Iterable[tuple[str, str]]

logger = logging.getLogger("maskx.light")


class Traces:
    """Makes the spans and sends them."""

    def __init__(self, version: str) -> None:
        """`version` is the server's own. Raises ValueError: the packages are not there."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            lacking = f"{' or '.join(ENDPOINTS)} asks for traces, and {error.name} is not installed"
            raise ValueError(f"{lacking}; run {TRACES_SETUP}, or unset it") from error
        named = OTELResourceDetector().detect().attributes
        own = {"service.name": named.get("service.name", MODEL), "service.version": version}
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(cast(Any, _Sender(OTLPSpanExporter()))))
        self._tracer = self._provider.get_tracer("maskx.light", version)
        self._parent_of = TraceContextTextMapPropagator().extract
        self._trace = trace

    def request(self, scope: Any, id_: str, begin: float, answer: Answered | None) -> None:
        """A prediction over REST that came at `begin` (of time.monotonic()); no answer to who hung up."""
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        route = scope["route"].path.replace("{model}", MODEL)
        attributes = {"http.request.method": method, "http.route": route, "maskx.request_id": id_}
        attributes |= {"url.path": scope["path"], "url.scheme": scope["scheme"]}
        attributes["http.response.status_code"] = 499 if answer is None else answer.status
        headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        self._record(f"{method} {route}", headers, begin, attributes, answer)

    def call(self, method: str, metadata: Any, begin: float, code: str, answer: Answered | None) -> None:
        """The same over gRPC. `method` is SERVICE/METHOD, `code` the status's name."""
        headers = [(name, value) for name, value in metadata or () if isinstance(value, str)]
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
        if id_ := dict(headers).get("x-request-id"):
            attributes["maskx.request_id"] = id_
        self._record(method, headers, begin, attributes, answer)

    def end(self) -> None:
        """Sends what is left, for FLUSH seconds at most."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(FLUSH)

    def _record(
        self, name: str, headers: Pairs, begin: float, attributes: Any, answer: Answered | None
    ) -> None:
        now = time.monotonic()
        wall = time.time_ns() - round(
            now * 1e9
        )  # one clock for all of them, so that none reaches out of another
        course = None if answer is None else answer.course
        if course is not None:
            attributes |= {"maskx.version": course.version, "maskx.batch_size": course.batch_size}
            attributes |= {"maskx.worker_deaths": course.deaths} if course.deaths else {}
        if answer is None or answer.status != 200:
            attributes["error.type"] = "ClientGone" if answer is None else answer.kind
        start: dict[str, Any] = {"kind": self._trace.SpanKind.SERVER, "attributes": attributes}
        parent = self._parent_of(dict(headers))
        span = self._tracer.start_span(name, parent, start_time=wall + round(begin * 1e9), **start)
        # a mistake of the asker's is no failure of the server's
        if answer is not None and answer.status >= 500:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, answer.kind))
        within = self._trace.set_span_in_context(span, parent)
        for part, since, until in () if course is None else course.parts():
            inner = self._tracer.start_span(part, within, start_time=wall + round(since * 1e9))
            inner.end(wall + round(until * 1e9))
        span.end(wall + round(now * 1e9))


class _Sender(logging.Handler):
    """OTLP's exporter; its complaints of every try become one line when a collector is lost, one when it is back."""

    def __init__(self, exporter: Any) -> None:
        super().__init__(logging.WARNING)
        self._exporter = exporter
        self._lost = False
        complaints = logging.getLogger("opentelemetry")
        complaints.propagate = False
        complaints.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """A complaint."""
        if not self._lost:
            self._lost = True
            logger.warning("traces are not sent", extra={"reason": record.getMessage()})

    def export(self, spans: Any) -> Any:
        """Sends some spans."""
        result = self._exporter.export(spans)
        if self._lost and result.name == "SUCCESS":
            self._lost = False
            logger.warning("traces are sent again")
        return result

    def shutdown(self) -> None:
        """Gives up what is being sent."""
        self._exporter.shutdown()


def traces_of(environment: Mapping[str, str], version: str) -> Traces | None:
    """What the environment asks for; None where it names no collector.

    Raises ValueError: the packages are not there, or it asks for a protocol other than OTLP over HTTP.
    """
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    for name in PROTOCOLS:
        if (asked := environment.get(name, PROTOCOL)) != PROTOCOL:
            cure = "name that, and the collector's port for it (4318 as a rule)"
            raise ValueError(f"{name} is {asked[:50]!r}; traces are sent by {PROTOCOL} alone: {cure}")
    return Traces(version)

"""Spans for OpenTelemetry: one for each request, and one below it for its time at Triton.

Imported only when a setting names a collector. A thread of the SDK sends the spans; what it cannot
send in time is dropped, and no request waits for it. Attributes have the names of OpenTelemetry's
conventions where these exist; never a payload or a header.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.span import TraceFlags, TraceState

from gateway.http.request_context import LOGGED_CHARACTERS, RequestContext
from gateway.metrics import GEN_AI_OPERATIONS, PROVIDER
from gateway.upstream.trace_context import Metadata, upstream_metadata

SERVICE, GRPC_SERVICE = "tidegate", "inference.GRPCInferenceService"
CLOSE_S = 2.0  # for the spans that are not sent when the gateway ends
# It would log each member of a caller's tracestate that is none, as the caller wrote it.
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)


class Tracing:
    """Sends spans to an OTLP/HTTP collector."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """``ratio`` is the share of the requests that are traced if their callers have not decided
        that. The SDK's own environment variables (``OTEL_EXPORTER_OTLP_HEADERS``,
        ``OTEL_SERVICE_NAME``, ...) apply."""
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create(
                {"service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE)}
            ),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("tidegate.gateway")

    def begin(self, parent: Metadata | None) -> "RequestSpans":
        """The spans of a request that has just arrived, with this trace context."""
        context = trace.set_span_in_context(_remote(parent), Context()) if parent else Context()
        return RequestSpans(
            self._tracer, self._tracer.start_span("request", context, SpanKind.SERVER)
        )

    def close(self) -> None:
        """Send what is left; returns after ``CLOSE_S`` even if the collector does not respond."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_S)


class RequestSpans:
    __slots__ = ("_sent_ns", "_server", "_tracer", "_upstream")

    def __init__(self, tracer: trace.Tracer, server: Span) -> None:
        self._tracer, self._server = tracer, server
        self._upstream: Span | None = None
        self._sent_ns = 0

    @property
    def trace_id(self) -> str:
        return f"{self._server.get_span_context().trace_id:032x}"

    def sent(self, replica: str) -> None:
        """The work is sent to this replica by this task, which hands the trace context on."""
        if self._upstream is None:
            parent = trace.set_span_in_context(self._server, Context())
            self._sent_ns = time.time_ns()
            self._upstream = self._tracer.start_span("triton", parent, SpanKind.CLIENT)
        host, _, port = replica.partition("/")[0].rpartition(":")
        self._upstream.set_attributes({"server.address": host, "server.port": int(port)})
        upstream_metadata.set(_metadata(self._upstream.get_span_context()))

    def end(self, context: RequestContext, status: int) -> None:
        if self._upstream is not None:
            self._upstream.end(self._sent_ns + int(context.upstream_s * 1e9))
        server = self._server
        if not server.is_recording():
            return
        server.update_name(_name(context))
        server.set_attributes(_attributes(context, status))
        if status >= 500:
            server.set_status(StatusCode.ERROR)
        server.end()


def _remote(parent: Metadata) -> Span:
    fields = dict(parent)
    _, trace_id, span_id, flags = fields["traceparent"].split("-")
    state = TraceState.from_header([fields.get("tracestate", "")])
    return NonRecordingSpan(
        SpanContext(
            *(int(trace_id, 16), int(span_id, 16)),
            is_remote=True,
            trace_flags=TraceFlags(int(flags, 16)),
            trace_state=state,
        )
    )


def _metadata(span: SpanContext) -> Metadata:
    parent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    state = span.trace_state.to_header()
    return (("traceparent", parent), *((("tracestate", state),) if state else ()))


def _name(context: RequestContext) -> str:
    if context.api == "grpc":
        return f"{GRPC_SERVICE}/{context.route}"
    return f"{context.scope['method']} {context.route}".strip()


def _attributes(context: RequestContext, status: int) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "tidegate.request_id": context.request_id,
        "tidegate.tenant": context.tenant,
        "tidegate.model": context.model[:LOGGED_CHARACTERS],
        "tidegate.pipeline": context.pipeline,
        "tidegate.version": context.version,
    }
    if context.api == "grpc":
        attributes |= {"rpc.system": "grpc", "rpc.service": GRPC_SERVICE}
        attributes |= {"rpc.method": context.route, "tidegate.status": status}
    else:
        attributes |= {"http.request.method": context.scope["method"]}
        attributes |= {"http.route": context.route, "http.response.status_code": status}
    if status >= 500:
        attributes["error.type"] = str(status)
    operation = GEN_AI_OPERATIONS.get(context.route)
    if operation:
        attributes |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": context.model[:LOGGED_CHARACTERS],
        }
    if context.tokens:
        attributes |= {
            "gen_ai.usage.input_tokens": context.tokens.input_tokens,
            "gen_ai.usage.output_tokens": context.tokens.output_tokens,
        }
    return {name: value for name, value in attributes.items() if value not in (None, "")}

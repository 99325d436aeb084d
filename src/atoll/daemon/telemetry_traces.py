"""Traces by OpenTelemetry: a span an operation, and in it one a phase. Imported only where they are configured."""

from __future__ import annotations

import atoll
from atoll import errors
from atoll.config import TelemetrySection
from atoll.engine.phases import Story
from atoll.tracing import Parent

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ImportError as error:
    raise errors.FailedPrecondition(
        f"[telemetry] endpoint is set and OpenTelemetry is not installed ({error}); "
        "`pip install 'atoll[telemetry]'`, or take the endpoint out"
    ) from error

TRACES = "/v1/traces"
EXPORT_TIMEOUT_S = 5
MAX_QUEUED = 4096
"""Spans that wait for a collector; what is more is dropped, and the daemon is not slowed."""
MAX_TEXT = 1024


class Traces:
    """Sends the spans of operations from its making on, in a thread of OpenTelemetry's."""

    def __init__(self, section: TelemetrySection, instance: str) -> None:
        about = {"service.name": section.service_name, "service.version": atoll.__version__}
        about["service.instance.id"] = instance
        self._provider = TracerProvider(
            resource=Resource.create(about),
            sampler=ParentBased(TraceIdRatioBased(section.sample_ratio)),
            span_limits=SpanLimits(max_attribute_length=MAX_TEXT),
            shutdown_on_exit=False,
        )
        base = section.endpoint.rstrip("/")
        exporter = OTLPSpanExporter(endpoint=base if base.endswith(TRACES) else base + TRACES, timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED))
        self._tracer = self._provider.get_tracer("atoll", atoll.__version__)

    def write(self, story: Story) -> None:
        """An operation that has ended, with its phases."""
        is_pod = story.subject == story.pod_id
        attributes = {"atoll.operation": story.operation, "atoll.outcome": story.outcome}
        if story.pod_id:
            attributes["atoll.pod.id"] = story.pod_id
            attributes |= {} if is_pod else {"container.id": story.subject}
        else:
            attributes["container.image.name"] = story.subject
        of = "" if not story.pod_id else " pod" if is_pod else " container"
        span = self._tracer.start_span(
            f"{story.operation}{of}",
            context=_context(story.parent),
            kind=SpanKind.SERVER if story.parent is not None else SpanKind.INTERNAL,
            attributes=attributes,
            start_time=story.started_at_ns,
        )
        if story.error:
            span.set_status(Status(StatusCode.ERROR, story.error[:MAX_TEXT]))
        inside = trace.set_span_in_context(span, Context())
        for phase in story.phases:
            child = self._tracer.start_span(phase.name, context=inside, start_time=phase.started_at_ns)
            if phase.waits_on:
                child.set_attribute("atoll.waits_on", phase.waits_on)
            if phase.error:
                child.set_status(Status(StatusCode.ERROR, phase.error[:MAX_TEXT]))
            child.end(phase.started_at_ns + max(phase.duration_ns, 0))
        span.end(story.started_at_ns + story.duration_ns)

    def close(self) -> None:
        """Send what waits, and end; blocks for `EXPORT_TIMEOUT_S` at most or so."""
        self._provider.shutdown()


def _context(parent: Parent | None) -> Context:
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.is_sampled else TraceFlags.DEFAULT)
    caller = SpanContext(trace_id=parent.trace_id, span_id=parent.span_id, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(caller), Context())

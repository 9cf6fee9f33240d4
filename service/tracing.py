"""Traces by OpenTelemetry, where they are asked for and the extra `otel` is installed.

FastAPI makes the span of a request, with the incoming trace context as its parent and the
attributes of the HTTP semantic conventions. Here is where spans go, and what we add to them.
Nothing of the SDK is imported before the first `Tracing` is made.
"""

import os
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

CLOSING_S = 2
"""How long the last spans may take to be sent when the service ends. A collector that is not
there would hold it up for half a minute."""


class Tracing:
    """Where the spans of an app go.

    Args:
        endpoint: Base address of a collector that speaks OTLP over HTTP.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._span = trace.get_current_span
        about = {"service.version": version("pushforward")}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about["service.name"] = "pushforward"
        self.provider: TracerProvider = TracerProvider(
            resource=Resource.create(about), shutdown_on_exit=False
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter(endpoint)))

    @property
    def trace_id(self) -> str:
        """Return the id of the trace that the request is part of."""
        return format(self._span().get_span_context().trace_id, "032x")

    def describe(self, attributes: Mapping[str, str | int | float]) -> None:
        """Say more about the request, in its span."""
        self._span().set_attributes(
            {f"pushforward.{name}": value for name, value in attributes.items()}
        )

    def close(self) -> None:
        """Send what was not sent yet, as far as the collector is there. Blocks."""
        closing = threading.Thread(target=self.provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSING_S)


def exporter(endpoint: str) -> "SpanExporter":
    """Return what sends spans to a collector. OTEL_EXPORTER_OTLP_HEADERS and the like hold."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")

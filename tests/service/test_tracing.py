"""Spans: one for each request, in the trace that it came with, and none unless asked for."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError

from service import __main__ as command
from service import settings as module
from service import tracing
from service.settings import Settings
from tests.service.conftest import Client, MakeClient
from tests.structure.sources import ROOT

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
ENDPOINT = "http://127.0.0.1:4318"


class Sent(InMemorySpanExporter):
    """Where spans are sent to, and the addresses that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoints: list[str] = []


@pytest.fixture(scope="module")
def exporter() -> Iterator[Sent]:
    sent = Sent()

    def make(endpoint: str) -> Sent:
        sent.endpoints.append(endpoint)
        return sent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "exporter", make)
        yield sent


@pytest.fixture(scope="module")
def traced(make_client: MakeClient, exporter: Sent) -> Client:
    client = make_client(otlp_endpoint=ENDPOINT)
    assert exporter.endpoints[-1] == ENDPOINT
    return client


def spans(client: Client, exporter: Sent) -> Sequence[ReadableSpan]:
    """Return the spans since the last look."""
    client.app.state.tracing.provider.force_flush()
    found = exporter.get_finished_spans()
    exporter.clear()
    return found


def test_request_is_a_span_in_the_trace_that_it_came_with(traced: Client, exporter: Sent) -> None:
    spans(traced, exporter)
    path = "/sample?model=ppca&n=3&seed=9"
    traced.get(path, headers={"traceparent": PARENT, "X-Request-Id": "mine"})
    (span,) = spans(traced, exporter)
    assert (span.name, span.kind) == ("GET /sample", SpanKind.SERVER)
    assert span.context is not None
    assert format(span.context.trace_id, "032x") == TRACE
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == "00f067aa0ba902b7"
    said = dict(span.attributes or {})
    assert said["http.request.method"] == "GET"
    assert said["http.route"] == "/sample"
    assert said["http.response.status_code"] == 200
    assert said["url.path"] == "/sample"
    ours = {name: value for name, value in said.items() if name.startswith("pushforward.")}
    assert all(isinstance(ours.pop(f"pushforward.{what}_ms"), float) for what in ("wait", "run"))
    assert ours == {
        "pushforward.model": "ppca", "pushforward.version": 1, "pushforward.seed": 9,
        "pushforward.start": 0, "pushforward.rows": 3, "pushforward.request_id": "mine",
    }  # fmt: skip


def test_request_without_a_trace_begins_one_that_stands_in_the_log(
    make_client: MakeClient, exporter: Sent, capfd: pytest.CaptureFixture[str]
) -> None:
    traced = make_client(otlp_endpoint=ENDPOINT, access_log="json")
    traced.get("/models")
    (span,) = spans(traced, exporter)
    assert span.parent is None
    assert span.context is not None
    traced.get("/livez")  # so that the event loop has turned since
    assert f'"trace_id":"{span.context.trace_id:032x}"' in capfd.readouterr().out


def test_refusal_says_its_code_and_is_no_error_of_ours(traced: Client, exporter: Sent) -> None:
    spans(traced, exporter)
    traced.get("/sample?model=none")
    (span,) = spans(traced, exporter)
    assert (span.attributes or {})["pushforward.outcome"] == "model_not_found"
    assert span.status.status_code is StatusCode.UNSET


def test_stream_is_one_span_until_its_end(traced: Client, exporter: Sent) -> None:
    spans(traced, exporter)
    traced.get("/sample?model=ppca&n=500", headers={"Accept": "application/x-ndjson"})
    (span,) = spans(traced, exporter)
    assert (span.attributes or {})["pushforward.rows"] == 500


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/v2/health/live"])
def test_probes_are_not_traced(traced: Client, exporter: Sent, path: str) -> None:
    spans(traced, exporter)
    traced.get(path)
    assert list(spans(traced, exporter)) == []


def test_service_that_is_not_traced_makes_no_span(
    client: Client, traced: Client, exporter: Sent
) -> None:
    spans(traced, exporter)
    client.get("/models", headers={"traceparent": PARENT})
    assert list(spans(traced, exporter)) == []


def test_collector_that_is_not_there_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    awake = threading.Event()

    class Asleep(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            awake.wait(10)
            return super().export(spans)

    monkeypatch.setattr(tracing, "exporter", lambda endpoint: Asleep())
    monkeypatch.setattr(tracing, "CLOSING_S", 0.05)
    ending = tracing.Tracing(ENDPOINT)
    ending.provider.get_tracer("test").start_span("one").end()
    ending.close()  # or the test takes ten seconds
    awake.set()


@pytest.mark.parametrize("name", ["PUSHFORWARD_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_endpoint_is_ours_or_the_standard_one(
    models: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, ENDPOINT)
    assert Settings(models=models).otlp_endpoint == ENDPOINT


@pytest.mark.parametrize("name", ["PUSHFORWARD_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_endpoint_without_the_extra_is_refused(
    models: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert Settings(models=models).otlp_endpoint is None
    monkeypatch.setenv(name, ENDPOINT)
    with pytest.raises(ValidationError, match="extra `otel`"):
        Settings(models=models)


@pytest.mark.parametrize("name", ["PUSHFORWARD_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_endpoint_that_is_no_address_is_a_sentence_and_status_2(
    models: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUSHFORWARD_MODELS", str(models))
    monkeypatch.setenv(name, "collector:4317")
    assert command.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("PUSHFORWARD_OTLP_ENDPOINT: expected http://HOST:PORT")
    assert error.endswith("got 'collector:4317'.\n")


def test_nothing_of_the_sdk_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys; from service.app import create_app; from service.settings import Settings; "
        "create_app(Settings(device='cpu', threads=1)); "
        "print([name for name in sys.modules if name.startswith('opentelemetry.') "
        "and name.split('.')[1] in ('sdk', 'exporter', 'proto')])"
    )
    environment = {name: value for name, value in os.environ.items() if "OTLP" not in name}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == "[]"

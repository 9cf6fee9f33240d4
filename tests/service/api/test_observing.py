"""The outermost layer: ids, the access log, trace context, and what became of each request."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.observing import Observing, note, sent, trace_of
from service.logs import REQUEST_ID, AccessLog
from service.metrics import Metrics
from tests.service.conftest import Client, MakeClient

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"end"}
GONE: Message = {"type": "http.disconnect"}
REQUEST: Message = {"type": "http.request", "body": b"", "more_body": False}

Capture = pytest.CaptureFixture[str]


def entries(client: Client, capture: Capture) -> list[dict[str, Any]]:
    """Return the lines of the access log since the last look."""
    client.get("/livez")  # so that the event loop has turned since
    lines = capture.readouterr().out.splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"time"')]


@pytest.fixture(scope="module")
def logged(make_client: MakeClient) -> Client:
    """A client of a service that keeps an access log."""
    return make_client(access_log="json")


@pytest.mark.parametrize(
    "path", ["/sample?model=affine", "/models", "/nothing", "/v2/nothing", "/livez", "/web/api.js"]
)
def test_every_answer_has_an_id_of_its_own(client: Client, path: str) -> None:
    first, second = client.get(path), client.get(path)
    ids = {answer.headers["x-request-id"] for answer in (first, second)}
    assert len(ids) == 2
    assert all(len(each) == 32 for each in ids)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128))
def test_id_that_is_sane_is_kept(request_id: str) -> None:
    assert answer_headers(request_id.encode())["x-request-id"] == request_id


@pytest.mark.parametrize(
    "request_id", [b"", b"a b", b"a\tb", b"a" * 129, "é".encode(), b"\x7f", b"a\x00", b"a\n"]
)
def test_id_that_is_not_sane_is_replaced(request_id: bytes) -> None:
    made = answer_headers(request_id)["x-request-id"]
    assert made != request_id.decode("latin-1")
    assert len(made) == 32


def test_id_is_known_to_whatever_works_for_the_request() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(REQUEST_ID.get())
        seen.append(await asyncio.to_thread(REQUEST_ID.get))
        await answer(send)

    exchange(app, headers=[(b"x-request-id", b"mine")])
    assert seen == ["mine", "mine"]


# --- trace context ---


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (PARENT, TRACE),
        (PARENT[:-2] + "00", TRACE),
        (f"01{PARENT[2:]}", TRACE),
        (f"cc{PARENT[2:]}-what-the-future-says", TRACE),
        (f"{PARENT}-more", ""),
        (f"ff{PARENT[2:]}", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (PARENT.upper(), ""),
        (PARENT[:-1], ""),
        (f" {PARENT}", ""),
        (f"cc{PARENT[2:]}.what", ""),
        ("", ""),
    ],
)
def test_traceparent_is_read_as_the_standard_says(header: str, trace_id: str) -> None:
    assert trace_of(header.encode()) == trace_id


def test_traceparent_comes_back_and_its_trace_stands_in_the_log(
    logged: Client, capfd: Capture
) -> None:
    answer = logged.get("/models", headers={"traceparent": PARENT})
    assert answer.headers["traceparent"] == PARENT
    assert entries(logged, capfd)[0]["trace_id"] == TRACE


def test_traceparent_that_is_none_does_not_come_back(logged: Client, capfd: Capture) -> None:
    answer = logged.get("/models", headers={"traceparent": PARENT.upper()})
    assert "traceparent" not in answer.headers
    assert "trace_id" not in entries(logged, capfd)[0]


# --- the access log ---


def test_line_says_what_was_asked_and_what_came(logged: Client, capfd: Capture) -> None:
    before = datetime.now(UTC)
    answer = logged.get("/sample?model=ppca&n=3&seed=9&start=2", headers={"X-Request-Id": "mine"})
    (entry,) = entries(logged, capfd)
    assert before <= datetime.fromisoformat(entry.pop("time")) <= before + timedelta(minutes=1)
    assert entry.pop("duration_ms") > entry.pop("wait_ms") + entry.pop("run_ms") > 0
    assert entry == {
        "level": "info", "logger": "access", "method": "GET", "path": "/sample",
        "route": "/sample", "query": "model=ppca&n=3&seed=9&start=2", "status": 200,
        "outcome": "ok", "bytes": len(answer.content), "request_id": "mine",
        "client": "127.0.0.1", "model": "ppca", "version": 1, "seed": 9, "start": 2, "rows": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "rows"),
    [
        ("/sample", {"n": 4}, 4),
        ("/decode", {"z": [[0.0, 0.0]] * 5}, 5),
        ("/encode", {"x": [[0.0, 0.0, 0.0]] * 2}, 2),
        ("/log-density", {"x": [[0.0, 0.0, 0.0]] * 3}, 3),
        ("/elbo", {"x": [[0.0, 0.0, 0.0]]}, 1),
    ],
)
def test_line_says_how_many_rows_it_was_about(
    logged: Client, capfd: Capture, path: str, body: dict[str, Any], rows: int
) -> None:
    assert logged.post(path, json={"model": "ppca", **body}).status_code == 200
    (entry,) = entries(logged, capfd)
    assert (entry["model"], entry["rows"]) == ("ppca", rows)


def test_line_of_a_refusal_has_its_code(logged: Client, capfd: Capture) -> None:
    logged.get("/sample?model=affine&n=0")
    logged.get("/v2/models/none")
    first, second = entries(logged, capfd)
    assert (first["status"], first["outcome"], first["level"]) == (422, "input_invalid", "info")
    assert (second["status"], second["outcome"]) == (404, "model_not_found")


def test_line_of_a_stream_says_how_many_rows_were_sent(logged: Client, capfd: Capture) -> None:
    logged.get("/sample?model=affine&n=700", headers={"Accept": "application/x-ndjson"})
    (entry,) = entries(logged, capfd)
    assert (entry["rows"], entry["rows_sent"], entry["outcome"]) == (700, 700, "ok")


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"]
)
def test_probes_are_counted_and_not_logged(logged: Client, capfd: Capture, path: str) -> None:
    metrics: Metrics = logged.app.state.metrics
    labels = {"route": path, "method": "GET", "status": "200", "outcome": "ok"}
    name = "pushforward_requests_total"
    before = metrics.registry.get_sample_value(name, labels) or 0
    logged.get(path)
    assert metrics.registry.get_sample_value(name, labels) == before + 1
    assert entries(logged, capfd) == []


def test_log_can_be_turned_off(make_client: MakeClient, capfd: Capture) -> None:
    client = make_client(access_log="off")
    assert "x-request-id" in client.get("/models").headers
    assert entries(client, capfd) == []


def test_long_query_is_cut(logged: Client, capfd: Capture) -> None:
    logged.get(f"/models?{'a' * 5000}")
    assert entries(logged, capfd)[0]["query"] == "a" * 1000


def test_line_that_cannot_be_written_fails_no_request() -> None:
    metrics = Metrics()
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(metrics.log_lines_lost.inc, writer)
    try:
        messages = exchange(answering, metrics=metrics, log=log)
    finally:
        os.close(writer)
    assert messages[-1] == END
    assert metrics.registry.get_sample_value("pushforward_access_log_lines_lost_total") == 1


def test_lines_of_one_turn_of_the_loop_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(descriptor: int, data: memoryview) -> int:
        written.append(bytes(data[:100]))  # as if no more had found room
        return len(written[-1])

    log = AccessLog(lambda lines: None)

    async def talk() -> None:
        for number in range(9):
            log.write({"number": number, "filler": "x" * 20})
        assert written == []
        await asyncio.sleep(0)
        log.write({"number": 9})
        await asyncio.sleep(0)

    monkeypatch.setattr(os, "write", write)
    asyncio.run(talk())
    lines = b"".join(written).splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(10))
    assert len(written) < 9


def test_full_pipe_that_does_not_block_loses_the_line() -> None:
    metrics = Metrics()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    log = AccessLog(metrics.log_lines_lost.inc, writer)

    async def write() -> None:
        for _ in range(1000):
            log.write({"filler": "x" * 1000})
            await asyncio.sleep(0)

    try:
        asyncio.run(write())
        kept = os.read(reader, 2**20).count(b"\n")
    finally:
        os.close(reader)
        os.close(writer)
    lost = metrics.registry.get_sample_value("pushforward_access_log_lines_lost_total")
    assert lost == 1000 - kept
    assert 0 < lost < 1000


# --- what became of it ---


async def answer(send: Send) -> None:
    await send(START)
    await send(END)


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send)


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


async def leaving_early(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answering_one_who_left(scope: Scope, receive: Receive, send: Send) -> None:
    await leaving_early(scope, receive, send)
    await send({**START, "status": 400})
    await send(END)


async def streaming_to_one_who_leaves(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send({**END, "more_body": True})
    sent(10)
    await leaving_early(scope, receive, send)


async def cutting_a_stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send({**END, "more_body": True})
    sent(10)
    note(outcome="draining")


async def stopping_short(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)


async def watching_after_the_end(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send)
    await leaving_early(scope, receive, send)


def exchange(
    app: ASGIApp,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    metrics: Metrics | None = None,
    log: AccessLog | None = None,
    client: tuple[str, int] | None = None,
) -> list[Message]:
    """Return what was sent to a client that asks once and leaves."""
    received = iter([REQUEST, GONE])
    messages: list[Message] = []

    async def receive() -> Message:
        return next(received)

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/", "query_string": b"", "client": client,
        "headers": headers or [],
    }  # fmt: skip
    layer = Observing(app, metrics=metrics or Metrics(), log=log, tracing=None)
    asyncio.run(layer(scope, receive, send))
    return messages


def answer_headers(request_id: bytes) -> Mapping[str, str]:
    start = exchange(answering, headers=[(b"x-request-id", request_id)])[0]
    return {name.decode(): value.decode("latin-1") for name, value in start["headers"]}


@pytest.mark.parametrize(
    ("app", "status", "outcome"),
    [
        (answering, "200", "ok"),
        (watching_after_the_end, "200", "ok"),
        (leaving_early, "499", "client_gone"),
        (answering_one_who_left, "499", "client_gone"),
        (streaming_to_one_who_leaves, "200", "client_gone"),
        (cutting_a_stream, "200", "draining"),
        (stopping_short, "200", "cut"),
        (failing, "500", "internal"),
    ],
)
def test_outcome_is_what_the_client_saw(app: ASGIApp, status: str, outcome: str) -> None:
    metrics = Metrics()
    try:
        exchange(app, metrics=metrics)
    except ZeroDivisionError:
        assert app is failing
    labels = {"route": "unmatched", "method": "GET", "status": status, "outcome": outcome}
    assert metrics.registry.get_sample_value("pushforward_requests_total", labels) == 1
    assert metrics.registry.get_sample_value("pushforward_requests_in_progress") == 0


def test_requests_under_way_are_counted() -> None:
    metrics = Metrics()
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(metrics.registry.get_sample_value("pushforward_requests_in_progress"))
        await answer(send)

    exchange(app, metrics=metrics)
    assert seen == [1]


def test_what_is_no_request_passes_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing() -> AsyncIterator[Message]:
        yield {}

    metrics = Metrics()
    layer = Observing(app, metrics=metrics, log=None, tracing=None)
    asyncio.run(layer({"type": "lifespan"}, nothing().__anext__, answering))  # type: ignore[arg-type]
    assert seen == [{"type": "lifespan"}]
    assert "pushforward_requests_total{" not in metrics.exposition("")[0].decode()


def test_bug_is_answered_with_an_id_and_logged_with_it(
    make_client: MakeClient, capfd: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(access_log="json")

    @client.app.get("/bug")
    async def bug() -> None:
        logging.getLogger("test").warning("here is the id: %s", REQUEST_ID.get())
        raise ZeroDivisionError

    answer = client.get("/bug", headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["x-request-id"] == "mine"
    (entry,) = (each for each in entries(client, capfd) if each["path"] == "/bug")
    assert (entry["status"], entry["outcome"], entry["level"]) == (500, "internal", "error")
    assert "here is the id: mine" in caplog.messages

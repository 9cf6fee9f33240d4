"""Every request is given an id, counted, and told of in the access log, when it is over.

Plain ASGI and the outermost layer, so that it sees what was really sent, and sends nothing of
its own but two headers. What it cannot see from outside, handlers tell it by `note` and `sent`.
"""

import re
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from random import getrandbits
from typing import Any

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.lanes import CALLER, SPENT, Spent
from service.logs import REQUEST_ID, AccessLog
from service.metrics import Metrics
from service.tracing import Tracing

PROBES = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Asked for every few seconds: neither logged nor traced."""
UNMATCHED = "unmatched"
"""The route of an address where nothing is."""
OK = "ok"
CLIENT_GONE = "client_gone"
CUT = "cut"
INTERNAL = "internal"
CLIENT_CLOSED_REQUEST = 499
"""The status that is counted and logged where nobody was there to be answered. It is nginx's."""
MAX_QUERY = 1000
"""Bytes of a query that are logged."""

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
_IDENTITY = {
    b"pushforward-model": "model",
    b"pushforward-version": "version",
    b"pushforward-seed": "seed",
    b"pushforward-start": "start",
}
"""What an answer says of itself in its headers, by its name in the log."""


class Exchange:
    """One request and its answer, as far as they are known yet. Its methods are ASGI's.

    Args:
        scope: Of the request.
        receive: The server's.
        send: The server's.
        tracing: Who is told what the answer is, if spans are made.
    """

    __slots__ = (
        "_receive",
        "_send",
        "_tracing",
        "began",
        "identity",
        "is_complete",
        "is_gone",
        "outcome",
        "request_id",
        "rows",
        "rows_sent",
        "scope",
        "sent_bytes",
        "spent",
        "status",
        "trace_id",
        "traceparent",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, tracing: Tracing | None
    ) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._tracing = tracing
        self.began = time.perf_counter()
        self.request_id = b""
        self.traceparent = b""
        self.trace_id = ""
        self.status = 0
        self.outcome = ""
        """What a handler said; see `result` for what is to be believed."""
        self.identity: dict[str, str | int] = {}
        self.rows: int | None = None
        self.rows_sent: int | None = None
        self.spent = Spent()
        self.sent_bytes = 0
        self.is_complete = False
        self.is_gone = False
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _ID.fullmatch(value):
                self.request_id = value
            elif name == b"traceparent" and (trace_id := trace_of(value)):
                self.traceparent, self.trace_id = value, trace_id
        if not self.request_id:
            self.request_id = b"%032x" % getrandbits(128)  # unique, and no secret

    async def receive(self) -> Message:
        """Return what the server received, after a look at it."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.is_complete:
            self.is_gone = True
        return message

    async def send(self, message: Message) -> None:
        """Send what the app answers, after a look at it. The headers are added to."""
        if self.is_gone:  # whatever it is, nobody reads it
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            self._begin(message)
        await self._send(message)
        if message["type"] == "http.response.body":
            if self.scope["method"] != "HEAD":  # what is given there, the server does not send
                self.sent_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.is_complete = True

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        for name, value in message.get("headers", ()):
            if name in _IDENTITY:
                text = value.decode("latin-1")
                self.identity[_IDENTITY[name]] = int(text) if text.isdecimal() else text
        if self._tracing:
            self._describe(self._tracing)
        headers = [*message.get("headers", ()), (b"x-request-id", self.request_id)]
        if self.traceparent:
            headers.append((b"traceparent", self.traceparent))
        message["headers"] = headers

    def _describe(self, tracing: Tracing) -> None:
        """Say in the span what it is about. It ends with the last byte, so later is too late."""
        self.trace_id = tracing.trace_id
        attributes: dict[str, str | int | float] = {
            **self.identity,
            "request_id": self.request_id.decode(),
        }
        if self.rows is not None:
            attributes["rows"] = self.rows
        if self.outcome:
            attributes["outcome"] = self.outcome
        attributes |= self.durations_ms()
        tracing.describe(attributes)

    def durations_ms(self) -> dict[str, float]:
        """Return what its jobs waited for a device, and what the runs took that they were in."""
        if not self.spent.jobs:
            return {}
        waited, ran = self.spent.wait_s * 1000, self.spent.run_s * 1000
        return {"wait_ms": round(waited, 3), "run_ms": round(ran, 3)}

    def result(self) -> tuple[int, str]:
        """Return the status and the outcome of a request that is over."""
        if self.is_gone:
            return self.status or CLIENT_CLOSED_REQUEST, CLIENT_GONE
        if not self.status:
            return 500, INTERNAL
        if not self.is_complete:
            return self.status, self.outcome or CUT
        return self.status, self.outcome or OK

    @property
    def route(self) -> str:
        """The template of the address, or UNMATCHED."""
        path: str | None = getattr(self.scope.get("route"), "path", None)
        if path is None and "app_root_path" in self.scope:  # in a folder of files
            path = f"{self.scope['root_path']}/{{file}}"
        elif path is None and "endpoint" in self.scope:  # a page of FastAPI's own
            path = self.scope["path"]
        return path or UNMATCHED


_CURRENT: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def note(*, rows: int | None = None, outcome: str | None = None) -> None:
    """Tell what cannot be seen from outside of the request that is being worked on.

    Args:
        rows: How many it is about.
        outcome: Code of the problem that it is answered with.
    """
    exchange = _CURRENT.get()
    if exchange is None:
        return
    if rows is not None:
        exchange.rows = rows
    if outcome is not None:
        exchange.outcome = outcome


def sent(rows: int) -> None:
    """Tell that the answer is a stream, and that so many more rows of it were sent."""
    exchange = _CURRENT.get()
    if exchange is not None:
        exchange.rows_sent = (exchange.rows_sent or 0) + rows


def trace_of(traceparent: bytes) -> str:
    """Return the trace id of a traceparent header, "" if it is none.

    Source:
        W3C Trace Context, section 3.2: ids that are all zero are none, and nor is version ff; a
        version after 00 may be followed by more.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found or (found[1] == b"00" and found[3]):
        return ""
    return found[2].decode()


class Observing:
    """The outermost layer of the app.

    Args:
        app: All others.
        metrics: Where requests are counted.
        log: Where they are told of, or None.
        tracing: Where their spans go, or None.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, log: AccessLog | None, tracing: Tracing | None
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._log = log
        self._tracing = tracing
        self._under_way = 0
        metrics.in_progress.set_function(lambda: self._under_way)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and note what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, tracing=self._tracing)
        # Not reset: a request has a task of its own, and what the server logs of it comes later.
        _CURRENT.set(exchange)
        SPENT.set(exchange.spent)
        CALLER.set(_connection(scope) or exchange)
        REQUEST_ID.set(exchange.request_id.decode())
        self._under_way += 1
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            self._under_way -= 1
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        duration_s = time.perf_counter() - exchange.began
        status, outcome = exchange.result()
        scope, route, metrics = exchange.scope, exchange.route, self._metrics
        metrics.finished(
            route=route,
            method=scope["method"],
            status=status,
            outcome=outcome,
            duration_s=duration_s,
            sent_bytes=exchange.sent_bytes,
        )
        if exchange.rows_sent is not None:
            metrics.streams.labels(route, outcome).inc()
            metrics.stream_rows.labels(exchange.identity.get("model", "")).inc(exchange.rows_sent)
        if self._log and scope["path"] not in PROBES:
            self._log.write(_entry(exchange, status, outcome, duration_s=duration_s))


def _connection(scope: Scope) -> object | None:
    """Return what only requests of one connection have in common, if that can be told.

    Of a Unix socket it cannot, nor behind a proxy: uvicorn then names whom the proxy speaks for,
    and port 0.
    """
    client = scope["client"]
    return client if client and client[1] else None


def _entry(exchange: Exchange, status: int, outcome: str, *, duration_s: float) -> dict[str, Any]:
    """Return a line of the access log. What is not known of a request is left out."""
    scope = exchange.scope
    entry = {
        "time": datetime.now(UTC),
        "level": "error" if status >= 500 else "info",
        "logger": "access",
        "method": scope["method"],
        "path": scope["path"],
        "route": exchange.route,
        "status": status,
        "outcome": outcome,
        "duration_ms": round(duration_s * 1000, 3),
        "bytes": exchange.sent_bytes,
        "request_id": exchange.request_id.decode(),
        **exchange.identity,
    }
    if query := scope["query_string"]:
        entry["query"] = query[:MAX_QUERY].decode("latin-1")
    if exchange.trace_id:
        entry["trace_id"] = exchange.trace_id
    if scope["client"]:
        entry["client"] = scope["client"][0]
    if exchange.rows is not None:
        entry["rows"] = exchange.rows
    if exchange.rows_sent is not None:
        entry["rows_sent"] = exchange.rows_sent
    return entry | exchange.durations_ms()


def telemetry(tracing: Tracing | None) -> TelemetryConfig:
    """Return what FastAPI is to do by itself: a span for each request, or nothing at all."""
    return {
        "tracing": tracing is not None,
        "tracer_provider": tracing.provider if tracing else None,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in PROBES,
    }

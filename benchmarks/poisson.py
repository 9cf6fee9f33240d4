"""The open loop: requests arrive at random times, whether or not the earlier ones are answered.

A latency counts from the time at which the request was to be sent, so that a server which stalls
does not hide it by keeping the client from asking (coordinated omission).
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

import httptools
import numpy as np
import numpy.typing as npt
import uvloop

from benchmarks.wire import with_seed

CONNECTIONS = 128
"""Open before the first arrival. Requests beyond them wait in the client, and their clocks run."""
GRACE_S = 10
"""So long is waited for answers after the last arrival."""

Floats = npt.NDArray[np.float64]


def arrivals(rate_per_s: float, seconds: float, *, seed: int) -> Floats:
    """Return the times of a Poisson process: gaps are independent and exponential."""
    generator = np.random.default_rng(seed)
    times = np.cumsum(generator.exponential(1 / rate_per_s, int(2 * rate_per_s * seconds) + 50))
    return np.asarray(times[times < seconds])


class _Connection(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self, offer: "_Offer") -> None:
        self.offer = offer
        self.index = -1
        self.transport: asyncio.WriteTransport | None = None
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's, whose interface they have.
        self.transport = cast(asyncio.WriteTransport, transport)
        self.offer.idle.append(self)

    def send(self, index: int) -> None:
        self.index = index
        if self.transport:
            self.transport.write(self.offer.requests[index])

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        ok = self.parser.get_status_code() == 200
        self.parser = httptools.HttpResponseParser(self)
        self.offer.answered(self, ok)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self.offer.idle:
            self.offer.idle.remove(self)


class _Offer:
    """The requests of one open loop, and when each was answered."""

    def __init__(self, requests: Sequence[bytes], times: Floats) -> None:
        self.requests = requests
        self.times = times
        self.latency_s = np.full(len(times), np.nan)
        self.failed = 0
        self.left = len(times)
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[int] = deque()
        self.began_s = 0.0
        self.ended = asyncio.Event()

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        opened = [
            (await loop.create_connection(lambda: _Connection(self), "127.0.0.1", port))[0]
            for _ in range(CONNECTIONS)
        ]
        self.began_s = time.perf_counter()
        for index, at_s in enumerate(self.times):
            await asyncio.sleep(self.began_s + at_s - time.perf_counter())
            self.waiting.append(index)
            self._send()
        try:
            async with asyncio.timeout(GRACE_S):
                await self.ended.wait()
        except TimeoutError:
            self.failed += self.left
        for transport in opened:
            transport.abort()

    def _send(self) -> None:
        while self.waiting and self.idle:
            self.idle.popleft().send(self.waiting.popleft())

    def answered(self, connection: _Connection, ok: bool) -> None:
        now_s = time.perf_counter() - self.began_s
        self.latency_s[connection.index] = now_s - self.times[connection.index]
        self.failed += not ok
        self.left -= 1
        if not self.left:
            self.ended.set()
        self.idle.append(connection)
        self._send()


def open_loop(
    port: int, request: bytes, *, rate_per_s: float, seconds: float, first_seed: int
) -> dict[str, float]:
    """Return latencies under random arrivals, in ms from each arrival, and how many failed."""
    times = arrivals(rate_per_s, seconds, seed=first_seed)
    requests = [with_seed(request, first_seed + index) for index in range(len(times))]
    began, used = time.perf_counter(), time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def offer() -> _Offer:
            made = _Offer(requests, times)
            await made.run(port)
            return made

        made = runner.run(offer())
    client_cores = (time.process_time() - used) / (time.perf_counter() - began)
    answered = made.latency_s[~np.isnan(made.latency_s)] * 1e3
    if not len(answered):
        return {"answers": 0, "failed": made.failed}
    p50, p99 = np.percentile(answered, [50, 99])
    return {
        "answers": len(answered),
        "failed": made.failed,
        "offered_per_s": rate_per_s,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "client_cores": client_cores,
    }

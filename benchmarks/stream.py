"""One image at a time while a million rows stream from the same model."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.processes import Process
from benchmarks.wire import FIRST_SEED, message

ROWS = 1_000_000
NPY = "application/x-npy"
CHUNK_BYTES = 2**20
SETTLE_S = 1.0
"""The stream runs so long before the first call is timed."""


class StreamFailed(Exception):
    """The service does not stream, or refused a call beside the stream."""


class _Reader(threading.Thread):
    """Reads a stream as fast as it comes, and throws it away."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.connection.sendall(_request(ROWS, seed=1))
        self.response = http.client.HTTPResponse(self.connection)
        self.response.begin()
        self.received = 0
        self.stopping = False

    def run(self) -> None:
        buffer = bytearray(CHUNK_BYTES)
        while not self.stopping and (count := self.response.readinto(buffer)):
            self.received += count

    def stop(self) -> None:
        self.stopping = True
        self.join(30)
        self.connection.close()


def _request(rows: int, *, seed: int) -> bytes:
    path = f"/sample?model=mnist-gan&version=1&n={rows}&seed={seed}"
    return message("GET", path, {"Accept": NPY})


def single_calls(port: int, seconds: float) -> Iterator[float]:
    """Yield the times of one-image calls, one after the other on one connection, in s.

    Raises:
        StreamFailed: A call was not answered by 200.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        end, seed = time.perf_counter() + seconds, FIRST_SEED
        while (began := time.perf_counter()) < end:
            seed += 1
            connection.sendall(_request(1, seed=seed))
            response = http.client.HTTPResponse(connection)
            response.begin()
            response.read()
            yield time.perf_counter() - began
            if response.status != 200:
                raise StreamFailed(f"a call beside it got status {response.status}")


def beside_a_stream(process: Process, *, seconds: float) -> dict[str, float]:
    """Return latencies of one-image calls beside a stream, and what memory the stream took.

    Raises:
        StreamFailed: The service does not stream so many rows, or refused a call beside it.
    """
    before_mb = process.resident_mb()
    peak_mb = before_mb
    reader = _Reader(process.port)
    if reader.response.status != 200:
        reader.connection.close()
        raise StreamFailed(f"{ROWS} rows: status {reader.response.status}")
    began = time.perf_counter()
    reader.start()
    try:
        time.sleep(SETTLE_S)
        times = []
        for taken_s in single_calls(process.port, seconds):
            times.append(taken_s)
            if len(times) % 8 == 0:
                peak_mb = max(peak_mb, process.resident_mb())
        streaming = reader.is_alive()
        rate = reader.received / (time.perf_counter() - began) / (784 * 4)
    finally:
        reader.stop()
    if not streaming:
        raise StreamFailed("the stream ended before the calls did")
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {
        "answers": len(times),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "rss_growth_mb": peak_mb - before_mb,
        "stream_rows_per_s": rate,
    }

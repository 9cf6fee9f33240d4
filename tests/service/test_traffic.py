"""The real process under traffic: clients that vanish, are slow, are many, and a signal."""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from service import tensors
from tests.process import Process
from tests.service.bundles import MIX, SHIFT

ENDLESS = "/sample?model=affine&n=100000000&seed=1"
HEADER_BYTES = len(tensors.npy_header((100_000_000, 2)))
GROWTH_BYTES = 64 * 2**20


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[Process]:
    server = Process(models, tmp_path / "log", DRAIN_S="2")
    server.wait_until_ready()
    yield server
    if server.process.poll() is None:
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def open_stream(server: Process, accept: str = "application/x-npy") -> socket.socket:
    """Return a connection on which an endless stream begins."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(20)
    request = f"GET {ENDLESS} HTTP/1.1\r\nHost: service\r\nAccept: {accept}\r\n\r\n"
    connection.sendall(request.encode())
    return connection


def receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()  # bytes would be copied with every piece
    while len(received) < size and (more := connection.recv(min(65536, size - len(received)))):
        received += more
    return bytes(received)


def waiting_jobs(server: Process) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("pushforward_queue_jobs")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_reader_that_is_slow_makes_the_service_wait_and_not_grow(server: Process) -> None:
    httpx.get(f"{server.url}/sample?model=affine&n=100000", headers={"Accept": "application/x-npy"})
    before = server.resident_bytes
    with open_stream(server) as slow:
        for _ in range(20):
            receive(slow, 10_000)
            time.sleep(0.02)
        assert httpx.get(f"{server.url}/sample?model=affine").status_code == 200
    assert server.resident_bytes - before < GROWTH_BYTES


def test_millions_of_rows_take_no_memory(server: Process) -> None:
    httpx.get(f"{server.url}/sample?model=affine&n=100000", headers={"Accept": "application/x-npy"})
    before = server.resident_bytes
    with open_stream(server) as reader:
        body = receive(reader, 16_000_000)
        assert server.resident_bytes - before < GROWTH_BYTES
    begins = body.index(b"\r\n\r\n") + 4 + HEADER_BYTES
    rows = np.frombuffer(body[begins : begins + 8_000_000], "<f4").reshape(-1, 2)
    tail = httpx.get(
        f"{server.url}/sample?model=affine&n=1000&seed=1&start=999000",
        headers={"Accept": "application/x-npy"},
    )
    np.testing.assert_array_equal(rows[999_000:], tensors.from_npy(tail.content, field="x"))


def test_client_that_vanishes_in_mid_stream_leaves_a_service_that_is_idle(server: Process) -> None:
    with open_stream(server) as vanishing:
        receive(vanishing, 100_000)
    deadline = time.monotonic() + 10
    while waiting_jobs(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert httpx.get(f"{server.url}/sample?model=affine").status_code == 200


def test_signal_cuts_a_stream_so_that_its_reader_knows(server: Process) -> None:
    with open_stream(server) as numbers, open_stream(server, "application/x-ndjson") as text:
        receive(numbers, 10_000)
        receive(text, 10_000)
        server.process.terminate()
        # Both at once: who waits for the other one to end may be too late for the last line.
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(receive, numbers, 900_000_000)
            said = receive(text, 900_000_000)
            assert len(other.result()) < 800_000_000
    assert b'{"problem":{"code":"draining"' in said[-400:]
    assert said.endswith(b"0\r\n\r\n")  # of chunked encoding: whole
    assert server.process.wait(timeout=15) == 0
    log = server.log.read_text()
    assert "Traceback" not in log


def test_signal_under_load_loses_no_request_that_was_sent(server: Process) -> None:
    async def all_at_once() -> list[httpx.Response | BaseException]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
            await asyncio.gather(*(client.get("/livez") for _ in range(64)))
            body = {"model": "affine", "z": np.ones((2000, 2)).tolist()}
            calls = [asyncio.create_task(client.post("/decode", json=body)) for _ in range(64)]
            await asyncio.sleep(0.15)
            server.process.terminate()
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(all_at_once())
    # A connection that had not been read from when the signal came may be closed on its client:
    # nothing of such a request was begun. Whatever was begun is answered, and right.
    served = [each for each in answers if isinstance(each, httpx.Response)]
    assert len(served) >= 1
    for answer in served:
        assert answer.status_code == 200
        np.testing.assert_allclose(answer.json()["x"][1999], MIX.sum(axis=0) + SHIFT, atol=1e-5)
    lost = [each for each in answers if not isinstance(each, httpx.Response)]
    assert all(isinstance(each, httpx.TransportError) for each in lost)
    assert server.process.wait(timeout=15) == 0


def test_many_callers_get_their_own_rows(server: Process) -> None:
    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
            calls = (
                client.get("/sample", params={"model": "affine", "n": 1 + i % 7, "seed": i})
                for i in range(300)
            )
            return await asyncio.gather(*calls)

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200}
    for i in range(0, 300, 29):
        alone = httpx.get(f"{server.url}/sample?model=affine&n={1 + i % 7}&seed={i}").json()
        assert answers[i].json() == alone

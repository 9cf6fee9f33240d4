"""Twice as much as the service can do: it refuses the rest, and does nothing else wrong."""

import asyncio
import io
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.process import Process
from tests.service.bundles import MIX, SHIFT, affine_log_density

ROWS = 4000
"""Of one request: enough work that the client here can send twice what the service can do."""
SEEDS = 20
NOISE_BYTES = 24 * 2**20
"""What RSS may differ by between the second and the last quarter: allocators keep what they had."""
STOOD_STILL_S = 0.5
"""By how much the client here may be late before what it missed is not sent any more."""


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[Process]:
    server = Process(models, tmp_path / "log", MAX_WAIT_S="0.05", ACCESS_LOG="off")
    server.wait_until_ready()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@dataclass
class Traffic:
    """What was sent, and what came of it."""

    port: int
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left: int = 0

    async def call(self, random_: random.Random) -> None:
        """Send one request of a random kind and check its answer."""
        seed = random_.randrange(SEEDS)
        kind = random_.choices(["sample", "log-density", "leave"], [6, 3, 1])[0]
        if kind == "log-density":
            status, body = await self._ask(*_log_density(seed))
        else:
            path = f"/sample?model=affine&n={ROWS}&seed={seed}"
            status, body = await self._ask(path, b"", leaves=kind == "leave")
        if kind == "leave":
            self.left += 1
            return
        self.statuses[status] += 1
        if status == 200 and not _is_right(kind, seed, body):
            self.wrong.append(f"{kind} {seed}")

    async def _ask(self, path: str, content: bytes, *, leaves: bool = False) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        method = "POST" if content else "GET"
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: service\r\nConnection: close\r\n"
            f"Accept: application/x-npy\r\nContent-Type: application/x-npy\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        if leaves:
            writer.close()
            return 0, b""
        answer = await reader.read()
        writer.close()
        status, _, body = answer.partition(b"\r\n\r\n")
        return int(status.split()[1]), body


def _log_density(seed: int) -> tuple[str, bytes]:
    stream = io.BytesIO()
    np.save(stream, _points(seed))
    return "/log-density?model=affine", stream.getvalue()


def _points(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(ROWS, 2)) @ MIX + SHIFT
    points: np.ndarray = x.astype(np.float32)
    return points


EXPECTED: dict[int, bytes] = {}


def _is_right(kind: str, seed: int, body: bytes) -> bool:
    if kind == "sample":
        return EXPECTED.setdefault(seed, body) == body  # the first one, then the same bytes
    found = np.load(io.BytesIO(body))
    return bool(np.abs(found - affine_log_density(_points(seed))).max() < 1e-3)


async def capacity(traffic: Traffic, seconds: float) -> float:
    """Return the requests a second that two patient callers get answered."""
    random_ = random.Random(0)
    ends = time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < ends:
            await traffic.call(random_)

    await asyncio.gather(caller(), caller())
    return traffic.statuses[200] / seconds


async def overload(traffic: Traffic, *, rate: float, seconds: float) -> None:
    """Send requests as a Poisson process, whether or not those before were answered."""
    random_ = random.Random(1)
    calls: set[asyncio.Task[None]] = set()
    began = due = time.monotonic()
    while due < began + seconds:
        # A machine that stood still is not made up for by thousands of connections at once, which
        # the kernel would reset before the service hears of them.
        due = max(due, time.monotonic() - STOOD_STILL_S) + random_.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        calls.add(asyncio.create_task(traffic.call(random_)))
        calls = {call for call in calls if not call.done() or call.result()}
    await asyncio.wait_for(asyncio.gather(*calls), 60)


@pytest.mark.parametrize("seconds", [12, pytest.param(600, marks=pytest.mark.soak)])
def test_twice_the_capacity_is_refused_in_part_and_nothing_else_goes_wrong(
    server: Process, seconds: int
) -> None:
    traffic = Traffic(server.port)

    async def soak() -> list[int]:
        await capacity(Traffic(server.port), 1.0)  # all seeds are known then
        most = await capacity(Traffic(server.port), 2.0)
        memory: list[int] = []

        async def watch() -> None:
            while True:
                memory.append(server.resident_bytes)
                await asyncio.sleep(seconds / 60)

        watching = asyncio.create_task(watch())
        await overload(traffic, rate=2 * most, seconds=seconds)
        watching.cancel()
        return memory

    memory = asyncio.run(soak())
    assert traffic.wrong == []
    assert set(traffic.statuses) <= {200, 429, 503}
    assert traffic.statuses[200] > 0
    assert traffic.statuses[429] > 0
    quarter = len(memory) // 4
    growth = statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter])
    assert growth < NOISE_BYTES

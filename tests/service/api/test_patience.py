"""A request has one allowance of time, and whoever goes or is late is dropped without a trace."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.api.patience import Allowance, allowance, patience
from service.errors import DeadlineExceeded
from tests.service.conftest import Client


def request(scope: dict[str, Any]) -> Request:
    return Request({"type": "http", "headers": [], **scope})


def test_allowance_begins_once_however_often_a_request_waits() -> None:
    async def ask_twice() -> tuple[Allowance, Allowance]:
        asked = request({})
        first = allowance(asked, 5.0)
        await asyncio.sleep(0.01)
        return first, allowance(asked, 5.0)

    first, second = asyncio.run(ask_twice())
    assert first is second
    assert first.until == first.since + 5.0


def test_caller_may_ask_for_less_and_not_for_more() -> None:
    async def ask(text: bytes) -> float:
        return allowance(request({"headers": [(b"pushforward-timeout-ms", text)]}), 5.0).seconds

    assert asyncio.run(ask(b"250")) == 0.25
    assert asyncio.run(ask(b"9000")) == 5.0
    allowed = Allowance(5.0, 100.0)
    assert allowed.at_most(1.0) == Allowance(1.0, 100.0)
    assert allowed.at_most(6.0) == allowed


@pytest.mark.parametrize("path", ["/log-density?model=affine", "/v2/models/affine.decode/infer"])
def test_body_that_never_arrives_is_not_waited_for(client: Client, path: str) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b'{"x": '
        await asyncio.sleep(30)
        yield b"[[0, 0]]}"

    headers = {"Content-Type": "application/json", "Pushforward-Timeout-Ms": "50"}
    answer = client.post(path, content=stalling(), headers=headers)
    assert answer.status_code == 504
    assert "The request's body did not arrive within 0.05 s." in answer.text


@pytest.mark.parametrize("turns", range(5))
def test_client_that_goes_just_when_time_is_up_leaves_no_error_behind(turns: int) -> None:
    complaints: list[dict[str, Any]] = []

    async def gone() -> dict[str, str]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: complaints.append(what))
        with pytest.raises((DeadlineExceeded, ClientDisconnect)):
            async with patience(gone, Allowance(0.0, loop.time())):
                await asyncio.sleep(10)
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(wait())
    assert complaints == []

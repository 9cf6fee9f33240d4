"""Which requests are of one caller, as far as that can be told."""

import pytest
from starlette.types import Receive, Scope, Send

from service.lanes import CALLER
from tests.service.api.test_observing import answer, exchange


@pytest.mark.parametrize(
    ("clients", "are_one"),
    [
        ([("127.0.0.1", 5001), ("127.0.0.1", 5001)], True),
        ([("127.0.0.1", 5001), ("127.0.0.1", 5002)], False),
        # What uvicorn makes of X-Forwarded-For: one for all behind a proxy.
        ([("203.0.113.9", 0), ("203.0.113.9", 0)], False),
        ([None, None], False),  # a Unix socket
    ],
)
def test_requests_are_of_one_caller_only_if_they_share_a_connection(
    clients: list[tuple[str, int] | None], are_one: bool
) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(CALLER.get())
        await answer(send)

    for client in clients:
        exchange(app, client=client)
    assert (seen[0] == seen[1]) is are_one

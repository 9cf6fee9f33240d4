"""How long a request is worked on: until its client has gone, or its time is up.

Either way the work is cancelled where it stands, and the engine drops the rows that it has not
begun. The connection is watched here and by nobody else, through ASGI's own `receive`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.errors import DeadlineExceeded, InputInvalid

HEADER = "Pushforward-Timeout-Ms"


class Drain:
    """Whether the service is shutting down, and how long what has begun may still take.

    Args:
        seconds: From the signal to the end of what is not done by then.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = float("inf")

    def begin(self) -> None:
        """Take notice of the signal."""
        self._ends = min(self._ends, time.monotonic() + self._seconds)

    @property
    def has_begun(self) -> bool:
        """Whether a signal came."""
        return self._ends < float("inf")

    @property
    def is_over(self) -> bool:
        """Whether what still runs has to end now, if it shall end well."""
        return time.monotonic() >= self._ends


def allowed_s(request: Request, longest_s: float) -> float:
    """Return how many seconds a request may take: the operator's limit, or its own if less.

    Raises:
        InputInvalid: Its header is no number of milliseconds.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return longest_s
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
        raise InputInvalid(
            f"header '{HEADER}': expected milliseconds, 1 or more; got '{text[:40]}'.",
            field=HEADER,
        )
    return min(longest_s, int(text) / 1000)


@asynccontextmanager
async def patience(receive: Receive, seconds: float) -> AsyncIterator[None]:
    """Cancel what is done inside when the client has gone, or when its time is up.

    Args:
        receive: Of a request whose body was read.
        seconds: How long it may take.

    Raises:
        DeadlineExceeded: The time was up.
        ClientDisconnect: The client has gone.
    """
    loop = asyncio.get_running_loop()
    gone = loop.create_task(_until_gone(receive))
    limit = asyncio.timeout(seconds)

    def give_up(watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled():
            limit.reschedule(loop.time())

    try:
        async with limit:
            gone.add_done_callback(give_up)
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        if gone.done():
            raise ClientDisconnect from error
        raise DeadlineExceeded(
            f"There was no answer within {seconds:g} s. Ask for fewer rows or draws, or give it "
            f"more time by the header '{HEADER}', as far as the service allows."
        ) from error
    finally:
        gone.remove_done_callback(give_up)
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

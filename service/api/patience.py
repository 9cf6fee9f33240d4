"""How long a request is worked on: until its client has gone, or its time is up.

Either way the work is cancelled where it stands, and the engine drops the rows that it has not
begun. The connection is watched here and by nobody else, through ASGI's own `receive`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.errors import DeadlineExceeded, InputInvalid

HEADER = "Pushforward-Timeout-Ms"
_ALLOWANCE = "pushforward.allowance"
UNWATCHED_S = 0.1
"""For how long nobody looks whether the client is there. Most answers have gone out by then, and
a watcher costs each of them a twentieth of what the event loop does for it (2026-11-28: 51 of
1,154 samples of a profile)."""


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


@dataclass(frozen=True)
class Allowance:
    """How long a request may take.

    Args:
        seconds: From when its headers were there.
        since: When that was, by the event loop's clock.
    """

    seconds: float
    since: float

    @property
    def until(self) -> float:
        """When it is over."""
        return self.since + self.seconds

    def at_most(self, seconds: float) -> "Allowance":
        """Return it with less time, if that is less."""
        return replace(self, seconds=min(self.seconds, seconds))


FOREVER = Allowance(math.inf, 0.0)


def allowance(request: Request, longest_s: float) -> Allowance:
    """Return how long a request may take: by the operator's limit, or its own if that is less.

    It begins when it is first asked for: once, however many times a request waits for something.

    Raises:
        InputInvalid: Its header is no number of milliseconds.
    """
    if _ALLOWANCE not in request.scope:
        now = asyncio.get_running_loop().time()
        request.scope[_ALLOWANCE] = Allowance(_seconds(request, longest_s), now)
    known: Allowance = request.scope[_ALLOWANCE]
    return known


def _seconds(request: Request, longest_s: float) -> float:
    text = request.headers.get(HEADER)
    if text is None:
        return longest_s
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
        raise InputInvalid(
            f"header '{HEADER}': expected milliseconds, 1 to 10^18; got '{text[:40]}'.",
            field=HEADER,
        )
    return min(longest_s, int(text) / 1000)


@asynccontextmanager
async def patience(receive: Receive, allowed: Allowance) -> AsyncIterator[None]:
    """Cancel what is done inside when the client has gone, or when its time is up.

    Args:
        receive: Of a request whose body was read.
        allowed: How long it may take.

    Raises:
        DeadlineExceeded: The time was up.
        ClientDisconnect: The client has gone.
    """
    loop = asyncio.get_running_loop()
    gone: asyncio.Task[None] | None = None
    limit = asyncio.timeout_at(allowed.until)

    def watch() -> None:
        nonlocal gone
        gone = loop.create_task(_until_gone(receive))
        gone.add_done_callback(give_up)

    def give_up(watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled():
            with suppress(RuntimeError):  # the time was up as well, or the work is done
                limit.reschedule(loop.time())

    later = loop.call_later(UNWATCHED_S, watch)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        if gone and gone.done():
            raise ClientDisconnect from error
        raise DeadlineExceeded(
            f"There was no answer within {allowed.seconds:g} s. Ask for fewer rows, draws or "
            "steps, or give it more time, as far as the service allows: by the header "
            f"'{HEADER}', or in /v2 by the parameter 'timeout'."
        ) from error
    finally:
        later.cancel()
        if gone:
            gone.remove_done_callback(give_up)
            gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

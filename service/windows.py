"""Work that is cut into windows: each is made while the one before it is being used."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

Found = TypeVar("Found")


async def one_ahead(
    calls: Iterable[Callable[[], Awaitable[Found]]],
) -> AsyncGenerator[Found, None]:
    """Yield what calls return, in order, each made while the one before is being used."""
    running: list[asyncio.Future[Found]] = []
    try:
        for call in calls:
            running.append(asyncio.ensure_future(call()))
            if len(running) > 1:
                yield await running[0]
                del running[0]
        for future in running:
            yield await future
    finally:
        for future in running:
            future.cancel()
        # Nobody asks any more what became of them, nor should asyncio complain about it.
        await asyncio.gather(*running, return_exceptions=True)

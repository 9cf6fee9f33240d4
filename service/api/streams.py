"""Answers that are longer than memory: sent window by window, at the client's pace.

The next window is made while one is being sent, and no further one before the socket took it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import numpy as np
import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service import tensors
from service.api import observing
from service.api.patience import FOREVER, Drain, patience
from service.calls import Answer
from service.errors import Draining, ServiceError

log = logging.getLogger(__name__)


class Stream(Response):
    """A body that is made while it is sent.

    Args:
        chunks: The body. It is closed when it ends, and when the client has gone.
        headers: Of the answer; with a Content-Length, a body that ends early breaks the
            connection, so that nobody takes it for whole.
        media_type: Of the body.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], *, headers: Mapping[str, str], media_type: str
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._chunks = chunks
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the headers, then chunk by chunk; `send` waits while the socket is full.

        What fails on the way cannot be said any more. The body is left incomplete, and the
        server closes the connection on it.
        """
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            async with aclosing(self._chunks) as chunks, patience(receive, FOREVER):
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientDisconnect:
            return
        except ServiceError as error:
            log.warning("a stream was cut: %s", error.detail)
            observing.note(outcome=error.code)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def npy_size(shape: tuple[int, ...]) -> int:
    """Return the bytes of an npy file of float32."""
    return len(tensors.npy_header(shape)) + 4 * int(np.prod(shape, dtype=object))


async def npy(
    windows: AsyncGenerator[Answer, None], *, shape: tuple[int, ...], drain: Drain
) -> AsyncGenerator[bytes, None]:
    """Yield an npy file of float32 of a shape that is known in advance.

    Raises:
        Draining: The service has to end. What was sent is too short, which the client sees.
    """
    async with aclosing(windows):
        yield tensors.npy_header(shape)
        async for answer in windows:
            yield answer["x"].tobytes()
            observing.sent(len(answer["x"]))
            if drain.is_over:
                raise Draining("The stream was cut: the service is shutting down.")


async def ndjson(
    windows: AsyncGenerator[Answer, None], *, start: int, drain: Drain
) -> AsyncGenerator[bytes, None]:
    """Yield a JSON object a line for each row: its number, x, and what was to be included.

    What goes wrong on the way is the last line: {"problem": {...}, "start": the next row}.
    """
    row = start
    try:
        async with aclosing(windows):
            async for answer in windows:
                yield await asyncio.to_thread(_lines, answer, row)
                row += len(answer["x"])
                observing.sent(len(answer["x"]))
                if drain.is_over:
                    raise Draining("The stream was cut: the service is shutting down.")
    except ServiceError as error:
        log.warning("a stream ended at row %d: %s", row, error.detail)
        observing.note(outcome=error.code)
        problem = {"code": error.code, "detail": error.detail}
        yield orjson.dumps({"problem": problem, "start": row}) + b"\n"


def _lines(answer: Answer, first: int) -> bytes:
    columns = {name: cast(Sequence[Any], tensors.to_json(array)) for name, array in answer.items()}
    return b"".join(
        orjson.dumps(
            {"row": first + i, **{name: column[i] for name, column in columns.items()}},
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        for i in range(len(answer["x"]))
    )

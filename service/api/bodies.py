"""Requests: what they say, read from the query string and the raw body.

A body is JSON, npy or one picture. JSON holds parameters and tensor; the others are the tensor
itself, and their parameters come from the query. The tensor is parsed last, once the model
is known to want it: `Asked.rows`.
"""

import asyncio
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar
from urllib.parse import parse_qsl

import anyio.to_thread
import numpy as np
import orjson
from PIL import Image, UnidentifiedImageError
from starlette.requests import Request

from service import tensors
from service.api import context, schemas
from service.api.parameters import from_body, from_query, merge
from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InputInvalid,
    MediaTypeUnsupported,
    RequestMalformed,
)
from service.interface import Event
from service.tensors import Array

JSON = "application/json"
NPY = "application/x-npy"
PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG"}

DRAIN_BYTES = 256 * 2**20
"""What is read and thrown away of a body that is too large, so that its sender hears of it."""
SMALL_BYTES = 2**17
"""Less than this is read at once: it takes a millisecond (measured for JSON; the rest takes less).
Handing it to a thread costs two, when the service is busy."""

Call = TypeVar("Call", bound=schemas.Parameters)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked(Generic[Call]):
    """A request whose parameters are read and whose tensor is not.

    Args:
        parameters: From the query and, if it is JSON, the body.
        media_type: Of the body; "" without one.
        body: The raw bytes of an npy or a picture; empty for JSON.
        size: Bytes that came.
    """

    parameters: Call
    media_type: str
    body: bytes
    size: int

    async def rows(self, shape: Sequence[int], *, event: Event | None = None) -> Array:
        """Return the tensor of the call, float32 (n, *shape), every value checked.

        Args:
            shape: Of one row.
            event: What the rows are, if they are events: their range is then checked, pictures
                are read, and an npy of uint8 is taken for 8-bit pixels and divided by 255.

        Raises:
            RequestMalformed: Not an npy, or not a picture.
            InputInvalid: Missing, or of the wrong shape, type or range.
            MediaTypeUnsupported: A picture where the rows are none.
        """
        return await in_thread(self.size >= SMALL_BYTES, self._rows, shape, event)

    def _rows(self, shape: Sequence[int], event: Event | None) -> Array:
        field = self.parameters.tensor or ""
        if self.media_type in PICTURES:
            if event is None or event.kind != "image":
                raise MediaTypeUnsupported(
                    f"'{field}' of this model is no picture. Send {JSON} or {NPY}.", field=field
                )
            array = read_picture(self.body, event, kind=PICTURES[self.media_type])
        elif self.media_type == NPY:
            array = tensors.from_npy(self.body, field=field)
            if event is not None and event.kind == "image" and array.dtype == np.uint8:
                array = array / np.float32(255)
        else:
            value = getattr(self.parameters, field)
            if value is None:
                raise InputInvalid(
                    f"field '{field}': it is missing. Send numbers of shape "
                    f"(n, {', '.join(map(str, shape))}).",
                    field=field,
                )
            array = tensors.from_json(value, field=field)
        values = tensors.check(
            array,
            field=field,
            shape=shape,
            minimum=event.minimum if event else None,
            maximum=event.maximum if event else None,
        )
        if event and event.categories:
            tensors.check_categories(values, event, field=field)
        return values


async def read(request: Request, schema: type[Call]) -> Asked[Call]:
    """Return what a request asks for.

    Args:
        request: Its query and, unless it is a GET, its body are read.
        schema: The parameters of the call.

    Raises:
        RequestMalformed: The body is not JSON.
        InputInvalid: A parameter is unknown, out of range, or twice there and different.
        BodyTooLarge: The body is longer than the limit.
        DeadlineExceeded: It did not arrive in time.
        MediaTypeUnsupported: The body is of a kind that this call does not read.
    """
    text = request.scope["query_string"].decode("latin-1")
    query = from_query(schema, parse_qsl(text, keep_blank_values=True))
    if request.method in ("GET", "HEAD"):
        return Asked(query, "", b"", 0)
    body = await read_all(request)
    if not body:
        return Asked(query, "", b"", 0)
    media_type = _media_type(request, schema, body)
    if media_type != JSON:
        return Asked(query, media_type, body, len(body))
    said = await in_thread(len(body) >= SMALL_BYTES, _parse, body, schema)
    return Asked(merge(query, said), JSON, b"", len(body))


async def in_thread(
    is_long: bool,
    work: Callable[Arguments, Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """Return work(...), done in a worker thread if it would hold up the event loop for long."""
    if not is_long:
        return work(*args, **kwargs)
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))


def _media_type(request: Request, schema: type[schemas.Parameters], body: bytes) -> str:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # What `curl -d '{...}'` says when it is not told better.
    if media_type in ("", "application/x-www-form-urlencoded") and body.lstrip()[:1] == b"{":
        media_type = JSON
    read = [JSON, NPY, *PICTURES] if schema.tensor else [JSON]
    if media_type not in read:
        raise MediaTypeUnsupported(
            f"The body is {media_type or 'without a Content-Type'}; "
            f"this call reads {', '.join(read)}. Say which by the header Content-Type."
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise MediaTypeUnsupported(f"The body is compressed ({encoding}). Send it as it is.")
    return media_type


async def read_all(request: Request, *, limit: int | None = None) -> bytes:
    """Return the body, counted while it comes, whatever its headers promise.

    Args:
        request: Whose.
        limit: Most bytes; None for the setting.

    Raises:
        BodyTooLarge: It is longer than the limit.
        DeadlineExceeded: It did not arrive in time.
    """
    here = context.of(request)
    within = here.allowance(request)
    try:
        async with asyncio.timeout_at(within.until):
            return await _read_all(request, limit or here.settings.max_body_bytes)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"The request's body did not arrive within {within.seconds:g} s."
        ) from error


async def _read_all(request: Request, limit: int) -> bytes:
    promised = request.headers.get("content-length", "0")
    too_large = promised.isdecimal() and int(promised) > limit
    # Who expects a go-ahead has not begun to send.
    waits = request.headers.get("expect", "").lower() == "100-continue"
    chunks: list[bytes] = []
    size = 0
    if not (too_large and waits):
        async for chunk in request.stream():
            size += len(chunk)
            too_large = too_large or size > limit
            if too_large:
                chunks.clear()
            else:
                chunks.append(chunk)
            if size > DRAIN_BYTES:
                break
    if too_large:
        raise BodyTooLarge(
            f"The body is larger than {limit} bytes. Send fewer rows at a time; as bytes they take "
            "a fraction of what JSON takes."
        )
    return b"".join(chunks)


_NO_NUMBER = re.compile(rb"\b(NaN|Infinity)\b")
"""What Python's json writes for them."""


def _parse(body: bytes, schema: type[Call]) -> Call:
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = " JSON has no NaN and no Infinity." if _NO_NUMBER.search(body) else ""
        raise RequestMalformed(f"The body is not JSON: {error}.{hint}") from error
    return from_body(schema, values)


def read_picture(body: bytes, event: Event, *, kind: str) -> Array:
    """Return a PNG or JPEG as one event: float32 (1, channels, height, width) from 0 to 1.

    Colours become the event's channels (grey by ITU-R 601 luma). What is transparent shows
    black, the background of all images that are served here.

    Raises:
        RequestMalformed: Not a picture of this kind.
        InputInvalid: Another size, more than 8 bits, or several frames.
    """
    try:
        return _read_picture(body, event, kind=kind)
    except InputInvalid:
        raise
    except Exception as error:  # Pillow raises whatever a broken file makes it trip over
        # Of a file that it knows nothing of, it says where the bytes lay in memory.
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise RequestMalformed(f"The body is not a {kind} file{why}.", field="x") from error


def _read_picture(body: bytes, event: Event, *, kind: str) -> Array:
    channels, height, width = event.shape
    with Image.open(io.BytesIO(body), formats=[kind]) as image:
        # Nothing is decoded before its size is known to be the right, small one.
        if image.size != (width, height):
            raise InputInvalid(
                f"field 'x': expected a picture {width} wide and {height} high; "
                f"got {image.width} by {image.height}. Resize it first.",
                field="x",
            )
        if getattr(image, "is_animated", False):
            raise InputInvalid("field 'x': the picture is animated. Send one frame.", field="x")
        # The bit depth of a PNG is byte 24 (its IHDR chunk always comes first).
        if kind == "PNG" and body[24] > 8:
            raise InputInvalid(
                f"field 'x': the picture has {body[24]} bits a channel. Send 8 bits, or an npy.",
                field="x",
            )
        flat = image.convert("RGB" if channels == 3 else "L")
        if "A" in image.getbands() or "transparency" in image.info:
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            shown = Image.alpha_composite(black, image.convert("RGBA"))
            flat = shown.convert(flat.mode)
        pixels = np.asarray(flat, dtype=np.float32).reshape(1, height, width, channels)
    return pixels.transpose(0, 3, 1, 2) / np.float32(255)

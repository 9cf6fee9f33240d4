"""Answers: which format the client wants, and the arrays written in it."""

import io
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from service import tensors
from service.api import quality
from service.api.bodies import JSON, NPY, in_thread
from service.api.streams import Stream
from service.errors import NotAcceptable
from service.manifest import Manifest
from service.tensors import Array

PNG = "image/png"
NDJSON = "application/x-ndjson"
GRID_COLUMNS = 8
PIECE_VALUES = 2**14
"""Numbers of an array that are written as JSON at once: about a millisecond."""
SMALL_BYTES = {JSON: 2**18, NPY: 2**22, PNG: 2**15}
"""Arrays of less than this are written at once: it takes about a millisecond (measured)."""
SLICE_BYTES = 2**18
"""Most bytes that are handed to the socket at once: it copies them while the event loop waits."""


@dataclass(frozen=True)
class OrNull:
    """Numbers of which JSON shall say null where there is none to give: NaN, or infinite."""

    array: Array


@dataclass(frozen=True)
class Result:
    """What a call found, before it is written.

    Args:
        fields: The JSON object; arrays, and `OrNull`, may stand in its first two levels.
        primary: Name of the field that an npy answer is, or a PNG shows.
        headers: What is said in every format.
    """

    fields: Mapping[str, Any]
    primary: str
    headers: Mapping[str, str]


def negotiate(
    request: Request, manifest: Manifest, *, makes_events: bool, streams: bool = False
) -> str:
    """Return the format that the Accept header wants most; of equals JSON, then npy, then PNG.

    Args:
        request: Without an Accept header it takes anything.
        manifest: Of the model. One that makes images has pictures to offer.
        makes_events: Whether the answer is x.
        streams: Whether it can be one of NDJSON.

    Raises:
        NotAcceptable: It wants none of those that this call can give.

    Source:
        RFC 9110, section 12.5.1: the most specific range decides a type's quality.
    """
    is_picture = makes_events and manifest.event.kind == "image"
    offered = (JSON, NPY, *[PNG] * is_picture, *[NDJSON] * streams)
    accept = ",".join(request.headers.getlist("accept")) or "*/*"
    best = _best(accept, offered)
    if best is None:
        why = ", and that is no picture" if not is_picture and _best(accept, (PNG,)) else ""
        what = f"{manifest.event.kind}s" if makes_events else "numbers"
        raise NotAcceptable(
            f"This call on {manifest.name} answers {what}{why}: {', '.join(offered)}. "
            f"'Accept: {accept[:100]}' takes none of these."
        )
    return best


@lru_cache(maxsize=64)  # a client says the same at each call
def _best(accept: str, offered: Sequence[str]) -> str | None:
    """Return which of the formats an Accept header wants most, if it takes any."""
    ranges = dict(quality.items(accept))
    best = max(offered, key=lambda media_type: _quality(media_type, ranges))
    return best if _quality(best, ranges) else None


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    kind = media_type.partition("/")[0]
    for candidate in (media_type, f"{kind}/*", "*/*"):
        if candidate in ranges:
            return ranges[candidate]
    return 0.0


async def write(result: Result, media_type: str, *, columns: int | None = None) -> Response:
    """Return the answer in a format that `negotiate` chose.

    Args:
        result: What to write. For a PNG its primary field is uint8 (n, height, width, channel).
        media_type: JSON, npy or PNG.
        columns: Of a PNG grid.
    """
    is_long = _size(result.fields) >= SMALL_BYTES[media_type]
    if media_type == PNG:
        body = [await in_thread(is_long, png, result.fields[result.primary], columns=columns)]
    elif media_type == NPY:
        body = [await in_thread(is_long, tensors.to_npy, result.fields[result.primary])]
    else:
        body = await in_thread(is_long, list, json(result.fields))
    headers = {"Vary": "Accept", **result.headers}
    length = sum(map(len, body))
    if length <= SLICE_BYTES:
        return Response(b"".join(body), headers=headers, media_type=media_type)
    headers["Content-Length"] = str(length)
    return Stream(_slices(body), headers=headers, media_type=media_type)


async def _slices(body: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield a body that was not joined, because that would take as long as it is."""
    for piece in body:
        for first in range(0, len(piece), SLICE_BYTES):
            yield piece[first : first + SLICE_BYTES]


def json(fields: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield a JSON object, whose values may be arrays or objects of arrays, in pieces."""
    yield from _json(fields)
    yield b"\n"


def _json(value: object) -> Iterator[bytes]:
    """Yield one value."""
    if isinstance(value, Mapping):
        for count, (key, each) in enumerate(value.items()):
            yield b"%s%s:" % (b"," if count else b"{", orjson.dumps(key))
            yield from _json(each)
        yield b"}" if value else b"{}"
    elif isinstance(value, OrNull):
        yield from _numbers(value.array, np.ascontiguousarray)  # orjson itself says null
    elif isinstance(value, np.ndarray):
        yield from _numbers(value, tensors.to_json)
    else:
        yield orjson.dumps(value)


def _numbers(array: Array, spell: Callable[[Array], object]) -> Iterator[bytes]:
    """Yield an array: one of many numbers piece by piece.

    orjson keeps the interpreter to itself while it writes, and the event loop with it.
    """
    if array.size <= PIECE_VALUES or array.ndim == 0:
        yield orjson.dumps(spell(array), option=orjson.OPT_SERIALIZE_NUMPY)
    elif len(array) == 1:
        yield b"["
        yield from _numbers(array[0], spell)
        yield b"]"
    else:
        rows = max(1, PIECE_VALUES * len(array) // array.size)
        for first in range(0, len(array), rows):
            part = array[first : first + rows]
            yield b"," if first else b"["
            if part.size <= PIECE_VALUES:
                yield orjson.dumps(spell(part), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            else:  # a single row of many numbers
                yield from _numbers(part[0], spell)
        yield b"]"


def png(pixels: Array, *, columns: int | None = None) -> bytes:
    """Return images as one PNG: a grid without gaps, row by row, its last row filled with black.

    Because nothing stands between them, rows start .. start + columns - 1 of a seed are, byte
    for byte of their pixels, the grid's line that begins with `start`.

    Args:
        pixels: uint8 (n, height, width, channel), of 1 or 3 channels.
        columns: Images in a line; default 8, or n if that is less.
    """
    n, height, width, channels = pixels.shape
    columns = min(columns or GRID_COLUMNS, n)
    lines = -(-n // columns)
    cells = np.zeros((lines * columns, height, width, channels), dtype=np.uint8)
    cells[:n] = pixels
    grid = cells.reshape(lines, columns, height, width, channels).swapaxes(1, 2)
    canvas = grid.reshape(lines * height, columns * width, channels)
    image = Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _size(value: object) -> int:
    """Return how many bytes of arrays there are."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, OrNull):
        return value.array.nbytes
    return value.nbytes if isinstance(value, np.ndarray) else 0

"""Tensors on the wire: JSON values or npy bytes to arrays that are known to be good, and back."""

import io
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from service.errors import InputInvalid, RequestMalformed
from service.interface import Event

Array = npt.NDArray[Any]

_NON_FINITE = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}


def from_json(value: object, *, field: str) -> Array:
    """Return parsed JSON (nested lists of numbers) as an array of float64 or int64.

    Raises:
        InputInvalid: Not a rectangular nest of numbers.
    """
    if not isinstance(value, list):
        raise InputInvalid(
            f"field '{field}': expected nested lists of numbers; got {_json_type(value)}.",
            field=field,
        )
    _check_numbers(value, field=field)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputInvalid(
            f"field '{field}': its lists have different lengths. Send a full array.", field=field
        ) from error
    if array.dtype.kind not in "iuf":
        raise InputInvalid(
            f"field '{field}': expected numbers only, of at most 64 bits; got a larger one.",
            field=field,
        )
    return array


def _check_numbers(value: list[object], *, field: str) -> None:
    """Pass if every leaf is a number.

    It is asked before numpy sees it, which would make room for the longest string in every
    place, and take true for 1.

    Raises:
        InputInvalid: A leaf is something else, or is not as deep as the others.
    """
    level = value
    while (kinds := set(map(type, level))) == {list}:
        level = list(chain.from_iterable(cast(list[list[object]], level)))
    if kinds <= {int, float}:
        return
    text = "its lists have different lengths. Send a full array."
    if kinds <= {int, float, bool}:
        text = "expected numbers only; got true or false in it."
    elif kinds - {list, int, float}:
        text = (
            "expected numbers only; got something else in it (a string, null, true or false). "
            "Categories are sent as their numbers: /models names them."
        )
    raise InputInvalid(f"field '{field}': {text}", field=field)


def from_npy(body: bytes, *, field: str) -> Array:
    """Return the array of an npy file.

    The header is checked against the bytes that really came before any memory is taken, so a
    header that promises terabytes costs nothing.

    Raises:
        RequestMalformed: Not an npy file, cut short, or of Python objects.
    """
    try:
        return _from_npy(body, field=field)
    except RequestMalformed:
        raise
    except Exception as error:  # numpy reads the header as Python, and fails in as many ways
        said = str(error)[:200]
        raise RequestMalformed(f"The body is not an npy file: {said}.", field=field) from error


def _from_npy(body: bytes, *, field: str) -> Array:
    stream = io.BytesIO(body)
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise RequestMalformed("The npy file holds Python objects; send numbers.", field=field)
    if dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise RequestMalformed(
            f"The npy header says {shape} of {dtype}, which is no array of numbers.", field=field
        )
    data = body[stream.tell() :]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if len(data) != count * dtype.itemsize:
        raise RequestMalformed(
            f"The npy header promises {shape} of {dtype}, {count * dtype.itemsize} bytes; "
            f"{len(data)} bytes follow it.",
            field=field,
        )
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def to_npy(array: Array) -> bytes:
    """Return the array as an npy file."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return npy_header(array.shape, little.dtype.str) + little.tobytes()


@lru_cache(maxsize=256)
def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Return how an npy file begins, whose rows follow in C order."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def to_json(array: Array) -> object:
    """Return what orjson can write: the array itself, or lists where JSON has no such number.

    Infinities and NaN become the strings "Infinity", "-Infinity" and "NaN", as protobuf's JSON
    mapping has them.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return np.ascontiguousarray(array)
    return _spell_non_finite(array.tolist())


def _spell_non_finite(value: object) -> object:
    if isinstance(value, list):
        return [_spell_non_finite(item) for item in value]
    return _NON_FINITE.get(str(value), value)


def check(
    array: Array,
    *,
    field: str,
    shape: Sequence[int],
    minimum: float | None = None,
    maximum: float | None = None,
) -> npt.NDArray[np.float32]:
    """Return the array as contiguous float32 of shape (n, *shape), with every value checked.

    Args:
        array: What came.
        field: Its name, for the error.
        shape: Shape of one row.
        minimum: Least value allowed, if there is one.
        maximum: Greatest value allowed, if there is one.

    Raises:
        InputInvalid: Wrong dtype or shape, no rows, not finite in float32, or out of range.
    """
    wanted = f"(n, {', '.join(map(str, shape))})"
    if array.dtype.kind not in "iuf":
        raise InputInvalid(
            f"field '{field}': expected numbers {wanted}; got {array.dtype}.", field=field
        )
    if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
        hint = ""
        if array.shape == tuple(shape):
            hint = " That is one row: wrap it in one more list, because a batch is expected."
        raise InputInvalid(
            f"field '{field}': expected shape {wanted}; got {tuple(array.shape)}.{hint}",
            field=field,
        )
    if array.shape[0] == 0:
        raise InputInvalid(f"field '{field}': expected at least one row; got none.", field=field)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    _check_values(values, field=field, minimum=minimum, maximum=maximum)
    return values


def check_categories(values: Array, event: Event, *, field: str) -> None:
    """Pass if each categorical feature of each row is the number of a category.

    Raises:
        InputInvalid: One is not.
    """
    for column, names in enumerate(event.categories):
        if not names:
            continue
        given = values[:, column]
        wrong = np.flatnonzero((given < 0) | (given >= len(names)) | (given % 1 != 0))
        if len(wrong):
            feature = event.features[column] if event.features else column
            raise InputInvalid(
                f"field '{field}': row {wrong[0]} has {given[wrong[0]]:g} for {feature}; expected "
                f"0 to {len(names) - 1} ({reprlib.repr(list(names))}).",
                field=field,
            )


def _check_values(
    values: npt.NDArray[np.float32], *, field: str, minimum: float | None, maximum: float | None
) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        where = _position(~finite)
        raise InputInvalid(
            f"field '{field}': every value must be finite in float32; "
            f"the one at {where} is {values[tuple(where)]}.",
            field=field,
        )
    outside = np.zeros(values.shape, dtype=bool)
    if minimum is not None:
        outside |= values < minimum
    if maximum is not None:
        outside |= values > maximum
    if outside.any():
        where = _position(outside)
        is_picture = maximum == 1 and values.max() > 1 and values.ndim == 4
        hint = " Divide 8-bit pixels by 255." if is_picture else ""
        raise InputInvalid(
            f"field '{field}': every value must lie in [{minimum}, {maximum}]; "
            f"the one at {where} is {values[tuple(where)]}.{hint}",
            field=field,
        )


def _position(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(axis) for axis in np.unravel_index(int(mask.argmax()), mask.shape)]


def _json_type(value: object) -> str:
    names = {dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")

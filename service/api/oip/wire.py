"""The Open Inference Protocol on the wire: JSON with tensors in it or behind it, and back.

With the binary tensor extension a body is a JSON header and then the raw tensors, little-endian
and row-major, in the order in which the header lists them. Nothing here knows HTTP or a model:
what a call may hold is said by tensor specs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from service import tensors
from service.errors import InputInvalid, RequestMalformed
from service.interface import DType, TensorSpec
from service.tensors import Array

DATATYPE: dict[DType, str] = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
"""The protocol's names of what graphs take and answer."""
_BYTES: dict[DType, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
}
_NOT_SERVED = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset",
               "classification")  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """One output that a request asks for, and whether its bytes shall stand behind the JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class Call:
    """An inference request whose tensors have the datatype of their spec, and some shape.

    Args:
        id: To be sent back.
        parameters: Of the request, without `binary_data_output`; not checked.
        inputs: By name. Neither shape nor any value is checked.
        outputs: In the order of the answer.
    """

    id: str | None
    parameters: dict[str, object]
    inputs: dict[str, Array]
    outputs: list[Wanted]


@dataclass(frozen=True)
class Signature:
    """The tensors that a model takes and answers.

    Args:
        inputs: In order.
        outputs: In order.
        optional: Names of the inputs that may be left out.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional: frozenset[str]


def read(body: bytes, header_length: int | None, signature: Signature) -> Call:
    """Return what a body asks for.

    Args:
        body: Not compressed.
        header_length: Bytes of JSON at its beginning; None for all, 0 for no JSON but the bytes
            of the only input.
        signature: Of the model.

    Raises:
        RequestMalformed: Not what the protocol says.
        InputInvalid: A tensor has another name, datatype or number of bytes than it should.
    """
    if header_length == 0:
        return _read_raw(body, signature)
    if header_length is None:
        header_length = len(body)
    if header_length > len(body):
        raise RequestMalformed(
            f"Inference-Header-Content-Length says {header_length}, the body has {len(body)} bytes."
        )
    try:
        header = orjson.loads(memoryview(body)[:header_length])
    except orjson.JSONDecodeError as error:
        raise RequestMalformed(
            f"The body is not JSON: {error}. If tensors follow it, the header "
            "Inference-Header-Content-Length must say how long the JSON is."
        ) from error
    if not isinstance(header, dict):
        raise RequestMalformed('The body must be a JSON object such as {"inputs": [...]}.')
    name = header.get("id")
    if name is not None and not isinstance(name, str):
        raise RequestMalformed(f"'id': expected a string; got {_kind(name)}.")
    parameters = _parameters(header, "the request")
    binary = _flag(parameters, "binary_data_output") or False
    parameters.pop("binary_data_output", None)
    inputs = _inputs(header, memoryview(body)[header_length:], signature)
    outputs = _outputs(header, signature.outputs, binary=binary)
    return Call(name, parameters, inputs, outputs)


def write(
    header: Mapping[str, object], arrays: Mapping[str, Array], call: Call
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of an answer's body, and how long its JSON is if tensors follow it.

    Args:
        header: What the JSON says beside `id` and `outputs`.
        arrays: All that the call wants.
        call: What was asked for.
    """
    outputs: list[dict[str, object]] = []
    behind: list[bytes | memoryview] = []
    for wanted in call.outputs:
        array = arrays[wanted.name]
        dtype: Any = array.dtype.name
        said = {"name": wanted.name, "datatype": DATATYPE[dtype], "shape": list(array.shape)}
        if wanted.is_binary:
            behind.append(np.ascontiguousarray(array, dtype=_BYTES[dtype]).data.cast("B"))
            outputs.append({**said, "parameters": {"binary_data_size": array.nbytes}})
        else:
            outputs.append({**said, "data": tensors.to_json(array.reshape(-1))})
    known = {} if call.id is None else {"id": call.id}
    # Without a newline at its end: some clients count the bytes of the JSON themselves.
    text = orjson.dumps({**known, **header, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return [text, *behind], len(text) if behind else None


def _read_raw(body: bytes, signature: Signature) -> Call:
    """Return the call that bytes alone are: rows of the only input that must be there.

    The protocol takes them for one row. Here any number of whole rows will do.
    """
    candidates = [spec for spec in signature.inputs if spec.name not in signature.optional]
    # What may be left out is left out, unless there is nothing else.
    candidates = candidates or list(signature.inputs)
    if len(candidates) != 1:
        names = ", ".join(spec.name for spec in candidates)
        raise RequestMalformed(
            f"A body without JSON is the bytes of one input; this model needs {names}. Say which "
            "bytes are which in a JSON header."
        )
    spec = candidates[0]
    row = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
    size = math.prod(row) * _BYTES[spec.dtype].itemsize
    if not body or len(body) % size:
        raise InputInvalid(
            f"field '{spec.name}': expected rows of {size} bytes "
            f"({spec.describe()}); got {len(body)} bytes.",
            field=spec.name,
        )
    array = np.frombuffer(body, _BYTES[spec.dtype]).reshape(-1, *row)
    wanted = [Wanted(each.name, is_binary=True) for each in signature.outputs]
    return Call(None, {}, {spec.name: array}, wanted)


def _inputs(
    header: Mapping[str, object], tail: memoryview, signature: Signature
) -> dict[str, Array]:
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: dict[str, Array] = {}
    position = 0
    for item in _objects(header, "inputs"):
        name = item["name"]
        if name not in specs:
            raise InputInvalid(
                f"input '{name}': unknown here. Known are: {', '.join(specs)}.", field=name
            )
        if name in arrays:
            raise InputInvalid(f"input '{name}': it is given twice.", field=name)
        spec = specs[name]
        shape = _shape(item, spec)
        parameters = _parameters(item, f"input '{name}'")
        size = parameters.get("binary_data_size")
        if (size is None) == (item.get("data") is None):
            raise RequestMalformed(
                f"input '{name}': expected either 'data' or the parameter 'binary_data_size'; "
                f"got {'neither' if size is None else 'both'}.",
                field=name,
            )
        if size is None:
            arrays[name] = _from_json(item["data"], spec, shape)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise RequestMalformed(f"input '{name}': 'binary_data_size' is no size.", field=name)
        arrays[name] = _from_bytes(tail[position : position + size], size, spec, shape)
        position += size
    if position != len(tail):
        raise RequestMalformed(
            f"After the JSON come {len(tail)} bytes; its binary_data_size add up to {position}."
        )
    return arrays


MOST_AXES = 8
MOST_VALUES = 2**40
"""No model has as many, and numpy refuses what is larger even for an array that is empty. What
holds values is found out by the bytes that came."""


def _shape(item: Mapping[str, Any], spec: TensorSpec) -> list[int]:
    """Return the shape that an input claims, once its datatype is the right one."""
    name, shape = spec.name, item.get("shape")
    if item.get("datatype") != DATATYPE[spec.dtype]:
        raise InputInvalid(
            f"input '{name}': expected datatype {DATATYPE[spec.dtype]}; "
            f"got {_short(item.get('datatype'))}.",
            field=name,
        )
    if not isinstance(shape, list) or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise RequestMalformed(f"input '{name}': 'shape' must be a list of integers.", field=name)
    claims = math.prod(max(1, axis) for axis in shape)
    if len(shape) > MOST_AXES or (0 in shape and claims > MOST_VALUES):
        raise InputInvalid(
            f"input '{name}': expected at most {MOST_AXES} axes and {MOST_VALUES} values; "
            f"got {_short(shape)}.",
            field=name,
        )
    return shape


def _from_bytes(data: memoryview, size: int, spec: TensorSpec, shape: list[int]) -> Array:
    dtype = _BYTES[spec.dtype]
    # Python's integers: a shape cannot overflow them.
    expected = math.prod(shape) * dtype.itemsize
    if size != expected or len(data) != size:
        raise InputInvalid(
            f"input '{spec.name}': unexpected size: shape {shape} of {DATATYPE[spec.dtype]} is "
            f"{expected} bytes; 'binary_data_size' says {size}, and {len(data)} came.",
            field=spec.name,
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    # The JSON before it may be of any length, and a graph reads whole words.
    return array if array.flags.aligned else array.copy()


def _from_json(value: object, spec: TensorSpec, shape: list[int]) -> Array:
    array = tensors.from_json(value, field=spec.name)
    if array.size != math.prod(shape) or (array.ndim > 1 and list(array.shape) != shape):
        raise InputInvalid(
            f"input '{spec.name}': 'shape' says {shape}, {math.prod(shape)} values; 'data' is "
            f"{list(array.shape)}, {array.size} values. Send it flat, or nested as its shape says.",
            field=spec.name,
        )
    if spec.dtype == "float32":
        return array.reshape(shape)
    limits = np.iinfo(spec.dtype)
    fits = array.dtype.kind == "i" and not ((array < limits.min) | (array > limits.max)).any()
    if array.size and not fits:
        raise InputInvalid(
            f"input '{spec.name}': expected integers of {DATATYPE[spec.dtype]}, "
            f"{limits.min} to {limits.max}.",
            field=spec.name,
        )
    return array.astype(spec.dtype).reshape(shape)


def _outputs(
    header: Mapping[str, object], specs: Iterable[TensorSpec], *, binary: bool
) -> list[Wanted]:
    known = [spec.name for spec in specs]
    if not header.get("outputs"):
        return [Wanted(name, binary) for name in known]
    wanted: dict[str, Wanted] = {}
    for item in _objects(header, "outputs"):
        name = item["name"]
        if name not in known:
            raise InputInvalid(
                f"output '{name}': unknown here. Known are: {', '.join(known)}.", field=name
            )
        if name in wanted:
            raise InputInvalid(f"output '{name}': it is asked for twice.", field=name)
        own = _flag(_parameters(item, f"output '{name}'"), "binary_data")
        wanted[name] = Wanted(name, binary if own is None else own)
    return list(wanted.values())


def _objects(header: Mapping[str, object], key: str) -> Sequence[dict[str, Any]]:
    """Return a list of the header whose members are objects with a name."""
    items = header.get(key)
    if items is None:
        items = []
    if not isinstance(items, list):
        raise RequestMalformed(f"'{key}': expected a list; got {_kind(items)}.")
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise RequestMalformed(f"'{key}': each must be an object with a 'name'.")
    return items


def _parameters(item: Mapping[str, object], where: str) -> dict[str, object]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestMalformed(
            f"{where}: expected an object of parameters; got {_kind(parameters)}."
        )
    for name in _NOT_SERVED:
        if name in parameters:
            raise RequestMalformed(f"{where}: '{name}' belongs to an extension not served here.")
    return dict(parameters)


def _flag(parameters: Mapping[str, object], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestMalformed(f"'{name}': expected true or false; got {_kind(value)}.")
    return value


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(
        type(value), "a number"
    )


def _short(value: object) -> str:
    return "none" if value is None else str(value)[:40]

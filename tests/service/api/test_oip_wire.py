"""The protocol's bodies, byte by byte."""

import contextlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from service.api.oip import wire
from service.api.oip.wire import Call, Signature, Wanted
from service.errors import InputInvalid, RequestMalformed, ServiceError
from service.interface import TensorSpec
from service.tensors import Array

Z = TensorSpec(name="z", shape=("batch", 2))
LABEL = TensorSpec(name="label", dtype="int64", shape=("batch",))
NOISE = TensorSpec(name="noise", shape=("batch", 2), noise="normal")
X = TensorSpec(name="x", shape=("batch", 3))
PIXELS = TensorSpec(name="pixels", dtype="uint8", shape=("batch", 1))
SIGNATURE = Signature((Z, LABEL, NOISE), (X, PIXELS), frozenset({"noise"}))
ONE = Signature((Z, NOISE), (X,), frozenset({"noise"}))

z = {"name": "z", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, 3, 4]}
label = {"name": "label", "datatype": "INT64", "shape": [2], "data": [0, 1]}


def binary(item: dict[str, Any], size: object) -> dict[str, Any]:
    bare = {key: value for key, value in item.items() if key != "data"}
    return bare | {"parameters": {"binary_data_size": size}}


def body(*inputs: dict[str, Any], tail: bytes = b"", **rest: object) -> tuple[bytes, int]:
    header = orjson.dumps({"inputs": inputs, **rest})
    return header + tail, len(header)


def read(*inputs: dict[str, Any], tail: bytes = b"", **rest: object) -> Call:
    return wire.read(*body(*inputs, tail=tail, **rest), SIGNATURE)


def test_numbers_are_read_flat_or_nested() -> None:
    flat, nested = read(z, label), read(z | {"data": [[1, 2.5], [3, 4]]}, label)
    for call in (flat, nested):
        np.testing.assert_array_equal(call.inputs["z"], [[1, 2.5], [3, 4]])
        np.testing.assert_array_equal(call.inputs["label"], [0, 1])
        assert call.inputs["label"].dtype == np.int64


def test_bytes_and_json_may_stand_in_one_request() -> None:
    values = np.array([[1, 2], [3, 4]], "<f4")
    # A header of any length: what follows it is seldom aligned.
    for padding in range(4):
        call = read(binary(z, 16), label, tail=values.tobytes(), id="i" * padding)
        np.testing.assert_array_equal(call.inputs["z"], values)
        assert call.inputs["z"].flags.aligned
        np.testing.assert_array_equal(call.inputs["label"], [0, 1])


def test_bytes_are_taken_in_the_order_of_the_inputs() -> None:
    numbers, labels = np.array([[1, 2], [3, 4]], "<f4"), np.array([2, 1], "<i8")
    tail = labels.tobytes() + numbers.tobytes()
    call = read(binary(label, 16), binary(z, 16), tail=tail)
    np.testing.assert_array_equal(call.inputs["z"], numbers)
    np.testing.assert_array_equal(call.inputs["label"], labels)


def test_body_without_a_header_length_is_all_json() -> None:
    whole, _ = body(z, label)
    assert set(wire.read(whole, None, SIGNATURE).inputs) == {"z", "label"}


def test_raw_body_is_rows_of_the_only_input() -> None:
    values = np.arange(6, dtype="<f4").reshape(3, 2)
    for rows in (1, 3):
        call = wire.read(values[:rows].tobytes(), 0, ONE)
        np.testing.assert_array_equal(call.inputs["z"], values[:rows])
        assert call.outputs == [Wanted("x", is_binary=True)]
    with pytest.raises(InputInvalid, match="expected rows of 8 bytes"):
        wire.read(b"123", 0, ONE)
    with pytest.raises(InputInvalid, match="got 0 bytes"):
        wire.read(b"", 0, ONE)
    with pytest.raises(RequestMalformed, match="this model needs z, label"):
        wire.read(values.tobytes(), 0, SIGNATURE)


def test_all_outputs_are_wanted_unless_some_are_named() -> None:
    assert read(z, label).outputs == [Wanted("x", False), Wanted("pixels", False)]
    assert read(z, label, outputs=[]).outputs == read(z, label).outputs
    assert read(z, label, outputs=[{"name": "pixels"}]).outputs == [Wanted("pixels", False)]


def test_word_of_one_output_counts_more_than_that_of_the_request() -> None:
    outputs = [{"name": "x", "parameters": {"binary_data": False}}, {"name": "pixels"}]
    call = read(z, label, outputs=outputs, parameters={"binary_data_output": True, "seed": 1})
    assert call.outputs == [Wanted("x", False), Wanted("pixels", True)]
    assert call.parameters == {"seed": 1}
    call = read(z, label, outputs=[{"name": "x", "parameters": {"binary_data": True}}])
    assert call.outputs == [Wanted("x", True)]


MALFORMED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no list": ((), {"inputs": {}}, "expected a list; got an object"),
    "no name": (({"datatype": "FP32"},), {}, "an object with a 'name'"),
    "id": ((z, label), {"id": 3}, "'id': expected a string; got a number"),
    "parameters": ((z, label), {"parameters": []}, "an object of parameters; got a list"),
    "flag": ((z, label), {"parameters": {"binary_data_output": 1}}, "true or false"),
    "unknown": ((z | {"name": "y"},), {}, "input 'y': unknown here. Known are: z, label, noise"),
    "twice": ((z, z), {}, "input 'z': it is given twice"),
    "datatype": ((z | {"datatype": "FP64"},), {}, "expected datatype FP32; got FP64"),
    "no datatype": ((z | {"datatype": None},), {}, "expected datatype FP32; got none"),
    "shape": ((z | {"shape": "2,2"},), {}, "'shape' must be a list of integers"),
    "negative": ((z | {"shape": [-1, 2]},), {}, "'shape' must be a list of integers"),
    "true": ((z | {"shape": [True, 2]},), {}, "'shape' must be a list of integers"),
    "too few": ((z | {"data": [1, 2, 3]},), {}, "4 values; 'data' is"),
    "nested wrongly": ((z | {"data": [[1, 2, 3, 4]]},), {}, "nested as its shape says"),
    "overflow": ((z | {"shape": [2**62, 2**62]},), {}, "'data' is"),
    "text": ((z | {"data": ["1", "2", "3", "4"]},), {}, "expected numbers only"),
    "booleans": ((z | {"data": [True, 1, 1, 1]},), {}, "true or false"),
    "fraction": ((label | {"data": [0.5, 1]},), {}, "expected integers of INT64"),
    "too large": ((label | {"data": [2**63, 1]},), {}, "expected integers of INT64"),
    "no data": ((binary(z, None),), {}, "got neither"),
    "both": ((z | binary(z, 16),), {}, "got both"),
    "no size": ((binary(z, "16"),), {}, "is no size"),
    "size below": ((binary(z, -1),), {}, "is no size"),
    "size of another shape": ((binary(z, 12),), {"tail": b"0" * 12}, "unexpected size"),
    "overflow of bytes": ((binary(z | {"shape": [2**62, 2**62]}, 0),), {}, "unexpected size"),
    "bytes missing": ((binary(z, 16),), {"tail": b"0" * 12}, "and 12 came"),
    "bytes left": ((binary(z, 16), label), {"tail": b"0" * 17}, "add up to 16"),
    "shared memory": (
        (z | {"parameters": {"shared_memory_region": "r"}},), {}, "extension not served",
    ),
    "output": ((z, label), {"outputs": [{"name": "y"}]}, "output 'y': unknown here"),
    "output twice": ((z, label), {"outputs": [{"name": "x"}] * 2}, "asked for twice"),
    "classes": (
        (z, label),
        {"outputs": [{"name": "x", "parameters": {"classification": 3}}]},
        "extension not served",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_what_breaks_the_protocol_is_refused_with_its_reason(case: str) -> None:
    inputs, rest, reason = MALFORMED[case]
    with pytest.raises(ServiceError, match=reason):
        read(*inputs, **rest)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'{"inputs": [1]}', b"\xff"])
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(RequestMalformed):
        wire.read(text, None, SIGNATURE)


def test_header_cannot_be_longer_than_the_body() -> None:
    whole, length = body(z, label)
    with pytest.raises(RequestMalformed, match=f"says {length + 1}, the body has {length}"):
        wire.read(whole, length + 1, SIGNATURE)
    with pytest.raises(RequestMalformed, match="not JSON"):
        wire.read(whole, length - 1, SIGNATURE)


def answer(call: Call, **outputs: Array) -> tuple[dict[str, Any], bytes, int | None]:
    parts, length = wire.write({"model_name": "m"}, outputs, call)
    whole = b"".join(parts)
    end = len(whole) if length is None else length
    said: dict[str, Any] = orjson.loads(whole[:end])
    return said, whole[end:], length


def test_answer_holds_numbers_flat_and_spells_what_json_has_not() -> None:
    x = np.array([[1, np.inf, -np.inf], [0, 2, 3]], np.float32)
    call = Call("7", {}, {}, [Wanted("x", False)])
    said, tail, length = answer(call, x=x)
    data = [1, "Infinity", "-Infinity", 0, 2, 3]
    output = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data}
    assert said == {"id": "7", "model_name": "m", "outputs": [output]}
    assert (tail, length) == (b"", None)


def test_answer_holds_bytes_behind_the_json_as_they_are() -> None:
    x, pixels = np.array([[1, -np.inf, 3]], np.float32), np.array([[9]], np.uint8)
    call = Call(None, {}, {}, [Wanted("pixels", True), Wanted("x", True)])
    said, tail, length = answer(call, x=x.T.copy().T, pixels=pixels)
    assert length is not None
    assert "id" not in said
    sizes = [each["parameters"]["binary_data_size"] for each in said["outputs"]]
    assert sizes == [1, 12]
    assert tail == pixels.tobytes() + x.tobytes()


@given(values=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=4)))
def test_bytes_go_round(values: Array) -> None:
    spec = TensorSpec(name="x", shape=("batch", values.shape[1]))
    signature = Signature((spec,), (spec,), frozenset())
    call = Call(None, {}, {}, [Wanted("x", True)])
    parts, length = wire.write({}, {"x": values}, call)
    whole = b"".join(parts)
    said = orjson.loads(whole[:length])
    header = orjson.dumps({"inputs": said["outputs"]})
    again = wire.read(header + whole[length:], len(header), signature)
    np.testing.assert_array_equal(again.inputs["x"], values)


@given(header=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from(["z", "label", "FP32", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters",
                         "binary_data_size", "id", "binary_data"]), inner, max_size=5),
    max_leaves=20,
))  # fmt: skip
def test_no_json_does_worse_than_be_refused(header: object) -> None:
    try:
        text = orjson.dumps(header)
    except orjson.JSONEncodeError:  # an integer of more than 64 bits
        return
    with contextlib.suppress(RequestMalformed, InputInvalid):
        wire.read(text, None, SIGNATURE)

"""JSON and npy to arrays that are known to be good, and back."""

import re

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service import tensors
from service.errors import InputInvalid, RequestMalformed
from service.interface import Event

ROWS = Event(
    kind="vector",
    shape=(2,),
    features=("size", "colour"),
    categories=((), ("blue", "red", "white")),
)


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_number_of_a_category_is_one(colour: float) -> None:
    tensors.check_categories(np.array([[-7.5, 0], [0.3, colour]], np.float32), ROWS, field="x")


@pytest.mark.parametrize("colour", [-1.0, 3.0, 0.5, 1e30])
def test_number_of_no_category_is_refused_by_row_and_feature(colour: float) -> None:
    with pytest.raises(InputInvalid, match=r"row 1 has .* for colour; expected 0 to 2 \(\['blue'"):
        tensors.check_categories(np.array([[1, 0], [1, colour]], np.float32), ROWS, field="x")


@given(arrays.arrays(np.float64, arrays.array_shapes(), elements=st.floats(-1e300, 1e300)))
def test_json_numbers_come_back_as_they_are(array: np.ndarray) -> None:
    written = orjson.dumps(tensors.to_json(array), option=orjson.OPT_SERIALIZE_NUMPY)
    np.testing.assert_array_equal(tensors.from_json(orjson.loads(written), field="x"), array)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([1, [2]], "different lengths"),
        ([["1"]], "numbers only"),
        ([None], "numbers only"),
        ([True], "numbers only"),
        ([[1, 2], [3, True]], "got true or false"),
        ([[[0.5], [False]]], "got true or false"),
        ([1, False], "got true or false"),
        ([{}], "numbers only"),
        ([2**70], "numbers only"),
        ([0.5, 10**400], "numbers only"),
        ({}, "got an object"),
        ("1", "got a string"),
        (1, "got a number"),
        (True, "got a boolean"),
        (None, "got null"),
    ],
)
def test_json_that_is_no_array_is_named(value: object, said: str) -> None:
    with pytest.raises(InputInvalid, match=said) as caught:
        tensors.from_json(value, field="x")
    assert caught.value.field == "x"


@given(
    arrays.arrays(
        st.sampled_from(["<f4", ">f8", "<i8", "|u1", "|b1"]),
        arrays.array_shapes(min_side=0),
    ),
    st.booleans(),
)
def test_npy_comes_back_as_it_is(array: np.ndarray, fortran: bool) -> None:
    if fortran:
        array = np.asfortranarray(array)
    again = tensors.from_npy(tensors.to_npy(array), field="x")
    assert again.shape == array.shape
    np.testing.assert_array_equal(again, array)


def test_npy_header_that_promises_terabytes_takes_no_memory() -> None:
    body = tensors.to_npy(np.zeros((1, 3))).replace(b"(1, 3), ", b"(8**9,),")
    with pytest.raises(RequestMalformed):
        tensors.from_npy(body, field="x")
    body = tensors.to_npy(np.zeros(3)).replace(b"(3,), }          ", b"(999999999999,), }")
    with pytest.raises(RequestMalformed, match="promises"):
        tensors.from_npy(body, field="x")


def test_npy_of_objects_is_not_unpickled() -> None:
    with pytest.raises(RequestMalformed, match="Python objects"):
        tensors.from_npy(tensors.to_npy(np.zeros((1, 3))).replace(b"'<f8'", b"'|O' "), field="x")


def test_infinities_are_spelled() -> None:
    array = np.array([[np.inf, 1.5], [-np.inf, np.nan]])
    assert tensors.to_json(array) == [["Infinity", 1.5], ["-Infinity", "NaN"]]


def test_check_returns_contiguous_float32() -> None:
    values = tensors.check(np.asfortranarray(np.ones((3, 2), int)), field="x", shape=(2,))
    assert values.dtype == np.float32
    assert values.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3)), "expected shape (n, 2); got (2, 3)."),
        (np.zeros(2), "wrap it in one more list"),
        (np.zeros((0, 2)), "at least one row"),
        (np.array([[0, np.nan]]), "the one at [0, 1] is nan"),
        (np.array([[0, 1e39]]), "finite in float32; the one at [0, 1] is inf"),
        (np.array([[0, -0.5]]), "in [0, 1]; the one at [0, 1] is -0.5"),
        (np.array([[0, 200]]), "in [0, 1]; the one at [0, 1] is 200.0."),
        (np.array([["a", "b"]]), "expected numbers (n, 2); got <U1"),
        (np.zeros((1, 2), complex), "got complex128"),
    ],
)
def test_check_says_what_is_wrong_and_where(array: np.ndarray, said: str) -> None:
    with pytest.raises(InputInvalid, match=re.escape(said)):
        tensors.check(array, field="x", shape=(2,), minimum=0, maximum=1)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", b"\0" * 4),
        ("{'descr': '|V0', 'fortran_order': False, 'shape': (2,)}", b""),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10**20 - 1)}", b""),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {10**20 - 1})}}", b""),
        ("{[]: 1}", b""),
        ("-" * 3000 + "1", b""),
        ("{'descr': '<f4'", b""),
    ],
    ids=["negative", "empty type", "sum", "huge", "unhashable", "deep", "cut short"],
)
def test_npy_with_a_crooked_header_is_malformed(header: str, data: bytes) -> None:
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
    with pytest.raises(RequestMalformed) as caught:
        tensors.from_npy(body, field="x")
    assert caught.value.field == "x"
    assert len(caught.value.detail) < 300

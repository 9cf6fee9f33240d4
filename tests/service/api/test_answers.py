"""Which format an Accept header gets, and how arrays are written in it."""

import contextlib
import io

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from starlette.requests import Request

from service import tensors
from service.api import answers
from service.api.answers import OrNull, json, negotiate, png
from service.errors import NotAcceptable
from tests.service.bundles import AFFINE, SHIFT, TILES
from tests.service.conftest import Client

JSON, NPY, PNG = "application/json", "application/x-npy", "image/png"

finite = st.floats(allow_nan=False, allow_infinity=False)

IMAGES = TILES.manifest(TILES.files())
VECTORS = AFFINE.manifest(AFFINE.files())


def asking(*accept: str) -> Request:
    return Request({"type": "http", "headers": [(b"accept", each.encode()) for each in accept]})


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        (["application/*"], JSON),
        (["image/*"], PNG),
        (["image/png"], PNG),
        (["IMAGE/PNG"], PNG),
        (["application/x-npy"], NPY),
        (["image/png;q=0.5, application/x-npy;q=0.6"], NPY),
        (["image/png; q=0.5", "application/x-npy; q=0.4"], PNG),
        (["application/json;q=0, */*"], NPY),
        (["application/*;q=0.2, image/png;q=0.1"], JSON),
        (["*/*;q=0.1, image/png"], PNG),
        (["text/html, */*;q=0.8"], JSON),
        # What browsers send for an <img>, and for a page.
        (["image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"], PNG),
        (["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"], JSON),
        (["application/json;q=many"], JSON),
        (["application/json;charset=utf-8;q=1"], JSON),
    ],
)
def test_accept_gets_what_it_wants_most(accept: list[str], wanted: str) -> None:
    assert negotiate(asking(*accept), IMAGES, makes_events=True) == wanted


@pytest.mark.parametrize("accept", ["text/csv", "application/json;q=0", "*/*;q=0", "image/jpeg"])
def test_what_cannot_be_given_is_not_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="takes none of these"):
        negotiate(asking(accept), IMAGES, makes_events=True)


def test_picture_of_vectors_or_numbers_is_not_acceptable() -> None:
    with pytest.raises(NotAcceptable, match="vectors, and that is no picture"):
        negotiate(asking(PNG), VECTORS, makes_events=True)
    with pytest.raises(NotAcceptable, match="numbers, and that is no picture"):
        negotiate(asking(PNG), IMAGES, makes_events=False)


@given(st.text(st.characters(codec="latin-1"), max_size=60))
def test_no_accept_header_breaks_the_negotiation(accept: str) -> None:
    request = Request({"type": "http", "headers": [(b"accept", accept.encode("latin-1"))]})
    with contextlib.suppress(NotAcceptable):
        assert negotiate(request, IMAGES, makes_events=True) in (JSON, NPY, PNG)


def test_json_spells_what_json_has_not() -> None:
    fields = {
        "plain": np.array([0.1, 2], dtype=np.float32),
        "odd": np.array([[np.inf, -np.inf], [np.nan, 1]]),
        "deep": {"odd": np.array([np.inf])},
        "none": None,
    }
    assert orjson.loads(b"".join(json(fields))) == {
        "plain": [0.1, 2.0],
        "odd": [["Infinity", "-Infinity"], ["NaN", 1.0]],
        "deep": {"odd": ["Infinity"]},
        "none": None,
    }


def test_missing_numbers_are_null() -> None:
    assert b"".join(json({"error": OrNull(np.array([1.0, np.nan]))})) == b'{"error":[1.0,null]}\n'


def test_grid_keeps_every_image_in_its_place() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 3, 2, 3), dtype=np.uint8)
    grid = np.asarray(Image.open(io.BytesIO(png(pixels, columns=4))))
    assert grid.shape == (9, 8, 3)
    for i in range(12):
        cell = grid[i // 4 * 3 : i // 4 * 3 + 3, i % 4 * 2 : i % 4 * 2 + 2]
        np.testing.assert_array_equal(cell, pixels[i] if i < 11 else 0)


@pytest.mark.parametrize(("n", "columns", "size"), [(1, None, (1, 1)), (9, None, (8, 2)),
                                                    (3, 64, (3, 1)), (3, 1, (1, 3))])  # fmt: skip
def test_grid_is_as_wide_as_asked_and_no_wider_than_n(
    n: int, columns: int | None, size: tuple[int, int]
) -> None:
    pixels = np.zeros((n, 1, 1, 1), dtype=np.uint8)
    assert Image.open(io.BytesIO(png(pixels, columns=columns))).size == size


@given(array=npst.arrays(np.float64, npst.array_shapes(max_dims=4, max_side=7), elements=finite))
def test_json_in_pieces_is_that_of_the_whole(array: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PIECE_VALUES", 8)
        pieces = list(json({"model": "m", "x": array, "posterior": {"mean": array, "n": 1}}))
    expected = {"model": "m", "x": array.tolist(), "posterior": {"mean": array.tolist(), "n": 1}}
    assert orjson.loads(b"".join(pieces)) == expected
    assert max(map(len, pieces)) < 8 * 30


@pytest.mark.parametrize("accept", ["application/json", "application/x-npy"])
def test_large_answer_is_sent_in_slices_and_says_its_length(client: Client, accept: str) -> None:
    body = {"model": "affine", "z": np.zeros((60_000, 2)).tolist()}
    answer = client.post("/decode", json=body, headers={"Accept": accept})
    assert int(answer.headers["content-length"]) == len(answer.content) > answers.SLICE_BYTES
    x = tensors.from_npy(answer.content, field="x") if "npy" in accept else answer.json()["x"]
    np.testing.assert_allclose(x, np.broadcast_to(SHIFT, (60_000, 2)), rtol=1e-6)

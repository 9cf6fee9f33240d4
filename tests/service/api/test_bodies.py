"""Request bodies: parameters in two places, JSON, npy, pictures, and what is none of these."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.api.bodies import read_picture
from service.errors import InputInvalid, RequestMalformed
from service.interface import Event
from tests.service.conftest import Client, MakeClient

Body = bytes | AsyncIterator[bytes]

GREY = Event(kind="image", shape=(1, 4, 4), minimum=0, maximum=1)
COLOUR = Event(kind="image", shape=(3, 2, 2), minimum=0, maximum=1)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def colours(seed: int = 0, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode) if channels > 2 else Image.fromarray(pixels[:, :, 0])


def post(
    client: Client, body: Body, kind: str, query: str = "model=grains&seed=1"
) -> httpx.Response:
    return client.post(f"/encode?{query}", content=body, headers={"Content-Type": kind})


def test_parameters_come_from_query_and_body_alike(client: Client) -> None:
    whole = client.post("/sample", json={"model": "affine", "n": 2, "seed": 3})
    parts = client.post("/sample?n=2&seed=3", json={"model": "affine", "n": 2})
    assert parts.content == whole.content


def test_parameter_that_differs_between_query_and_body_is_refused(client: Client) -> None:
    answer = client.post("/sample?n=3", json={"model": "affine", "n": 2})
    assert (answer.status_code, answer.json()["field"]) == (422, "n")
    assert "the query says 3, the body 2" in answer.json()["detail"]


def test_parameter_twice_in_the_query_is_refused(client: Client) -> None:
    answer = client.get("/sample?model=affine&n=2&n=2")
    assert (answer.status_code, answer.json()["field"]) == (422, "n")


def test_unknown_parameter_lists_the_known_ones(client: Client) -> None:
    for answer in (
        client.get("/sample?model=affine&number=2"),
        client.post("/sample", json={"model": "affine", "number": 2}),
    ):
        assert (answer.status_code, answer.json()["field"]) == (422, "number")
        assert "Known are: model, version, seed, label, context," in answer.json()["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", -1),
        ("n", True),
        ("n", 1.5),
        ("n", "2"),
        ("n", None),
        ("n", 10**30),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", False),
        ("start", -1),
        ("start", 2**53),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", True),
        ("observation", "mode"),
        ("include", "z"),
        ("include", ["x"]),
        ("columns", 0),
        ("columns", 65),
        ("version", 0),
        ("version", "1"),
        ("model", 3),
        ("model", ["affine"]),
    ],
)
def test_bad_value_in_json_names_its_field(client: Client, field: str, value: object) -> None:
    answer = client.post("/sample", json={"model": "affine", field: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "input_invalid")
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    "query",
    ["n=0", "n=-1", "n=true", "n=1.5", "n=", "n=two", "n=" + "9" * 5000, "seed=-1", "start=-1",
     "temperature=nan", "temperature=inf", "temperature=3", "observation=mode", "include=x",
     "columns=65", "version=0", "label=a", "label=1,"],
)  # fmt: skip
def test_bad_value_in_the_query_names_its_field(client: Client, query: str) -> None:
    answer = client.get(f"/sample?model=tiles&{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, query.partition("=")[0])
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("sample", {"model": "tiles", "label": ["a"] * 100_000}),
        ("sample", {"model": "tiles", "include": ["a"] * 100_000}),
        ("sample", {"model": "tiles", "n": [0] * 100_000}),
        ("sample", {"model": "tiles", "m" * 100_000: 0}),
        ("sample", {str(i): i for i in range(100_000)}),
        ("encode?model=ppca&x=0", {"x": [0] * 100_000}),
    ],
)
def test_sentence_stays_short_whatever_came(client: Client, path: str, body: object) -> None:
    answer = client.post(f"/{path}", json=body)
    assert answer.status_code == 422
    assert len(answer.content) < 1000


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null", b"true"])
def test_json_that_is_no_object_is_refused(client: Client, body: bytes) -> None:
    answer = post(client, body, "application/json")
    assert answer.status_code == 422
    assert "must be a JSON object" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b'{"model"', b"{'model': 1}", b'{"x": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"x":' * 2000],
)
def test_broken_json_is_malformed(client: Client, body: bytes) -> None:
    answer = post(client, body, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


def test_deep_json_is_refused_and_the_service_goes_on(client: Client) -> None:
    deep = b'{"model": "affine", "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    assert post(client, deep, "application/json", query="").status_code == 422
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "multipart/form-data"])
def test_body_of_an_unknown_kind_is_refused_by_name(client: Client, kind: str) -> None:
    answer = post(client, b"0123", kind)
    assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported")
    assert kind in answer.json()["detail"]


def test_body_without_a_kind_is_refused(client: Client) -> None:
    answer = client.post("/encode?model=grains", content=b"0123")
    assert answer.status_code == 415
    assert "without a Content-Type" in answer.json()["detail"]


def test_object_that_curl_sends_as_a_form_is_read_as_json(client: Client) -> None:
    for headers in ({"Content-Type": "application/x-www-form-urlencoded"}, {}):
        answer = client.post("/sample", content=b'{"model": "affine"}', headers=headers)
        assert answer.status_code == 200


def test_json_may_name_its_charset(client: Client) -> None:
    kind = "Application/JSON; charset=utf-8"
    assert post(client, b'{"model": "affine", "x": [[0, 0]]}', kind, query="").status_code == 200


def test_compressed_body_is_refused(client: Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    answer = client.post("/sample", content=zlib.compress(b"{}"), headers=headers)
    assert answer.status_code == 415


def test_sample_reads_no_tensor(client: Client) -> None:
    answer = client.post(
        "/sample?model=affine",
        content=npy(np.zeros(2)),
        headers={"Content-Type": "application/x-npy"},
    )
    assert answer.status_code == 415


@pytest.mark.parametrize("path", ["encode", "log-density", "elbo"])
def test_missing_x_says_its_shape(client: Client, path: str) -> None:
    for answer in (
        client.post(f"/{path}?model=ppca"),
        client.post(f"/{path}", json={"model": "ppca"}),
        client.post(f"/{path}", json={"model": "ppca", "x": None}),
    ):
        assert (answer.status_code, answer.json()["field"]) == (422, "x")
        assert "(n, 3)" in answer.json()["detail"]


def test_one_row_without_its_batch_axis_gets_a_hint(client: Client) -> None:
    answer = client.post("/encode", json={"model": "ppca", "x": [0, 0, 0]})
    assert answer.status_code == 422
    assert "wrap it in one more list" in answer.json()["detail"]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f8", "<i4", "|u1"])
def test_npy_of_any_number_is_read(client: Client, dtype: str) -> None:
    x = np.array([[[[1, 0], [0, 1]]] * 3]).astype(dtype)
    scale = 255 if dtype == "|u1" else 1
    ours = post(client, npy(x * np.array(scale).astype(dtype)), "application/x-npy").json()
    as_json = {"model": "grains", "seed": 1, "x": x.tolist()}
    assert ours == client.post("/encode", json=as_json).json()


def test_npy_in_fortran_order_is_read(client: Client) -> None:
    x = np.random.default_rng(0).normal(size=(4, 3))
    answers = [
        post(client, npy(order(x)), "application/x-npy", "model=ppca").json()["z"]
        for order in (np.ascontiguousarray, np.asfortranarray)
    ]
    assert answers[0] == answers[1]


def test_bytes_of_a_vector_are_numbers_and_not_pixels(client: Client) -> None:
    x = np.array([[1, 2, 3]], dtype=np.uint8)
    ours = post(client, npy(x), "application/x-npy", "model=ppca").json()
    assert ours == client.post("/encode", json={"model": "ppca", "x": x.tolist()}).json()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 4)),
        np.zeros(3),
        np.zeros((0, 3)),
        np.full((1, 3), np.nan),
        np.full((1, 3), np.inf),
        np.full((1, 3), 1e39),
        np.zeros((1, 3), complex),
        np.zeros((1, 3), bool),
        np.zeros((1, 3), "U1"),
        np.zeros((1, 3), "datetime64[s]"),
        np.zeros((1,), [("a", "f4", 3)]),
    ],
)
def test_npy_of_the_wrong_numbers_is_invalid(client: Client, array: np.ndarray) -> None:
    answer = post(client, npy(array), "application/x-npy", "model=ppca")
    assert (answer.status_code, answer.json()["field"]) == (422, "x")


@pytest.mark.parametrize(
    "body",
    [
        b"not npy",
        npy(np.zeros((1, 3)))[:-1],
        npy(np.zeros((1, 3))) + b"\0",
        npy(np.zeros((1, 3)))[:40],
        npy(np.array([[1, "a", None]], dtype=object)),
        npy(np.zeros((1, 3))).replace(b"(1, 3)", b"(9**9)"),
        npy(np.zeros((1, 3))).replace(b"'<f8'", b"'|S0'"),
        npy(np.zeros((1, 3))).replace(b"(1, 3)", b"(-1,3)"),
        b"\x93NUMPY\x09\x00" + npy(np.zeros((1, 3)))[8:],
    ],
)
def test_broken_npy_is_malformed(client: Client, body: bytes) -> None:
    answer = post(client, body, "application/x-npy", "model=ppca")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


@settings(max_examples=100)
@given(data=st.data())
def test_no_damage_to_an_npy_or_a_picture_is_our_fault(client: Client, data: st.DataObject) -> None:
    kind, whole = data.draw(
        st.sampled_from(
            [
                ("application/x-npy", npy(np.zeros((1, 3, 2, 2)))),
                ("image/png", encoded(colours())),
                ("image/png", encoded(colours().convert("P"))),
                ("image/jpeg", encoded(colours(), "JPEG")),
            ]
        )
    )
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(1, len(body)))]
    assert post(client, bytes(body), kind).status_code in (200, 400, 422)


def test_picture_is_one_row(client: Client) -> None:
    image = colours()
    x = np.asarray(image).transpose(2, 0, 1)[None] / 255
    expected = client.post("/encode", json={"model": "grains", "seed": 1, "x": x.tolist()}).json()
    answer = post(client, encoded(image), "image/png")
    assert answer.status_code == 200
    assert answer.json() == expected


def test_jpeg_is_read() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    x = read_picture(encoded(image, "JPEG"), COLOUR, kind="JPEG")
    np.testing.assert_allclose(x[0, :, 0, 0], [1, 0, 0], atol=0.02)


def test_picture_and_its_type_must_agree() -> None:
    with pytest.raises(RequestMalformed, match=r"not a PNG file\.$"):
        read_picture(encoded(colours(), "JPEG"), COLOUR, kind="PNG")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_picture_of_any_mode_becomes_the_channels_of_the_event(mode: str) -> None:
    white = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    x = read_picture(encoded(white), GREY, kind="PNG")
    assert x.shape == (1, 1, 4, 4)
    assert x.dtype == np.float32
    assert (x == 1).all()


def test_grey_is_the_luma_of_the_colours() -> None:
    x = read_picture(encoded(Image.new("RGB", (4, 4), (0, 255, 0))), GREY, kind="PNG")
    np.testing.assert_allclose(x, 0.587, atol=0.002)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_shows_black(mode: str) -> None:
    image = Image.new("RGBA", (2, 2), (255, 255, 255, 0)).convert(mode)
    image.putpixel((0, 0), (255,) * (len(mode) - 1) + (128,))
    x = read_picture(encoded(image), COLOUR, kind="PNG")
    np.testing.assert_allclose(x[0, :, 0, 0], 128 / 255, atol=0.005)
    assert x.sum() == pytest.approx(3 * 128 / 255, abs=0.02)


def test_transparent_entry_of_a_palette_shows_black() -> None:
    image = Image.new("RGB", (2, 2), (255, 255, 255)).convert("P")
    index = image.getpixel((0, 0))
    assert read_picture(encoded(image, transparency=index), COLOUR, kind="PNG").sum() == 0


def test_picture_of_another_size_is_told_both() -> None:
    with pytest.raises(InputInvalid, match=r"2 wide and 2 high; got 3 by 4"):
        read_picture(encoded(Image.new("L", (3, 4))), COLOUR, kind="PNG")


def test_deep_and_animated_pictures_are_refused() -> None:
    with pytest.raises(InputInvalid, match="16 bits"):
        read_picture(encoded(Image.new("I;16", (4, 4))), GREY, kind="PNG")
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 255)]
    animated = encoded(frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(InputInvalid, match="animated"):
        read_picture(animated, GREY, kind="PNG")


def test_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    whole = encoded(colours())
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = whole[:16] + header + crc + whole[33:]
    tracemalloc.start()
    with pytest.raises((InputInvalid, RequestMalformed)):
        read_picture(bomb, COLOUR, kind="PNG")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_picture_is_no_row_of_a_table(client: Client) -> None:
    answer = post(client, encoded(colours()), "image/png", "model=ppca")
    assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported")


def test_body_over_the_limit_is_refused_by_its_length(make_client: MakeClient) -> None:
    client = make_client(max_body_bytes=1024)
    answer = post(client, b"0" * 1025, "application/json")
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert "1024" in answer.json()["detail"]
    assert post(client, b"{" + b" " * 1022 + b"}", "application/json").status_code == 422


def test_body_without_a_length_is_counted_while_it_comes(make_client: MakeClient) -> None:
    client = make_client(max_body_bytes=1024)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"0" * 128

    answer = post(client, chunks(), "application/json")
    assert answer.status_code == 413

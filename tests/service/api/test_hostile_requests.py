"""What nobody sends by accident is answered like any other mistake: by a problem, never by 5xx."""

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from tests.service.conftest import Client

JSON = {"Content-Type": "application/json"}
PROBLEM = "application/problem+json"
OURS = re.compile(r"0x[0-9a-f]{6}|NoneType|Traceback|object at|<class|_io\.")
"""What tells of our insides and helps nobody."""

HEADERS = [
    ("Accept", "/"),
    ("Accept", ";q=1"),
    ("Accept", "image/png;q=-1"),
    ("Accept", "*/*;q=1e400"),
    ("Accept", "application/json;q=\u00b2".encode().decode("latin-1")),
    ("Accept", ", ," * 1000),
    ("Accept", "a" * 50_000),
    ("If-None-Match", "W/"),
    ("If-None-Match", '"' * 10_000),
    ("Range", "bytes=0-1"),
    ("Expect", "200-maybe"),
    ("Content-Encoding", "br"),
    ("Content-Type", ";;;"),
    ("Content-Type", "application/x-npy; charset=\x00".replace("\x00", "%00")),
    ("Pushforward-Timeout-Ms", "9" * 19),
    ("Pushforward-Timeout-Ms", "\u0661".encode().decode("latin-1")),
    ("X-Request-Id", "a b"),
    ("X-Request-Id", "x" * 10_000),
    ("traceparent", "00-zz-zz-zz"),
    ("Inference-Header-Content-Length", "-1"),
    ("Inference-Header-Content-Length", "9" * 19),
    ("Accept-Encoding", "gzip;q=nan, deflate;q=inf"),
    ("Host", "[::1"),
    ("Connection", "close, upgrade"),
]

DEEP = "[" * 100_000
X: list[object] = [
    None, True, 0, "x", {}, [], [[]], [[[]]], [None], [[None, None]], [["a", "b"]], [[1], [1, 2]],
    [[1, 2], 3], [[1e39, 0]], [[-1e308, 1e308]], [[10**400, 0]], [[True, False]], [[{}, {}]],
    [[1, 2]] * 3 + [[1, [2]]], [[1, "2"]], ["NaN", "Infinity"], [["NaN", 0]], [[[1, 2]]] * 2,
]  # fmt: skip


def faults(answer: httpx.Response) -> Iterator[str]:
    """Yield what is wrong with an answer."""
    status, kind = answer.status_code, answer.headers["content-type"]
    if status >= 500:
        yield f"{status}"
    if status >= 400:
        is_told = "error" in answer.json() if "/v2" in answer.url.path else kind == PROBLEM
        if not is_told:
            yield f"{kind}: {answer.text}"
        if OURS.search(answer.text):
            yield answer.text


@pytest.mark.parametrize(("name", "value"), HEADERS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sample?model=tiles&n=2&seed=1"),
        ("POST", "/log-density?model=affine"),
        ("POST", "/v2/models/affine.decode/infer"),
        ("GET", "/models"),
        ("GET", "/metrics"),
    ],
)
def test_headers(client: Client, method: str, path: str, name: str, value: str) -> None:
    content = b"" if method == "GET" else b'{"x": [[0, 0]]}'
    said = (JSON if content else {}) | {name: value}
    headers = {key.encode(): text.encode("latin-1") for key, text in said.items()}
    answer = client.request(method, path, headers=headers, content=content)
    assert list(faults(answer)) == []


@pytest.mark.parametrize("call", ["encode", "log-density"])
@pytest.mark.parametrize("x", X, ids=lambda x: json.dumps(x)[:40])
def test_tensors(client: Client, call: str, x: object) -> None:
    answer = client.post(f"/{call}", json={"model": "affine", "x": x})
    assert 400 <= answer.status_code < 500
    assert list(faults(answer)) == []


@pytest.mark.parametrize("data", X, ids=lambda x: json.dumps(x)[:40])
@pytest.mark.parametrize("shape", [[1, 2], [2], [-1, 2], [0, 2], [2**62, 2], [1, "2"], "12", None])
def test_tensors_of_the_protocol(client: Client, data: object, shape: object) -> None:
    tensor = {"name": "z", "datatype": "FP32", "shape": shape, "data": data}
    answer = client.post("/v2/models/affine.decode/infer", json={"inputs": [tensor]})
    assert list(faults(answer)) == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"1", b'"x"', b"{", b"{}{}", b"\xff\xfe", b"\x00" * 100, DEEP.encode(),
        ('{"x":' + DEEP).encode(), ('{"model":' + "9" * 5000 + "}").encode(),
        b'{"model": "\\ud800"}', b'{"n": 1e999}', b'{"n": -0.0}', b'{"seed": 1.0}',
        b'{"label": [[0]]}', b'{"include": "z"}', b'{"": 1}', b'{"model": {}}',
        ('{"' + "k" * 100_000 + '": 1}').encode(),
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
@pytest.mark.parametrize(
    "path",
    ["/sample", "/decode", "/encode", "/elbo", "/two-sample-test", "/v2/models/affine.sample/infer",
     "/v2/repository/index"],
)  # fmt: skip
def test_bodies(client: Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert list(faults(answer)) == []


@pytest.mark.parametrize(
    "path",
    [
        "/models/..%2f..%2fetc%2fpasswd", "/models/%00", "/models/" + "a" * 10_000,
        "/models/tiles/samples.png/..", "/v2/models/%2e%2e/infer", "/v2/models/.",
        "/v2/models/affine.decode/versions/00", "/v2/models/affine.",
        "/v2/models/affine.decode/versions/" + "9" * 30,
        "/sample?seed=-1", "/sample?seed=" + "9" * 5000, "/sample?n=%F0%9F%92%A9",
        "/sample?model=%00", "/sample?label=,,,,", "/sample?include=,", "/sample?temperature=nan",
        "/sample?model=tiles&columns=65", "/sample?" + "&".join(f"a{i}=1" for i in range(5000)),
    ],
    ids=lambda path: path[:40],
)  # fmt: skip
def test_addresses(client: Client, path: str) -> None:
    assert list(faults(client.get(path))) == []

"""/v2/models/.../infer: the same numbers as the native API, and the same checks."""

import asyncio
import gzip
import math
import zlib
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from tests.service.bundles import affine_log_density
from tests.service.conftest import Client, MakeClient
from tests.service.ppca import ppca_log_density

X = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
LEVELS = (np.random.default_rng(4).integers(0, 4, size=(4, 3, 2, 2)) / 3).astype(np.float32)


def tensor(name: str, values: object, datatype: str = "FP32") -> dict[str, Any]:
    array = np.asarray(values)
    flat = array.ravel().tolist()  # also of a scalar
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": flat}


def post(client: Client, model: str, *inputs: dict[str, Any], **rest: object) -> httpx.Response:
    body = orjson.dumps({"inputs": inputs, **rest})
    return client.post(f"/v2/models/{model}/infer", content=body)


def infer(client: Client, model: str, *inputs: dict[str, Any], **rest: object) -> dict[str, Any]:
    answer = post(client, model, *inputs, **rest)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def arrays(said: dict[str, Any]) -> dict[str, Any]:
    return {
        each["name"]: np.array(each["data"], np.float64).reshape(each["shape"])
        for each in said["outputs"]
    }


def native(client: Client, path: str, **body: object) -> dict[str, Any]:
    said: dict[str, Any] = client.post(path, json=body).json()
    return said


def refused(client: Client, model: str, *inputs: dict[str, Any], **rest: object) -> str:
    answer = post(client, model, *inputs, **rest)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().items()
    assert error[0] == "error"
    return str(error[1])


def test_answer_is_that_of_the_graph(client: Client) -> None:
    said = infer(client, "affine.log_density", tensor("x", [[1, -1], [0.5, 2]]), id="a request")
    assert said["id"] == "a request"
    assert (said["model_name"], said["model_version"]) == ("affine.log_density", "1")
    assert "parameters" not in said
    expected = affine_log_density(np.array([[1, -1], [0.5, 2]]))
    np.testing.assert_allclose(arrays(said)["log_density"], expected, rtol=1e-5)


def test_version_may_stand_in_the_address(client: Client) -> None:
    body = {"inputs": [tensor("z", [[0, 0]])]}
    answer = client.post("/v2/models/affine.decode/versions/1/infer", json=body)
    assert answer.status_code == 200
    for version in ("2", "v1", "٣", "9" * 5000):
        answer = client.post(f"/v2/models/affine.decode/versions/{version}/infer", json=body)
        assert (answer.status_code, set(answer.json())) == (404, {"error"})


def test_sample_is_that_of_the_native_api(client: Client) -> None:
    parameters = {"n": 6, "seed": 7, "start": 2, "label": 1, "temperature": 0.5}
    said = infer(client, "tiles.sample", parameters=parameters)
    assert said["parameters"] == {"seed": 7, "start": 2}
    expected = native(client, "/sample", model="tiles", include=["z", "label"], **parameters)
    found = arrays(said)
    for name in ("x", "z", "label"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    assert found["pixels"].shape == (6, 4, 4, 1)
    np.testing.assert_allclose(found["pixels"][..., 0], found["x"][:, 0] * 255, atol=0.51)


def test_sample_needs_nothing_and_says_its_seed(client: Client) -> None:
    first = client.post("/v2/models/affine.sample/infer", content=b"{}").json()
    seed = first["parameters"]["seed"]
    again = infer(client, "affine.sample", parameters={"seed": seed})
    assert again == first
    assert arrays(first)["x"].shape == (1, 2)


@pytest.mark.parametrize("values", [0, 255])
def test_sample_counts_the_rows_of_its_input_and_reads_nothing_else(
    client: Client, values: int
) -> None:
    rows = tensor("rows", np.full((3, 1), values), "UINT8")
    outputs = [{"name": "x"}]
    found = arrays(infer(client, "affine.sample", rows, outputs=outputs, parameters={"seed": 1}))
    assert found["x"].shape == (3, 2)
    same = infer(client, "affine.sample", outputs=outputs, parameters={"seed": 1, "n": 3})
    np.testing.assert_array_equal(found["x"], arrays(same)["x"])
    text = refused(client, "affine.sample", rows, parameters={"n": 4})
    assert "has 3 rows, parameter 'n' says 4" in text


def test_draw_of_an_observation_is_that_of_the_native_api(client: Client) -> None:
    asked = {"seed": 3, "n": 4, "observation": "draw"}
    found = arrays(infer(client, "ppca.sample", parameters=asked))
    expected = native(client, "/sample", model="ppca", include=["z"], **asked)
    np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-6)
    # The same again by the graph itself: z as it is, and the noise of the same seed.
    drawn = infer(client, "ppca.observe", tensor("z", expected["z"]), parameters={"seed": 3})
    assert drawn["parameters"] == {"seed": 3}
    np.testing.assert_allclose(arrays(drawn)["x"], expected["x"], rtol=1e-5)
    assert "makes x itself" in refused(client, "affine.sample", parameters={"observation": "draw"})


def test_seed_fills_the_noise_as_in_the_native_api(client: Client) -> None:
    said = infer(client, "grains.encode", tensor("x", LEVELS), parameters={"seed": 8})
    assert said["parameters"] == {"seed": 8}
    expected = native(client, "/encode", model="grains", x=LEVELS.tolist(), seed=8)
    np.testing.assert_allclose(arrays(said)["z"], expected["z"], rtol=1e-5)

    said = infer(client, "ppca.elbo", tensor("x", X), parameters={"seed": 8, "draws": 64})
    expected = native(client, "/elbo", model="ppca", x=X.tolist(), seed=8, draws=64)
    found = arrays(said)
    assert found["log_weight"].shape == (5, 64)
    np.testing.assert_allclose(found["kl"], expected["kl"], rtol=1e-5)
    reconstruction = found["reconstruction"].mean(axis=1)
    np.testing.assert_allclose(reconstruction, expected["reconstruction"], rtol=1e-5)
    log_mean = np.log(np.exp(found["log_weight"]).mean(axis=1))
    np.testing.assert_allclose(log_mean, expected["importance_weighted"], rtol=1e-5)
    np.testing.assert_allclose(log_mean, ppca_log_density(X.astype(np.float64)), atol=0.5)


def test_noise_may_be_sent_instead_of_a_seed(client: Client) -> None:
    noise = np.random.default_rng(0).uniform(size=LEVELS.shape).astype(np.float32)
    said = infer(client, "grains.log_density", tensor("x", LEVELS), tensor("noise", noise))
    assert "parameters" not in said
    drawn = infer(client, "grains.log_density", tensor("x", LEVELS))
    assert set(drawn["parameters"]) == {"seed"}
    again = infer(client, "grains.log_density", tensor("x", LEVELS), parameters=drawn["parameters"])
    assert again["outputs"] == drawn["outputs"] != said["outputs"]
    both = tensor("x", LEVELS), tensor("noise", noise)
    text = refused(client, "grains.log_density", *both, parameters={"seed": 1})
    assert "'noise' itself was sent" in text


def test_labels_may_stand_in_a_row_or_in_a_column(client: Client) -> None:
    z = tensor("z", [[0, 1], [1, 0]])
    row, column = ([0, 2], [[0], [2]])
    first, second = (
        arrays(infer(client, "tiles.decode", z, tensor("label", each, "INT64")))["x"]
        for each in (row, column)
    )
    expected = native(client, "/decode", model="tiles", z=[[0, 1], [1, 0]], label=[0, 2])["x"]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, expected, rtol=1e-6)


def test_draws_are_as_many_as_were_sent(client: Client) -> None:
    noise = np.zeros((5, 3, 2), np.float32)
    found = arrays(infer(client, "ppca.elbo", tensor("x", X), tensor("noise", noise)))
    assert found["log_weight"].shape == (5, 3)
    noise = np.zeros((5, 0, 2), np.float32)
    assert "at least one draw" in refused(
        client, "ppca.elbo", tensor("x", X), tensor("noise", noise)
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate", None])
def test_bytes_go_in_and_out_compressed_or_not(client: Client, encoding: str | None) -> None:
    z = np.tile(np.random.default_rng(5).normal(size=(20, 2)).astype("<f4"), (10, 1))
    item = {"name": "z", "datatype": "FP32", "shape": [200, 2],
            "parameters": {"binary_data_size": z.nbytes}}  # fmt: skip
    header = orjson.dumps({"inputs": [item], "parameters": {"binary_data_output": True}})
    body = header + z.tobytes()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Accept-Encoding": "identity"}
    if encoding:
        body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
        headers |= {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    answer = client.post("/v2/models/affine.decode/infer", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers.get("content-encoding") == encoding
    length = int(answer.headers["inference-header-content-length"])
    (output,) = orjson.loads(answer.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 1600}
    x = np.frombuffer(answer.content[length:], "<f4").reshape(200, 2)
    plain = infer(client, "affine.decode", tensor("z", z))
    np.testing.assert_array_equal(x, arrays(plain)["x"].astype(np.float32))


def test_raw_bytes_are_an_inference(client: Client) -> None:
    x = np.array([[1, -1], [0.5, 2]], "<f4")
    answer = client.post(
        "/v2/models/affine.log_density/infer",
        content=x.tobytes(),
        headers={"Inference-Header-Content-Length": "0"},
    )
    length = int(answer.headers["inference-header-content-length"])
    found = np.frombuffer(answer.content[length:], "<f4")
    np.testing.assert_allclose(found, affine_log_density(x), rtol=1e-5)


def test_impossible_event_has_minus_infinity_in_json_and_in_bytes(client: Client) -> None:
    far = [[3e38, 0.0]]
    outputs = [{"name": "log_density", "parameters": {"binary_data": True}}]
    assert infer(client, "affine.log_density", tensor("x", far))["outputs"][0]["data"] == [
        "-Infinity"
    ]
    answer = post(client, "affine.log_density", tensor("x", far), outputs=outputs)
    assert np.isneginf(np.frombuffer(answer.content[-4:], "<f4"))


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "reason"),
    [
        ("tiles.decode", [tensor("z", [[0, 0]]), tensor("label", [-1], "INT64")], {},
         "expected 0 to 2 (dark, grey, light); got -1"),
        ("tiles.decode", [tensor("z", [[0, 0]]), tensor("label", [3], "INT64")], {}, "got 3"),
        ("tiles.decode", [tensor("z", [[0, 0]])], {}, "input 'label': it is missing"),
        ("tiles.decode", [tensor("z", [[0, 0]]), tensor("label", [[0, 1]], "INT64")], {},
         "expected shape (n, 1) or (n); got (1, 2)"),
        ("tiles.decode", [tensor("z", [[0, 0]]), tensor("label", 1, "INT64")], {}, "got ()"),
        ("affine.decode", [tensor("z", [1, 2])], {}, "That is one row"),
        ("affine.decode", [tensor("z", 1)], {}, "expected shape (n, 2); got ()"),
        ("ppca.elbo", [tensor("x", X), tensor("noise", [1])], {}, "expected shape (n, 1, 2)"),
        ("tiles.decode", [tensor("z", [[0, 0]]), tensor("label", [0, 1], "INT64")], {},
         "different numbers of rows: z 1, label 2"),
        ("tiles.decode", [tensor("z", [[0, 1e39]]), tensor("label", [1], "INT64")], {},
         "must be finite"),
        ("grains.encode", [tensor("x", LEVELS * 2)], {}, "must lie in [0.0, 1.0]"),
        ("grains.encode", [tensor("x", LEVELS), tensor("noise", LEVELS + 1)], {},
         "field 'noise': every value must lie in [0.0, 0.99"),
        ("affine.decode", [tensor("z", [[1, 2, 3]])], {}, "expected shape (n, 2)"),
        ("affine.decode", [tensor("z", np.zeros((0, 2)))], {}, "at least one row"),
        ("affine.decode", [tensor("z", [[3e38, 3e38]])], {"seed": 1}, "unknown here"),
        ("affine.decode", [tensor("z", [[0, 0]])], {"timeout": -1}, "greater than or equal to 0"),
        ("affine.decode", [tensor("z", [[0, 0]])], {"timeout": "1"}, "a valid integer; got '1'"),
        ("ppca.elbo", [tensor("x", X)], {"draws": 100_000}, "at most 100000 draws"),
        ("affine.sample", [], {"n": 0}, "parameter 'n'"),
        ("affine.sample", [], {"n": True}, "a valid integer"),
        ("affine.sample", [], {"n": 10**9}, "at most 2097152 rows"),
        ("affine.sample", [], {"seed": 2**63}, "parameter 'seed'"),
        ("affine.sample", [], {"start": 2**53 - 1, "n": 2}, "the last row of a seed"),
        ("affine.sample", [], {"label": 0}, "affine has no labels"),
        ("affine.sample", [], {"sede": 0}, "parameter 'sede': unknown here. Known are: timeout"),
        ("tiles.sample", [], {"label": 3}, "expected 0 to 2"),
        ("affine.sample", [tensor("rows", [[]], "UINT8")], {}, "expected shape (n, 1)"),
    ],
)  # fmt: skip
def test_inputs_are_checked_as_in_the_native_api(
    client: Client,
    model: str,
    inputs: list[dict[str, Any]],
    parameters: dict[str, Any],
    reason: str,
) -> None:
    assert reason in refused(client, model, *inputs, parameters=parameters)


def test_row_that_float32_cannot_carry_is_named(client: Client) -> None:
    x = [[0.0, 0.0], [-3e38, 3e38]]
    text = refused(client, "affine.encode", tensor("x", x), id="1")
    assert "row 1 is too large for affine" in text


def test_own_words_of_the_protocol_are_accepted(client: Client) -> None:
    parameters = {"timeout": 5_000_000, "priority": 1, "binary_data_output": False}
    infer(client, "affine.decode", tensor("z", [[0, 0]]), parameters=parameters)


def test_time_that_a_request_gives_is_the_deadline(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*args: object, **kwargs: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("service.engine.Engine.run", never)
    answer = post(client, "affine.decode", tensor("z", [[0, 0]]), parameters={"timeout": 10_000})
    assert (answer.status_code, set(answer.json())) == (504, {"error"})


def test_body_is_limited_as_it_comes_and_as_it_expands(make_client: MakeClient) -> None:
    small = make_client(max_body_bytes=2048)
    address = "/v2/models/affine.decode/infer"
    answer = small.post(address, content=b" " * 3000)
    assert (answer.status_code, set(answer.json())) == (413, {"error"})
    bomb = gzip.compress(b" " * 3000)
    assert len(bomb) < 100
    answer = small.post(address, content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, set(answer.json())) == (413, {"error"})


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1.0", ""])
def test_header_length_must_be_a_number_of_bytes(client: Client, length: str) -> None:
    answer = client.post(
        "/v2/models/affine.decode/infer",
        content=b"{}",
        headers={"Inference-Header-Content-Length": length},
    )
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


NAMES = st.sampled_from(["x", "z", "label", "noise", "rows", "mean", "scale", "rate"])
VALUES = st.integers(-2, 3) | st.floats(allow_nan=False, allow_infinity=False, width=32)
ITEMS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "datatype": st.sampled_from(["FP32", "INT64", "UINT8", "FP64"]),
        "shape": st.lists(st.integers(0, 3), max_size=4),
        "data": st.lists(VALUES, max_size=6) | st.lists(st.lists(VALUES, max_size=3), max_size=3),
    }
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["seed", "n", "start", "label", "temperature", "draws", "timeout"]),
    st.integers(-1, 4) | st.floats(width=32) | st.booleans() | st.text(max_size=2),
    max_size=3,
)
MODELS = st.sampled_from(["tiles.sample", "tiles.decode", "ppca.elbo", "ppca.observe",
                          "ppca.likelihood", "ppca.refine", "grains.encode",
                          "affine.log_density"])  # fmt: skip


@given(MODELS, st.lists(ITEMS, max_size=2), PARAMETERS)
def test_whatever_comes_is_answered_or_refused(
    client: Client, model: str, inputs: list[dict[str, Any]], parameters: dict[str, object]
) -> None:
    answer = post(client, model, *inputs, parameters=parameters)
    assert answer.status_code in (200, 400, 504), answer.text


@given(MODELS, st.lists(st.tuples(NAMES, st.sampled_from(["FP32", "INT64", "UINT8"]),
                                  array_shapes(max_dims=4, max_side=3)), max_size=2),
       st.binary(max_size=16))  # fmt: skip
def test_whatever_bytes_come_are_answered_or_refused(
    client: Client, model: str, tensors: list[tuple[str, str, tuple[int, ...]]], noise: bytes
) -> None:
    sizes = {"FP32": 4, "INT64": 8, "UINT8": 1}
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape,
         "parameters": {"binary_data_size": sizes[datatype] * math.prod(shape)}}
        for name, datatype, shape in tensors
    ]  # fmt: skip
    header = orjson.dumps({"inputs": inputs})
    total = sum(sizes[datatype] * math.prod(shape) for _, datatype, shape in tensors)
    body = header + (noise * (total // max(1, len(noise)) + 1))[:total].ljust(total, b"\0")
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert answer.status_code in (200, 400), answer.text

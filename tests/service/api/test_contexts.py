"""Models that are told numbers beside each row: x = z + context, whose density is known."""

import io
import math

import numpy as np
import pytest

from service import noise
from service.interface import Interface
from service.noise import Stream
from tests.service import bundles
from tests.service.conftest import Client, MakeClient, ask
from tests.service.linear_odes import WIND, wind_decode, wind_encode

X = [[0.5, -1.0], [2.0, 3.0], [0.0, 0.0]]
EACH = [[1.0, 0.0], [2.0, -2.0], [0.25, 7.0]]


@pytest.fixture(scope="module")
def told(make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("told")
    bundles.SHIFTED.publish(folder)
    WIND.publish(folder)
    return make_client(models=folder, default_model="shifted")


def test_models_say_what_they_are_told(told: Client) -> None:
    said = told.get("/models/shifted").json()
    assert said["context"] == {
        "names": ["left", "right"],
        "minimum": [-1.0, -2.0],
        "maximum": [1.0, 2.0],
    }


@pytest.mark.parametrize("context", [[3.0, -4.0], [[3.0, -4.0]], EACH])
def test_samples_are_those_of_the_noise_and_the_context(told: Client, context: object) -> None:
    answer = ask(told, "sample", n=3, seed=5, context=context, include=["z", "log_density"])
    z = np.array(answer["z"])
    expected = noise.normal(5, Stream.LATENT, start=0, rows=3, size=2)
    np.testing.assert_allclose(z, expected, rtol=1e-6)
    np.testing.assert_allclose(answer["x"], z + np.array(context), rtol=1e-6)
    expected = -0.5 * (z**2).sum(axis=1) - math.log(2 * math.pi)
    np.testing.assert_allclose(answer["log_density"], expected, rtol=1e-5)


def test_context_of_all_rows_is_read_from_a_query(told: Client) -> None:
    answer = told.get("/sample", params={"n": 2, "seed": 5, "context": "3,-4"})
    assert answer.json()["x"] == ask(told, "sample", n=2, seed=5, context=[3, -4])["x"]
    other = told.get("/sample", params={"n": 2, "seed": 5, "context": "3,-5"})
    assert other.headers["ETag"] != answer.headers["ETag"]


def test_stream_has_the_context_of_each_row_in_every_window(told: Client) -> None:
    rows = 150_000
    body = {"n": rows, "seed": 5, "context": [3, -4]}
    answer = told.post("/sample", json=body, headers={"Accept": "application/x-npy"})
    whole = np.load(io.BytesIO(answer.content))
    last = ask(told, "sample", n=3, start=rows - 3, seed=5, context=[3, -4])["x"]
    np.testing.assert_allclose(whole[-3:], last, rtol=1e-6)
    each = [[float(row), 0.0] for row in range(20_000)]
    lines = told.post(
        "/sample",
        json={"n": len(each), "seed": 5, "context": each},
        headers={"Accept": "application/x-ndjson"},
    ).text.splitlines()
    found = ask(told, "sample", n=1, start=19_999, seed=5, context=each[-1])["x"][0]
    assert len(lines) == len(each)
    assert str(found[0])[:8] in lines[-1]


def test_densities_and_codes_are_those_given_the_context(told: Client) -> None:
    for context in ([3.0, -4.0], EACH):
        given = np.broadcast_to(np.array(context), (3, 2))
        found = ask(told, "log-density", x=X, context=context)["log_density"]
        np.testing.assert_allclose(found, bundles.normal_log_density(np.array(X), given), rtol=1e-5)
        z = ask(told, "encode", x=X, context=context)["z"]
        np.testing.assert_allclose(z, np.array(X) - given, rtol=1e-6)
        again = ask(told, "decode", z=z, context=context)["x"]
        np.testing.assert_allclose(again, X, atol=1e-6)


@pytest.mark.parametrize(
    ("context", "says"),
    [
        (None, "shifted needs it: left, right."),
        ([1.0], "expected 2 a row (left, right); got 1."),
        ([], "expected 2 a row (left, right); got 0."),
        ([[1.0, 2.0], [1.0]], "expected 2 a row (left, right); got 1."),
        ([[1.0, 2.0]] * 2, "expected one row of it, or 3 (one a row); got 2."),
        ([1e300, 0.0], "expected finite numbers, none of them too large for float32."),
        ([1.0, "2"], "got '2'."),
        ([True, 1.0], "got True."),
        ("1,2", "got '1,2'."),
        ({"left": 1.0}, "got {'left': 1.0}."),
    ],
)
def test_bad_context_is_named(told: Client, context: object, says: str) -> None:
    for path, body in (("sample", {"n": 3}), ("log-density", {"x": X}), ("decode", {"z": X})):
        said = {} if context is None else {"context": context}
        answer = told.post(f"/{path}", json={**body, **said})
        assert (answer.status_code, answer.json()["field"]) == (422, "context"), answer.text
        assert says in answer.json()["detail"]


def test_model_that_is_told_none_refuses_one(client: Client) -> None:
    answer = client.post("/sample", json={"model": "affine", "context": [1.0]})
    assert (answer.status_code, answer.json()["field"]) == (422, "context")
    assert answer.json()["detail"] == "field 'context': affine is told none. Leave it out."


def test_protocol_reads_it_as_a_tensor_and_as_a_parameter(told: Client) -> None:
    tensors = {"x": X, "context": EACH}
    inputs = [
        {"name": name, "shape": [3, 2], "datatype": "FP32", "data": np.ravel(rows).tolist()}
        for name, rows in tensors.items()
    ]
    answer = told.post("/v2/models/shifted.log_density/infer", json={"inputs": inputs}).json()
    expected = ask(told, "log-density", x=X, context=EACH)["log_density"]
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected, rtol=1e-6)
    asked = {"n": 2, "seed": 5, "context": "3, -4"}
    path = "/v2/models/shifted.sample/infer"
    answer = told.post(path, json={"inputs": [], "parameters": asked}).json()
    expected = ask(told, "sample", n=2, seed=5, context=[3, -4])["x"]
    np.testing.assert_allclose(answer["outputs"][0]["data"], np.ravel(expected), rtol=1e-6)
    for text, says in (("3,x", "got '3,x'."), ("3", "got 1."), ("nan,1", "finite")):
        bad = told.post(path, json={"inputs": [], "parameters": {**asked, "context": text}})
        assert (bad.status_code, says in bad.json()["error"]) == (400, True), bad.text


@pytest.mark.parametrize("context", [[3.0, -4.0], EACH])
def test_paths_go_where_the_context_blows(told: Client, context: object) -> None:
    asked = {"model": "wind", "context": context}
    each = np.broadcast_to(np.array(context), (3, 2))
    answer = ask(told, "sample", **asked, n=3, seed=5, include=["z", "log_density"])
    z = np.array(answer["z"])
    np.testing.assert_allclose(answer["x"], wind_decode(z, each), rtol=1e-5)
    np.testing.assert_allclose(ask(told, "decode", **asked, z=z.tolist())["x"], answer["x"])
    codes, log_abs_det = wind_encode(np.array(X), each)
    np.testing.assert_allclose(ask(told, "encode", **asked, x=X)["z"], codes, rtol=1e-4, atol=1e-5)
    expected = bundles.normal_log_density(codes, np.zeros(2)) + log_abs_det
    found = ask(told, "log-density", **asked, x=X)["log_density"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    again = ask(told, "log-density", **asked, x=answer["x"])["log_density"]
    np.testing.assert_allclose(answer["log_density"], again, rtol=1e-4)


def test_context_of_a_path_is_not_optional(told: Client) -> None:
    answer = told.post("/log-density", json={"model": "wind", "x": X})
    assert (answer.status_code, answer.json()["field"]) == (422, "context"), answer.text
    assert "wind needs it: east, north." in answer.json()["detail"]


def test_manifest_of_labels_and_a_context_is_refused() -> None:
    with pytest.raises(ValueError, match="context: a model is told this or labels, not both"):
        Interface.model_validate({**dict(bundles.SHIFTED.interface), "labels": ("a", "b")})

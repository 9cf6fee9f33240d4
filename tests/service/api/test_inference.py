"""/encode, /log-density and /elbo, against closed forms."""

import io
import math

import numpy as np
import pytest

from service.api.schemas import LogDensities
from tests.service.bundles import LOG_DET, MIX, SHIFT, affine_log_density, grains_log_density
from tests.service.conftest import Client, MakeClient
from tests.service.ppca import BIAS, SCALE, TO_MEAN, ppca_elbo, ppca_log_density

X = np.random.default_rng(3).normal(size=(5, 3))
LEVELS = np.random.default_rng(4).integers(0, 4, size=(4, 3, 2, 2)) / 3


def test_samples_go_round_through_encode_and_decode(client: Client) -> None:
    x = client.post("/sample", json={"model": "affine", "n": 1000, "seed": 1}).json()["x"]
    z = client.post("/encode", json={"model": "affine", "x": x}).json()["z"]
    again = client.post("/decode", json={"model": "affine", "z": z}).json()["x"]
    np.testing.assert_allclose(again, x, atol=1e-4)


def test_flow_answers_its_code_and_its_jacobian(client: Client) -> None:
    said = client.post("/encode", json={"model": "affine", "x": [[1.0, -1.0], [3.0, 0.0]]}).json()
    expected = (np.array([[1.0, -1.0], [3.0, 0.0]]) - SHIFT) @ np.linalg.inv(MIX)
    np.testing.assert_allclose(said["z"], expected, atol=1e-5)
    np.testing.assert_allclose(said["log_abs_det"], -LOG_DET, atol=1e-5)
    assert (said["posterior"], said["seed"]) == (None, None)


def test_vae_answers_its_posterior_and_its_mean(client: Client) -> None:
    said = client.post("/encode", json={"model": "ppca", "x": X.tolist()}).json()
    np.testing.assert_allclose(said["z"], (X - BIAS) @ TO_MEAN, atol=1e-5)
    assert said["posterior"]["mean"] == said["z"]
    np.testing.assert_allclose(said["posterior"]["scale"], np.tile(SCALE, (5, 1)), atol=1e-5)
    assert (said["log_abs_det"], said["seed"]) == (None, None)


def test_vae_draws_codes_that_repeat_with_their_seed(client: Client) -> None:
    body = {"model": "ppca", "x": X.tolist(), "draws": 2000, "seed": 5}
    said = client.post("/encode", json=body).json()
    z, mean = np.array(said["z"]), np.array(said["posterior"]["mean"])
    assert z.shape == (5, 2000, 2)
    score = (z.mean(axis=1) - mean) / (SCALE / math.sqrt(2000))
    assert np.abs(score).max() < 4.5
    assert client.post("/encode", json=body).json() == said
    del body["seed"]
    drawn = client.post("/encode", json=body)
    assert drawn.headers["pushforward-seed"] == str(drawn.json()["seed"])


def test_draws_of_a_code_that_is_not_random_are_refused(client: Client) -> None:
    answer = client.post("/encode", json={"model": "affine", "x": [[0, 0]], "draws": 3})
    assert (answer.status_code, answer.json()["field"]) == (422, "draws")


def test_dequantised_code_is_that_of_its_seed_and_decodes_to_x(client: Client) -> None:
    body = {"model": "grains", "x": LEVELS.tolist(), "seed": 8}
    said = client.post("/encode", json=body).json()
    assert said["seed"] == 8
    assert client.post("/encode", json=body | {"seed": 9}).json()["z"] != said["z"]
    x = client.post("/decode", json={"model": "grains", "z": said["z"]}).json()["x"]
    np.testing.assert_allclose(x, LEVELS, atol=1e-6)


def test_exact_density_is_exact_and_has_no_error(client: Client) -> None:
    x = [[1.0, -1.0], [0.5, 2.0]]
    said = client.post("/log-density", json={"model": "affine", "x": x}).json()
    expected = affine_log_density(np.array(x))
    np.testing.assert_allclose(said["log_density"], expected, rtol=1e-5)
    np.testing.assert_allclose(said["bits_per_dim"], -expected / (2 * math.log(2)), rtol=1e-5)
    del said["log_density"], said["bits_per_dim"]
    assert said == {
        "model": "affine",
        "version": 1,
        "standard_error": None,
        "estimator": "exact",
        "unit": "nats",
        "draws": None,
        "seed": None,
    }


def test_draws_of_an_exact_density_are_refused(client: Client) -> None:
    answer = client.post("/log-density", json={"model": "affine", "x": [[0, 0]], "draws": 3})
    assert (answer.status_code, answer.json()["field"]) == (422, "draws")


@pytest.mark.parametrize(
    ("model", "x", "truth", "estimator"),
    [
        ("ppca", X, ppca_log_density(X), "importance"),
        ("grains", LEVELS, grains_log_density(LEVELS), "dequantisation"),
    ],
)
def test_estimate_is_right_within_the_error_it_states(
    client: Client, model: str, x: np.ndarray, truth: np.ndarray, estimator: str
) -> None:
    body = {"model": model, "x": x.tolist(), "draws": 4000, "seed": 2}
    said = client.post("/log-density", json=body).json()
    assert (said["estimator"], said["draws"], said["seed"]) == (estimator, 4000, 2)
    error = np.array(said["standard_error"])
    assert (np.abs(said["log_density"] - truth) < 4.5 * error).all()
    assert (error < 0.1).all()
    size = np.array(said["effective_sample_size"])
    assert ((size > 100) & (size <= 4000)).all()


def test_estimate_draws_a_seed_that_repeats_it(client: Client) -> None:
    body = {"model": "ppca", "x": X.tolist()}
    said = client.post("/log-density", json=body).json()
    assert said["draws"] == 64
    assert client.post("/log-density", json=body | {"seed": said["seed"]}).json() == said


def test_one_draw_has_no_error_to_give(client: Client) -> None:
    body = {"model": "ppca", "x": X.tolist(), "draws": 1}
    assert client.post("/log-density", json=body).json()["standard_error"] == [None] * 5
    assert client.post("/elbo", json=body).json()["standard_error"] == [None] * 5


def test_elbo_is_the_sum_of_its_parts_and_below_the_tighter_bound(client: Client) -> None:
    body = {"model": "ppca", "x": X.tolist(), "draws": 4000, "seed": 2}
    said = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in client.post("/elbo", json=body).json().items()
    }
    np.testing.assert_allclose(said["elbo"], said["reconstruction"] - said["kl"], rtol=1e-12)
    assert (np.abs(said["elbo"] - ppca_elbo(X)) < 4.5 * said["standard_error"]).all()
    assert (said["elbo"] < said["importance_weighted"]).all()
    density = client.post("/log-density", json=body).json()
    np.testing.assert_array_equal(density["log_density"], said["importance_weighted"])
    assert (said["unit"], said["draws"], said["seed"]) == ("nats", 4000, 2)


@pytest.mark.parametrize(
    ("path", "field"), [("encode", "z"), ("log-density", "log_density"), ("elbo", "elbo")]
)
def test_npy_answer_is_the_primary_array(client: Client, path: str, field: str) -> None:
    body = {"model": "ppca", "x": X.tolist(), "seed": 1}
    npy = client.post(f"/{path}", json=body, headers={"Accept": "application/x-npy"})
    np.testing.assert_allclose(
        np.load(io.BytesIO(npy.content)), client.post(f"/{path}", json=body).json()[field]
    )


@pytest.mark.parametrize("path", ["encode", "log-density", "elbo"])
def test_numbers_are_no_picture(client: Client, path: str) -> None:
    body = {"model": "ppca", "x": X.tolist()}
    assert client.post(f"/{path}", json=body, headers={"Accept": "image/png"}).status_code == 406


@pytest.mark.parametrize("path", ["encode", "log-density", "elbo"])
@pytest.mark.parametrize("x", ["nonsense", [], None, [[1, 2], [3]]])
def test_missing_capability_is_told_whatever_x_is(client: Client, path: str, x: object) -> None:
    answer = client.post(f"/{path}", json={"model": "tiles", "x": x})
    assert (answer.status_code, answer.json()["code"]) == (409, "capability_missing")
    assert "It can: sample, decode." in answer.json()["detail"]


def test_flow_has_no_bound(client: Client) -> None:
    answer = client.post("/elbo", json={"model": "affine", "x": [[0, 0]]})
    assert (answer.status_code, answer.json()["code"]) == (409, "capability_missing")


def test_draws_are_limited_by_rows_times_draws(make_client: MakeClient) -> None:
    client = make_client(max_draws=100)
    for path, model in [("encode", "ppca"), ("log-density", "ppca"), ("elbo", "ppca")]:
        body = {"model": model, "x": [[0, 0, 0]] * 5}
        assert client.post(f"/{path}", json=body | {"draws": 20}).status_code == 200
        answer = client.post(f"/{path}", json=body | {"draws": 21})
        assert (answer.status_code, answer.json()["field"]) == (422, "draws")
        assert "5 x 21" in answer.json()["detail"]


def test_code_without_draws_is_limited_by_its_values_alone(make_client: MakeClient) -> None:
    client = make_client(max_draws=1, max_values=1024)
    x = np.zeros((513, 2)).tolist()
    assert client.post("/encode", json={"model": "affine", "x": x[:512]}).status_code == 200
    answer = client.post("/encode", json={"model": "affine", "x": x})
    assert (answer.status_code, answer.json()["field"]) == (422, "x")
    assert "at most 512 rows of affine" in answer.json()["detail"]


def test_event_beyond_the_model_is_named_and_not_our_fault(client: Client) -> None:
    x = [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 3e38]]
    answer = client.post("/encode", json={"model": "affine", "x": x})
    assert (answer.status_code, answer.json()["code"]) == (422, "input_invalid")
    assert answer.json()["field"] == "x"
    assert "row 3 is too large for affine: the answer is not a number" in answer.json()["detail"]


def test_impossible_event_has_a_bound_that_json_can_say(client: Client) -> None:
    said = client.post("/elbo", json={"model": "ppca", "x": [[3e38, 0, 0]], "seed": 0}).json()
    assert (said["elbo"], said["standard_error"]) == (["-Infinity"], [None])


def test_impossible_event_has_a_density_has_a_density_that_json_can_say(client: Client) -> None:
    said = client.post("/log-density", json={"model": "affine", "x": [[3e38, 0]]}).json()
    assert (said["log_density"], said["bits_per_dim"]) == (["-Infinity"], ["Infinity"])


@pytest.mark.parametrize("pixel", [-0.1, 1.1, 255])
def test_pixels_out_of_range_are_refused(client: Client, pixel: float) -> None:
    x = np.full((1, 3, 2, 2), pixel).tolist()
    answer = client.post("/encode", json={"model": "grains", "x": x})
    assert (answer.status_code, answer.json()["field"]) == (422, "x")
    assert ("Divide 8-bit pixels by 255" in answer.json()["detail"]) == (pixel > 1)


def test_log_density_says_how_unusual_a_row_is_among_held_out_ones(solved: Client) -> None:
    x = [[1.0, -1.0], [1.0, -0.5], [9.0, 9.0]]
    said = solved.post("/log-density", json={"model": "usual", "x": x}).json()
    LogDensities.model_validate(said)
    nats = -np.array(said["log_density"])
    assert said["anomaly_score"] == [sum(each < nat for each in (1, 2, 3, 4)) / 5 for nat in nats]
    assert said["anomaly_score"][2] == 0.8
    without = solved.post("/log-density", json={"model": "affine", "x": x}).json()
    assert "anomaly_score" not in without
    figures = solved.get("/models/usual").json()["evaluation"]
    assert "values" not in figures[0]


@pytest.mark.parametrize(
    ("draws", "like"), [({}, True), ({"draws": 64}, True), ({"draws": 9}, False)]
)
def test_estimates_are_unusual_beside_those_of_as_many_draws(
    solved: Client, draws: dict[str, int], like: bool
) -> None:
    x = np.zeros((2, 3, 2, 2)).tolist()
    said = solved.post("/log-density", json={"model": "noisy", "x": x, **draws}).json()
    assert ("anomaly_score" in said) == like
    if like:
        nats = -np.array(said["log_density"])
        assert said["anomaly_score"] == [sum(each < nat for each in (10, 20)) / 3 for nat in nats]

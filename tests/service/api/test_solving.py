"""Continuous flows over HTTP: what may be said of the solver, where, and what is answered."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import noise
from service.api import schemas
from service.noise import DRAWS, Stream
from tests.service.api.test_oip_inference import arrays, infer, refused, tensor
from tests.service.conftest import Client, MakeClient, ask
from tests.service.linear_odes import (
    DRIFT,
    PUSH,
    SPIRAL,
    TURN,
    drift_divergence,
    spiral_decode,
    spiral_encode,
    spiral_log_density,
)

X = spiral_decode(np.random.default_rng(3).normal(size=(5, 2)))
IMAGE = np.array([[[[0, 1], [1 / 3, 2 / 3]]]])


def test_models_say_how_they_are_solved_and_what_they_can(solved: Client) -> None:
    said = solved.get("/models/spiral").json()
    assert said["ode"] == {"solver": "rk4", "steps": 20, "evaluations": 80, "guidance": None}
    # Guided, each evaluation is one with the label and one without.
    led = solved.get("/models/led").json()["ode"]
    assert led == {"solver": "midpoint", "steps": 40, "evaluations": 160, "guidance": 0.5}
    assert said["capabilities"] == ["sample", "decode", "encode", "log-density"]
    assert said["estimators"] == ["exact"]
    assert said["limits"]["steps"] == 100
    drift = solved.get("/models/drift").json()
    assert drift["estimators"] == ["hutchinson"]
    assert solved.get("/models/affine").json()["ode"] is None


def test_sample_takes_a_solver_and_its_steps_from_query_and_body(solved: Client) -> None:
    z = noise.normal(7, Stream.LATENT, start=0, rows=4, size=2)
    address = "/sample?model=spiral&n=4&seed=7"
    usual = solved.get(address).json()
    schemas.Sampled.model_validate(usual)
    np.testing.assert_allclose(usual["x"], spiral_decode(z), atol=1e-3)
    assert solved.get(f"{address}&solver=rk4&steps=20").json() == usual
    once = ask(solved, "sample", model="spiral", n=4, seed=7, solver="euler", steps=1)
    # At t = 0 the field stands still, and Euler looks nowhere else.
    np.testing.assert_allclose(once["x"], 3 * z + [5, -2], rtol=1e-5)


def test_guidance_is_taken_wherever_a_path_is_solved(solved: Client) -> None:
    body = {"model": "led", "seed": 3, "label": 1}
    usual = ask(solved, "sample", n=4, **body)
    assert ask(solved, "sample", n=4, guidance=0.5, **body) == usual
    assert solved.get("/sample?model=led&seed=3&label=1&n=4&guidance=.5").json() == usual
    learnt = ask(solved, "sample", n=4, guidance=0, **body)
    assert learnt["x"] == ask(solved, "sample", n=4, **body | {"model": "drift"})["x"] != usual["x"]
    for path, rows in (
        ("decode", {"z": np.full((1, 1, 2, 2), 0.3).tolist()}),
        ("encode", {"x": IMAGE.tolist()}),
        ("log-density", {"x": IMAGE.tolist()}),
    ):
        said = body | rows if path != "decode" else {"model": "led", "label": 1, **rows}
        usual = ask(solved, path, **said)
        assert ask(solved, path, guidance=0.5, **said) == usual, path
        assert ask(solved, path, guidance=0, **said) != usual, path
    sampled = infer(solved, "led.sample", parameters={"n": 2, "seed": 7, "guidance": 2.0})
    native = ask(solved, "sample", model="led", n=2, seed=7, guidance=2)
    np.testing.assert_allclose(arrays(sampled)["x"], native["x"], rtol=1e-6)


def test_tag_of_a_sample_goes_by_its_solver(solved: Client) -> None:
    address = "/sample?model=spiral&version=1&n=4&seed=7"
    tags = {
        more: solved.get(f"{address}{more}").headers["ETag"]
        for more in ("", "&steps=3", "&steps=4", "&steps=3&solver=euler")
    }
    assert len(set(tags.values())) == 4
    known = solved.get(f"{address}&steps=3", headers={"If-None-Match": tags["&steps=3"]})
    assert known.status_code == 304


def test_streams_and_their_parts_are_the_same_samples(solved: Client) -> None:
    address = "/sample?model=spiral&n=300&seed=7&steps=2"
    whole = solved.get(address).json()["x"]
    lines = solved.get(address, headers={"Accept": "application/x-ndjson"})
    rows = [json.loads(line) for line in lines.iter_lines()]
    assert [row["x"] for row in rows] == whole
    part = solved.get("/sample?model=spiral&n=3&seed=7&steps=2&start=200").json()["x"]
    assert part == whole[200:203]


def test_samples_can_bring_their_log_density(solved: Client) -> None:
    said = ask(solved, "sample", model="spiral", n=6, seed=1, include=["log_density", "z"])
    np.testing.assert_allclose(
        said["log_density"], spiral_log_density(np.array(said["x"])), atol=1e-3
    )


def test_decode_encode_and_log_density_agree(solved: Client) -> None:
    code = ask(solved, "encode", model="spiral", x=X.tolist(), steps=40)
    schemas.Encoded.model_validate(code)
    z, log_abs_det = spiral_encode(X)
    np.testing.assert_allclose(code["z"], z, atol=1e-4)
    np.testing.assert_allclose(code["log_abs_det"], [log_abs_det] * 5, atol=1e-4)
    assert code["posterior"] is None
    assert code["seed"] is None
    back = ask(solved, "decode", model="spiral", z=code["z"], steps=40)
    np.testing.assert_allclose(back["x"], X, atol=1e-3)
    density = ask(solved, "log-density", model="spiral", x=X.tolist(), steps=40)
    schemas.LogDensities.model_validate(density)
    np.testing.assert_allclose(density["log_density"], spiral_log_density(X), atol=1e-3)
    assert (density["estimator"], density["standard_error"]) == ("exact", None)


def test_estimate_by_paths_says_its_error_and_repeats(solved: Client) -> None:
    body = {"model": "drift", "x": IMAGE.tolist(), "label": 1, "seed": 3, "draws": 50}
    said = ask(solved, "log-density", **body)
    schemas.LogDensities.model_validate(said)
    assert (said["estimator"], said["draws"], said["seed"]) == ("hutchinson", 50, 3)
    assert said["standard_error"][0] > 0
    assert "effective_sample_size" not in said
    assert ask(solved, "log-density", **body) == said
    assert ask(solved, "log-density", **body | {"seed": 4}) != said
    one = ask(solved, "log-density", **body | {"draws": 1})
    assert one["standard_error"] == [None]


def test_code_of_an_image_needs_its_label_and_says_its_seed(solved: Client) -> None:
    body = {"model": "drift", "x": IMAGE.tolist(), "seed": 3}
    said = ask(solved, "encode", **body, label=0)
    assert said["seed"] == 3
    assert said["log_abs_det"] is None
    missing = solved.post("/encode", json=body)
    assert (missing.status_code, missing.json()["field"]) == (422, "label")


def test_pictures_of_a_continuous_flow(solved: Client) -> None:
    answer = solved.get("/sample?model=drift&n=4&seed=1", headers={"Accept": "image/png"})
    assert answer.content.startswith(b"\x89PNG")
    npy = solved.get("/sample?model=drift&n=4&seed=1", headers={"Accept": "application/x-npy"})
    assert np.load(io.BytesIO(npy.content)).shape == (4, 1, 2, 2)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("sample", {"model": "affine", "steps": 3}, 409, "steps"),
        ("sample", {"model": "affine", "solver": "rk4"}, 409, "solver"),
        ("decode", {"model": "affine", "z": [[0, 0]], "steps": 3}, 409, "steps"),
        ("encode", {"model": "affine", "x": [[0, 0]], "steps": 3}, 409, "steps"),
        ("log-density", {"model": "affine", "x": [[0, 0]], "solver": "rk4"}, 409, "solver"),
        ("sample", {"model": "spiral", "steps": 101}, 422, "steps"),
        ("sample", {"model": "spiral", "steps": 100_000}, 422, "steps"),
        ("sample", {"model": "spiral", "steps": 0}, 422, "steps"),
        ("sample", {"model": "spiral", "solver": "heun"}, 422, "solver"),
        ("log-density", {"model": "spiral", "x": [[0, 0]], "steps": 101}, 422, "steps"),
        ("log-density", {"model": "spiral", "x": [[0, 0]], "estimator": "prior"}, 409, "estimator"),
        ("sample", {"model": "drift", "include": ["log_density"]}, 409, "include"),
        ("sample", {"model": "affine", "guidance": 1}, 409, "guidance"),
        ("sample", {"model": "drift", "guidance": 0}, 409, "guidance"),
        ("log-density", {"model": "spiral", "x": [[0, 0]], "guidance": 1}, 409, "guidance"),
        ("sample", {"model": "led", "guidance": -1}, 422, "guidance"),
        ("sample", {"model": "led", "guidance": 11}, 422, "guidance"),
        ("sample", {"model": "led", "guidance": "much"}, 422, "guidance"),
        ("elbo", {"model": "spiral", "x": [[0, 0]]}, 409, "model"),
    ],
)
def test_refusals_name_the_field(
    solved: Client, path: str, body: dict[str, Any], status: int, field: str
) -> None:
    answer = solved.post(f"/{path}", json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text


def test_what_cannot_be_answered_in_time_is_refused_at_once(
    make_client: MakeClient, tmp_path: Path
) -> None:
    SPIRAL.publish(tmp_path)
    client = make_client(models=tmp_path, timeout_s=0.05)
    many = {"model": "spiral", "n": 2**20, "seed": 1}
    answer = client.post("/sample", json=many)
    assert (answer.status_code, answer.json()["field"]) == (422, "steps")
    assert "1048576 rows of spiral by rk4 in 20 steps take" in answer.json()["detail"]
    assert "an answer at most 0.05" in answer.json()["detail"]
    x = np.zeros((50_000, 2)).tolist()
    for path, body in (("log-density", {"x": x}), ("encode", {"x": x}), ("decode", {"z": x})):
        answer = client.post(f"/{path}", json={"model": "spiral", "steps": 200, **body})
        assert (answer.status_code, answer.json()["field"]) == (422, "steps"), path
    assert refused(client, "spiral.sample", parameters={"n": 2**20}).startswith("field 'steps'")


def test_protocol_serves_the_parts_and_the_samples(solved: Client) -> None:
    w, t = np.random.default_rng(0).normal(size=(3, 2)), np.array([[0.0], [0.5], [1.0]])
    said = arrays(infer(solved, "spiral.divergence", tensor("w", w), tensor("t", t)))
    np.testing.assert_allclose(said["velocity"], 2 * t * (w @ TURN), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said["divergence"], 2 * t[:, 0] * np.trace(TURN), rtol=1e-5)
    late = tensor("t", np.array([[1.5]] * 3))
    why = refused(solved, "spiral.velocity", tensor("w", w), late)
    assert "'t'" in why
    assert "pixels" not in why
    sampled = infer(solved, "spiral.sample", parameters={"n": 2, "seed": 7, "steps": 3})
    native = ask(solved, "sample", model="spiral", n=2, seed=7, steps=3)
    np.testing.assert_allclose(arrays(sampled)["x"], native["x"], rtol=1e-6)
    assert refused(solved, "affine.sample", parameters={"steps": 3})


def test_protocol_tells_a_part_of_a_guided_path_no_label(solved: Client) -> None:
    w, t = np.zeros((3, 1, 2, 2)), np.zeros((3, 1))
    label = np.array([[0], [1], [-1]], np.int64)
    given = tensor("w", w), tensor("t", t), tensor("label", label, "INT64")
    said = arrays(infer(solved, "led.velocity", *given))["velocity"]
    np.testing.assert_allclose(said.reshape(3, 4), PUSH, atol=1e-6)
    assert "'label'" in refused(solved, "drift.velocity", *given)
    label[0] = -2
    given = tensor("w", w), tensor("t", t), tensor("label", label, "INT64")
    assert "'label'" in refused(solved, "led.velocity", *given)


def test_protocol_draws_the_directions_of_a_seed(solved: Client) -> None:
    w, t = np.zeros((3, 1, 2, 2)), np.zeros((3, 1))
    label = tensor("label", np.zeros((3, 1), np.int64), "INT64")
    given = tensor("w", w), tensor("t", t), label
    said = infer(solved, "drift.divergence", *given, parameters={"seed": 5})
    probe = np.concatenate([
        noise.normal(5, Stream.PROBE, start=row * DRAWS, rows=1, size=4) for row in range(3)
    ])  # fmt: skip
    np.testing.assert_allclose(arrays(said)["divergence"], drift_divergence(probe), rtol=1e-5)
    (metadata,) = [
        each
        for each in solved.get("/v2/models/drift.divergence").json()["inputs"]
        if each["name"] == "probe"
    ]
    assert metadata["shape"] == [-1, *DRIFT.interface.latent.shape]

"""/elbo with `refine`, and what else a latent-variable model can be asked, over HTTP."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api import schemas
from tests.service.conftest import Client, MakeClient
from tests.service.ppca import DIAGONAL, FULL, LEAN_FULL, TWO_CLASSES

X = np.random.default_rng(3).normal(size=(5, 3))
BODY = {"x": X.tolist(), "seed": 1}


def ask(client: Client, path: str, model: str, **more: object) -> dict[str, Any]:
    answer = client.post(f"/{path}", json={"model": model, **BODY, **more})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def refused(client: Client, path: str, model: str, **more: object) -> tuple[int, str, str]:
    answer = client.post(f"/{path}", json={"model": model, **BODY, **more})
    said = answer.json()
    return answer.status_code, said["field"], said["detail"]


def test_refined_answer_says_both_bounds_and_what_was_done(latent: Client) -> None:
    said = ask(latent, "elbo", "lean", refine=100, draws=1000)
    schemas.Bounds.model_validate(said)
    assert (said["refine"], said["draws"], said["seed"]) == (100, 1000, 1)
    before = said["amortised"]
    plain = ask(latent, "elbo", "lean", draws=1000)
    assert set(before) == {
        "elbo", "standard_error", "reconstruction", "kl", "importance_weighted",
        "effective_sample_size",
    }  # fmt: skip
    for part, value in before.items():
        np.testing.assert_allclose(value, plain[part], rtol=1e-4)
    gain = np.array(said["elbo"]) - before["elbo"]
    np.testing.assert_allclose(gain, DIAGONAL.own_gap - DIAGONAL.least_gap, atol=0.1)
    np.testing.assert_allclose(
        np.subtract(said["reconstruction"], said["kl"]), said["elbo"], rtol=1e-12
    )


def test_answer_without_refinement_says_so(latent: Client) -> None:
    plain = ask(latent, "elbo", "lean")
    assert (plain["refine"], plain["amortised"]) == (0, None)
    assert ask(latent, "elbo", "lean", refine=0) == plain
    assert ask(latent, "elbo", "lean-flow", refine=0)["refine"] == 0


def test_same_seed_gives_the_same_bytes_and_another_gives_others(latent: Client) -> None:
    body = {"model": "lean-full", **BODY, "refine": 7}
    first, again = (latent.post("/elbo", json=body) for _ in range(2))
    assert first.content == again.content
    other = latent.post("/elbo", json=body | {"seed": 2}).json()
    assert other["elbo"] != first.json()["elbo"]
    del body["seed"]
    drawn = latent.post("/elbo", json=body).json()
    assert latent.post("/elbo", json=body | {"seed": drawn["seed"]}).json() == drawn


def test_npy_answer_is_the_refined_bound(latent: Client) -> None:
    body = {"model": "lean", **BODY, "refine": 5}
    npy = latent.post("/elbo", json=body, headers={"Accept": "application/x-npy"})
    np.testing.assert_array_equal(
        np.load(io.BytesIO(npy.content)), latent.post("/elbo", json=body).json()["elbo"]
    )


def test_single_draw_has_no_error_before_or_after(latent: Client) -> None:
    said = ask(latent, "elbo", "lean", refine=2, draws=1)
    assert said["standard_error"] == said["amortised"]["standard_error"] == [None] * 5


@pytest.mark.parametrize("x", [BODY["x"], "nonsense", None])
@pytest.mark.parametrize(
    ("model", "field", "why"),
    [
        ("lean-flow", "refine", "lean-flow cannot refine: its posterior is a flow"),
        ("lean-bare", "model", "lean-bare has no posterior and cannot elbo"),
    ],
)
def test_refinement_that_a_model_cannot_do_is_told_whatever_x_is(
    latent: Client, x: object, model: str, field: str, why: str
) -> None:
    status, named, detail = refused(latent, "elbo", model, x=x, refine=3)
    assert (status, named) == (409, field)
    assert why in detail


@pytest.mark.parametrize("more", [{}, {"refine": 3}])
@pytest.mark.parametrize("model", ["affine", "tiles"])
def test_refinement_of_what_has_no_bound_is_refused_as_the_bound_is(
    client: Client, model: str, more: dict[str, int]
) -> None:
    assert refused(client, "elbo", model, **more)[:2] == (409, "model")


@pytest.mark.parametrize("refine", [-1, 2**18 + 1, 1.5, "3", True, None, [3]])
def test_steps_must_be_a_number_of_them(latent: Client, refine: object) -> None:
    assert refused(latent, "elbo", "lean", refine=refine)[:2] == (422, "refine")


def test_steps_are_limited_alone_and_with_the_rows(make_client: MakeClient, models: Path) -> None:
    client = make_client(models=models, max_refine=30, max_draws=1000)
    assert client.get("/models/ppca").json()["limits"]["refine"] == 30
    ask(client, "elbo", "ppca", refine=25, draws=4)
    status, field, detail = refused(client, "elbo", "ppca", refine=26, draws=4)
    assert (status, field) == (422, "refine")
    assert "at most 1000 draws at once" in detail
    assert "5 rows x 26 steps x 8" in detail
    status, field, detail = refused(client, "elbo", "ppca", x=X[:1].tolist(), refine=31, draws=4)
    assert (status, field, detail) == (422, "refine", "field 'refine': at most 30 steps; got 31.")
    status, field, _ = refused(client, "elbo", "ppca", refine=3, draws=201)
    assert (status, field) == (422, "draws")


def test_time_that_is_up_ends_the_steps(make_client: MakeClient, models: Path) -> None:
    client = make_client(models=models, max_refine=2**18, max_draws=10**9)
    body = {"model": "ppca", **BODY, "refine": 2**18}
    # Long beside a step, of which some must have been made: a busy machine may stop for 100 ms.
    headers = {"Pushforward-Timeout-Ms": "1000"}
    began = time.monotonic()
    answer = client.post("/elbo", json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert time.monotonic() - began < 5
    registry = client.app.state.metrics.registry
    labels = {"model": "ppca", "role": "refine"}
    time.sleep(0.1)
    before = registry.get_sample_value("pushforward_rows_total", labels)
    time.sleep(0.1)
    assert 0 < before == registry.get_sample_value("pushforward_rows_total", labels) < 5 * 2**18


def test_full_posterior_is_answered_by_its_factor(latent: Client) -> None:
    said = ask(latent, "encode", "lean-full")
    schemas.Encoded.model_validate(said)
    assert said["posterior"].keys() == {"mean", "scale_tril"}
    np.testing.assert_allclose(said["posterior"]["scale_tril"], [FULL.factor.T] * 5, atol=1e-6)
    assert said["z"] == said["posterior"]["mean"]
    assert (said["seed"], said["log_abs_det"]) == (None, None)
    drawn = ask(latent, "encode", "lean-full", draws=3)
    assert (np.shape(drawn["z"]), drawn["seed"]) == ((5, 3, 2), 1)


def test_posterior_that_is_a_flow_is_answered_by_codes_alone(latent: Client) -> None:
    said = ask(latent, "encode", "lean-flow")
    assert (said["posterior"], said["log_abs_det"], said["seed"]) == (None, None, None)
    np.testing.assert_allclose(said["z"], FULL.mean(X), atol=1e-5)
    drawn = ask(latent, "encode", "lean-flow", draws=3)
    assert (np.shape(drawn["z"]), drawn["seed"]) == ((5, 3, 2), 1)


def test_covariances_are_counted_in_the_limit_of_an_answer(
    make_client: MakeClient, tmp_path: Path
) -> None:
    LEAN_FULL.publish(tmp_path)
    client = make_client(models=tmp_path, max_values=1024)
    assert client.get("/models/lean-full").json()["limits"]["n"] == 1024 // 4
    x = np.zeros((257, 3)).tolist()
    for path, more in (("encode", {}), ("elbo", {"refine": 1})):
        status, field, detail = refused(client, path, "lean-full", x=x, **more)
        assert (status, field) == (422, "x")
        assert "at most 256 rows of lean-full at once" in detail


def test_estimator_is_chosen_and_said(latent: Client) -> None:
    own = ask(latent, "log-density", "lean", draws=100)
    assert (own["estimator"], own["draws"]) == ("importance", 100)
    prior = ask(latent, "log-density", "lean", draws=5000, estimator="prior")
    assert (prior["estimator"], prior["seed"]) == ("prior", 1)
    bare = ask(latent, "log-density", "lean-bare", draws=5000)
    assert bare["estimator"] == "prior"
    assert bare["log_density"] == prior["log_density"]
    assert ask(latent, "log-density", "lean-bare")["draws"] == 64
    schemas.LogDensities.model_validate(prior)


@pytest.mark.parametrize("x", [BODY["x"], "nonsense", None])
def test_estimator_that_a_model_has_not_is_told_with_what_it_has(latent: Client, x: object) -> None:
    for model, estimator, offered in (
        ("lean-bare", "importance", "prior"),
        ("lean", "exact", "importance, prior"),
        ("lean", "dequantisation", "importance, prior"),
    ):
        status, field, detail = refused(latent, "log-density", model, x=x, estimator=estimator)
        assert (status, field) == (409, "estimator")
        assert f"{model} has no estimator '{estimator}'. It has: {offered}." in detail


def test_own_estimator_may_be_named_and_no_other_word(client: Client) -> None:
    named = {"model": "affine", "x": [[0, 0]], "estimator": "exact"}
    assert client.post("/log-density", json=named).json()["estimator"] == "exact"
    answer = client.post("/log-density", json=named | {"estimator": "guess"})
    assert (answer.status_code, answer.json()["field"]) == (422, "estimator")
    answer = client.post("/log-density", json=named | {"estimator": "prior"})
    assert (answer.status_code, answer.json()["field"]) == (409, "estimator")


@pytest.mark.parametrize("path", ["encode", "log-density", "elbo"])
def test_label_is_needed_where_a_model_has_some_and_refused_elsewhere(
    latent: Client, path: str
) -> None:
    status, field, detail = refused(latent, path, "lean-labels")
    assert (status, field) == (422, "label")
    assert "lean-labels needs one, 0 to 1" in detail
    for label in (2, [0, 1], [0, 0, 0, 0, 5]):
        assert refused(latent, path, "lean-labels", label=label)[:2] == (422, "label")
    status, field, detail = refused(latent, path, "lean", label=0)
    assert (status, field) == (422, "label")
    assert "lean has no labels" in detail


def test_label_may_be_one_or_one_for_each_in_body_or_query(latent: Client) -> None:
    label = [0, 1, 1, 0, 1]
    each = ask(latent, "elbo", "lean-labels", label=label, draws=4000, refine=3)
    truth = TWO_CLASSES.log_density(X, np.array(label)) - TWO_CLASSES.own_gap
    before = each["amortised"]
    assert (np.abs(before["elbo"] - truth) < 4.5 * np.array(before["standard_error"])).all()
    one = ask(latent, "encode", "lean-labels", label=1)
    queried = latent.post("/encode?label=1,1,1,1,1", json={"model": "lean-labels", **BODY}).json()
    assert queried == one
    np.testing.assert_allclose(one["z"], TWO_CLASSES.mean(X, 1), atol=1e-5)


def test_models_say_what_they_can_do(latent: Client) -> None:
    said = {each["name"]: each for each in latent.get("/models").json()["models"]}
    can = {
        name: (each["posterior"], each["estimators"], each["refine"], each["capabilities"][2:])
        for name, each in said.items()
    }
    all_of_it = ["encode", "log-density", "elbo"]
    assert can == {
        "lean": ("diagonal", ["importance", "prior"], True, all_of_it),
        "lean-bare": (None, ["prior"], False, ["log-density"]),
        "lean-flow": ("flow", ["importance", "prior"], False, all_of_it),
        "lean-full": ("full", ["importance", "prior"], True, all_of_it),
        "lean-labels": ("diagonal", ["importance", "prior"], True, all_of_it),
        "lean-learned": ("diagonal", ["importance", "prior"], True, all_of_it),
    }


def test_model_without_an_encoder_says_what_it_can_do_instead(latent: Client) -> None:
    for path in ("encode", "elbo"):
        status, field, detail = refused(latent, path, "lean-bare")
        assert (status, field) == (409, "model")
        assert "lean-bare has no posterior and cannot" in detail
        assert "It can: sample, decode, log-density." in detail
    drawn = latent.get("/sample?model=lean-bare&n=2&seed=1&observation=draw").json()
    assert np.shape(drawn["x"]) == (2, 3)
    assert latent.post("/decode", json={"model": "lean-bare", "z": [[0, 0]]}).status_code == 200


@pytest.mark.parametrize("estimator", ["importance", "prior"])
def test_event_beyond_the_model_is_impossible_or_named(latent: Client, estimator: str) -> None:
    answer = latent.post(
        "/log-density",
        json={"model": "lean", "x": [[0, 0, 0], [3e38, 0, 0]], "estimator": estimator, "seed": 1},
    )
    assert answer.json()["log_density"][1] == "-Infinity"

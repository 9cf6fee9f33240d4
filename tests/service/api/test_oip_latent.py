"""/v2 of latent-variable models: their likelihoods, refinements, labels and flows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service import noise
from service.interface import REFINE_DRAWS
from service.noise import Stream
from tests.service.api.test_oip_inference import arrays, infer, native, refused, tensor
from tests.service.bundles import step
from tests.service.conftest import Client, MakeClient
from tests.service.ppca import DIAGONAL, FULL, LATENT, TWO_CLASSES

X = np.random.default_rng(3).normal(size=(5, 3))
Z = np.random.default_rng(4).normal(size=(5, 7, 2))
LABEL = [0, 1, 1, 0, 1]


def test_likelihood_is_that_of_every_draw_that_was_sent(latent: Client) -> None:
    said = infer(latent, "lean-bare.likelihood", tensor("x", X), tensor("z", Z))
    assert "parameters" not in said
    expected = DIAGONAL.likelihood(X, Z)["log_likelihood"]
    np.testing.assert_allclose(arrays(said)["log_likelihood"], expected, rtol=1e-5)


def test_likelihood_of_a_label_is_that_of_its_class(latent: Client) -> None:
    label = tensor("label", np.array(LABEL)[:, None], "INT64")
    given = tensor("x", X), tensor("z", Z[:, :1]), label
    found = arrays(infer(latent, "lean-labels.likelihood", *given))["log_likelihood"]
    expected = TWO_CLASSES.likelihood(X, Z[:, :1], np.array(LABEL))["log_likelihood"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("column", [True, False])
def test_refinement_is_one_step_with_the_noise_of_its_seed(latent: Client, column: bool) -> None:
    tril, mean = np.broadcast_to(FULL.factor.T, (5, 2, 2)), FULL.mean(X)
    rate = np.full((5, 1) if column else 5, 0.5)
    given = [tensor("x", X), tensor("mean", mean), tensor("scale_tril", tril), tensor("rate", rate)]
    said = infer(latent, "lean-full.refine", *given, parameters={"seed": 8})
    assert said["parameters"] == {"seed": 8}
    eps = np.stack([
        noise.normal(8, Stream.REFINEMENT, start=row * 2**20, rows=REFINE_DRAWS, size=2)
        for row in range(5)
    ])  # fmt: skip
    expected = FULL.step(X, mean, np.full(5, 0.5), eps, scale_tril=tril)
    found = arrays(said)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
    sent = infer(latent, "lean-full.refine", *given, tensor("noise", eps))
    assert "parameters" not in sent
    np.testing.assert_allclose(arrays(sent)["refined_mean"], found["refined_mean"], rtol=1e-6)


EYE = np.broadcast_to(np.eye(2), (5, 2, 2))


@pytest.mark.parametrize(
    ("model", "given", "sentence"),
    [
        ("lean", {"scale": -np.ones((5, 2))}, "field 'scale': expected positive numbers; got -1"),
        ("lean", {"scale": np.zeros((5, 2))}, "field 'scale': expected positive numbers; got 0"),
        ("lean", {"rate": np.full((5, 1), -0.5)}, "field 'rate'"),
        ("lean", {"rate": np.full((5, 1), 1.5)}, "field 'rate'"),
        ("lean-full", {"scale_tril": -EYE}, "expected a positive diagonal; got -1"),
        ("lean-full", {"scale_tril": EYE + np.eye(2, k=1)}, "expected nothing above its diagonal"),
    ],
)
def test_scales_and_rates_of_no_gaussian_are_refused(
    latent: Client, model: str, given: dict[str, Any], sentence: str
) -> None:
    scale = {"scale_tril": EYE} if model == "lean-full" else {"scale": np.ones((5, 2))}
    sound = {"x": X, "mean": Z[:, 0], **scale, "rate": np.full((5, 1), 0.5)}
    inputs = [tensor(name, value) for name, value in (sound | given).items()]
    assert sentence in refused(latent, f"{model}.refine", *inputs)


def test_what_refinement_takes_is_described(latent: Client) -> None:
    said = latent.get("/v2/models/lean-labels.refine").json()
    assert {each["name"]: each["shape"] for each in said["inputs"]} == {
        "x": [-1, 3], "label": [-1, 1], "mean": [-1, 2], "scale": [-1, 2], "rate": [-1, 1],
        "noise": [-1, 4, 2],
    }  # fmt: skip
    names = [each["name"] for each in said["outputs"]]
    assert names == ["refined_mean", "refined_scale"]
    config = latent.get("/v2/models/lean-labels.refine/config").json()
    assert [each["name"] for each in config["input"] if each["optional"]] == ["noise"]
    likelihood = latent.get("/v2/models/lean.likelihood/config").json()
    assert [each["optional"] for each in likelihood["input"]] == [False, False]


def test_code_of_a_flow_is_drawn_as_by_the_native_api(latent: Client) -> None:
    said = infer(latent, "lean-flow.encode", tensor("x", X), parameters={"seed": 8, "draws": 6})
    assert said["parameters"] == {"seed": 8}
    expected = native(latent, "/encode", model="lean-flow", x=X.tolist(), seed=8, draws=6)
    np.testing.assert_allclose(arrays(said)["z"], expected["z"], rtol=1e-5)
    assert arrays(infer(latent, "lean-flow.encode", tensor("x", X)))["z"].shape == (5, 64, 2)
    none = infer(latent, "lean-flow.encode", tensor("x", X), tensor("noise", Z * 0))
    np.testing.assert_allclose(arrays(none)["z"][:, 3], FULL.mean(X), atol=1e-5)


def test_divergence_of_a_flow_is_of_each_draw(latent: Client) -> None:
    found = arrays(infer(latent, "lean-flow.elbo", tensor("x", X), parameters={"draws": 6}))
    assert found["kl"].shape == (5, 6)
    np.testing.assert_allclose(
        found["log_weight"], found["reconstruction"] - found["kl"], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "reason"),
    [
        ("lean.likelihood", [tensor("x", X)], {}, "input 'z': it is missing"),
        ("lean.likelihood", [tensor("x", X), tensor("z", Z)], {"seed": 1}, "unknown here"),
        ("lean.likelihood", [tensor("x", X), tensor("z", Z[:, :0])], {}, "at least one draw"),
        ("lean.likelihood", [tensor("x", X), tensor("z", Z[:, 0])], {}, "shape (n, draws, 2); got"),
        ("lean.likelihood", [tensor("x", X), tensor("z", Z[:3])], {}, "different numbers of rows"),
        ("lean.refine", [tensor("x", X)], {"draws": 3}, "parameter 'draws': unknown here"),
        ("lean.refine", [tensor("x", X), tensor("mean", X[:, :2])], {}, "input 'scale'"),
        ("lean-labels.elbo", [tensor("x", X)], {}, "input 'label': it is missing"),
        ("lean-labels.elbo", [tensor("x", X), tensor("label", [2] * 5, "INT64")], {}, "got 2"),
        ("lean-flow.encode", [tensor("x", X), tensor("noise", Z)], {"draws": 7}, "itself was sent"),
    ],
)  # fmt: skip
def test_inputs_are_checked(
    latent: Client,
    model: str,
    inputs: list[dict[str, Any]],
    parameters: dict[str, Any],
    reason: str,
) -> None:
    assert reason in refused(latent, model, *inputs, parameters=parameters)


@pytest.mark.parametrize("rate", [[[0.5, 0.5]] * 5, 0.5, [0.5] * 4])
def test_rate_is_one_for_each_row(latent: Client, rate: object) -> None:
    half = np.full((5, 2), 0.5, np.float32)
    inputs = [tensor("x", X), tensor("mean", half), tensor("scale", half), tensor("rate", rate)]
    text = refused(latent, "lean.refine", *inputs)
    assert "field 'rate': expected shape (n, 1) or (n)" in text or "rate 4" in text


def test_draws_that_were_sent_are_limited_as_those_that_are_made(
    make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("limited")
    for tiny in LATENT:
        tiny.publish(folder)
    client = make_client(models=folder, max_draws=34)
    x, z = tensor("x", X), tensor("z", Z)
    assert "5 x 7" in refused(client, "lean.likelihood", x, z)
    infer(client, "lean.likelihood", x, tensor("z", Z[:, :6]))
    assert "5 x 7" in refused(client, "lean-flow.encode", x, parameters={"draws": 7})
    client = make_client(models=folder, max_values=1024)
    text = refused(client, "lean-flow.encode", x, parameters={"draws": 69})
    assert "field 'draws': at most 341 rows" in text


def test_event_of_one_number_is_no_column(
    make_client: MakeClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("narrow")
    narrow = step(1, "narrow")
    vector = {"shape": (1,)}
    about = narrow.interface.model_copy(
        update={
            "event": narrow.interface.event.model_copy(update=vector),
            "latent": narrow.interface.latent.model_copy(update=vector),
        }
    )
    replace(narrow, interface=about).publish(folder)
    client = make_client(models=folder)
    found = arrays(infer(client, "narrow.decode", tensor("z", [[1.0], [2.0]])))
    np.testing.assert_array_equal(found["x"], [[2.0], [3.0]])

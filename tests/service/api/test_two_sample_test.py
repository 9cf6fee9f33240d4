"""/two-sample-test over HTTP: models' own samples, strangers, and what cannot be compared."""

import io
from typing import Any

import httpx
import numpy as np
import pytest

from service import sampling
from service.two_sample import PERMUTATIONS
from tests.service.conftest import Client, MakeClient, ask


def samples(client: Client, model: str, n: int, **body: object) -> Any:  # noqa: ANN401  # nested lists
    return ask(client, "sample", model=model, n=n, **body)["x"]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("affine", {}),
        ("ppca", {"observation": "draw"}),
        ("tiles", {}),
        ("tiles", {"label": [0, 1, 2, 2] * 25}),
    ],
)
@pytest.mark.parametrize("kernel", ["rational-quadratic", "energy"])
def test_samples_of_a_model_look_like_its_own(
    client: Client, model: str, body: dict[str, Any], kernel: str
) -> None:
    x = samples(client, model, 100, seed=8, **body)
    told = {"label": body["label"]} if "label" in body else {}
    said = ask(client, "two-sample-test", model=model, x=x, seed=3, kernel=kernel, **told)
    assert said["p_value"] > 0.01
    assert abs(said["statistic"]) <= 4.5 * said["standard_error"]
    assert (said["n"], said["kernel"], said["seed"]) == (100, kernel, 3)
    assert said["permutations"] == PERMUTATIONS


def test_strangers_do_not(client: Client) -> None:
    x = np.array(samples(client, "affine", 100, seed=8)) + 1.0
    said = ask(client, "two-sample-test", model="affine", x=x.tolist(), seed=3)
    assert said["p_value"] == 1 / (1 + PERMUTATIONS)
    assert said["statistic"] > 4.5 * said["standard_error"]


def test_label_is_that_of_the_samples_too(client: Client) -> None:
    x = samples(client, "tiles", 60, seed=8, label=1)
    right, wrong, any_label = (
        ask(client, "two-sample-test", model="tiles", x=x, seed=3, **told)["p_value"]
        for told in ({"label": 1}, {"label": 2}, {})
    )
    assert right > 0.01
    assert max(wrong, any_label) < 0.01


def test_means_are_not_draws(client: Client) -> None:
    x = samples(client, "ppca", 200, seed=8, observation="mean")
    by_default, by_mean = (
        ask(client, "two-sample-test", model="ppca", x=x, seed=3, **said)
        for said in ({}, {"observation": "mean"})
    )
    assert by_default["p_value"] < 0.05 < by_mean["p_value"]


def test_sample_that_is_infinite_is_the_model_s_fault(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infinite(*_: object, **__: object) -> dict[str, Any]:
        return {"x": np.full((8, 2), np.inf, np.float32)}

    monkeypatch.setattr(sampling, "sample", infinite)
    answer = client.post("/two-sample-test", json={"model": "affine", "x": [[0.0, 0.0]] * 8})
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_failed")


def test_same_seed_same_answer_in_every_format(client: Client) -> None:
    x = np.array(samples(client, "affine", 30, seed=1), np.float32)
    said = ask(client, "two-sample-test", model="affine", x=x.tolist(), seed=4)
    body = io.BytesIO()
    np.save(body, x)
    answer = client.post(
        "/two-sample-test",
        params={"model": "affine", "seed": 4},
        content=body.getvalue(),
        headers={"Content-Type": "application/x-npy", "Accept": "application/x-npy"},
    )
    assert answer.headers["pushforward-seed"] == "4"
    assert np.load(io.BytesIO(answer.content)) == said["p_value"]
    drawn = ask(client, "two-sample-test", model="affine", x=x.tolist())
    assert ask(client, "two-sample-test", model="affine", x=x.tolist(), seed=drawn["seed"]) == drawn


def refused(client: Client, **body: object) -> tuple[int, str]:
    answer: httpx.Response = client.post("/two-sample-test", json=body)
    return answer.status_code, answer.json()["field"]


def test_what_cannot_be_compared_is_refused(client: Client, make_client: MakeClient) -> None:
    x = [[0.0, 0.0]] * 8
    assert refused(client, model="affine", x=x[:7]) == (422, "x")
    assert refused(client, model="affine", x=[[0.0, 0.0]] * 1001) == (422, "x")
    assert refused(client, model="affine", x=[[0.0]] * 8) == (422, "x")
    assert refused(client, model="affine") == (422, "x")
    assert refused(client, model="affine", x=x, kernel="linear") == (422, "kernel")
    assert refused(client, model="affine", x=x, label=1) == (422, "label")
    assert refused(client, model="affine", x=x, observation="draw") == (409, "observation")
    assert refused(client, model="affine", x=x, steps=3) == (409, "steps")
    assert refused(client, model="affine", x=x, n=3) == (422, "n")
    small = make_client(max_values=1024)
    assert refused(small, model="affine", x=x * 65) == (422, "x")

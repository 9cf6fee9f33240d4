"""A bundle whose p(z) is a graph: what is sampled, weighed and bounded goes by it."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import bundle, monte_carlo, noise, operations, sampling
from service.batching import Batcher
from service.engine import Engine
from service.interface import Estimator
from service.lanes import Job
from service.noise import Stream
from service.sampling import Drawing
from service.session import Device
from tests.service.api.test_oip_inference import arrays, infer, native, refused, tensor
from tests.service.conftest import Client, MakeClient
from tests.service.ppca import LEAN_LEARNED, WIDE
from tests.service.test_bundle import edit

X = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    read = bundle.read(LEAN_LEARNED.publish(tmp_path_factory.mktemp("learned")))
    with closing(Batcher(devices=2)) as batcher:
        yield Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=64, max_batch_s=1)


def noise_of(seed: int, rows: int) -> np.ndarray:
    return noise.normal(seed, Stream.LATENT, start=0, rows=rows, size=2)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_samples_are_made_of_what_the_prior_makes_of_the_noise(
    engine: Engine, temperature: float
) -> None:
    drawing = Drawing(n=100, seed=5, temperature=temperature, include=("z",))
    answer = asyncio.run(sampling.sample(engine, drawing))
    z = WIDE.width * temperature * noise_of(5, 100)
    np.testing.assert_allclose(answer["z"], z, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(answer["x"], WIDE.decode(z)["x"], rtol=1e-4, atol=1e-5)
    decoded = asyncio.run(operations.decode(engine, answer["z"]))
    np.testing.assert_array_equal(decoded["x"], answer["x"])


def test_any_slice_of_the_samples_is_the_slice_of_the_whole(engine: Engine) -> None:
    async def ask() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        whole = await sampling.sample(engine, Drawing(n=500, seed=5))
        parts = await asyncio.gather(
            *(sampling.sample(engine, Drawing(n=n, seed=5, start=first)) for first, n in SLICES)
        )
        streamed = [window["x"] async for window in sampling.stream(engine, Drawing(n=500, seed=5))]
        return whole["x"], [part["x"] for part in parts], np.concatenate(streamed)

    whole, parts, streamed = asyncio.run(ask())
    for (first, n), part in zip(SLICES, parts, strict=True):
        np.testing.assert_array_equal(part, whole[first : first + n])
    np.testing.assert_array_equal(streamed, whole)


def test_small_sample_goes_first_on_both_of_its_lanes_and_a_part_of_a_stream_does_not(
    engine: Engine, jobs: list[Job[Any]]
) -> None:
    asyncio.run(sampling.sample(engine, Drawing(n=1, seed=5)))
    assert [(job.begun, job.is_prompt) for job in jobs] == [(False, True)] * 2
    jobs.clear()
    asyncio.run(sampling.sample(engine, Drawing(n=1, seed=5), begun=True))
    assert [(job.begun, job.is_prompt) for job in jobs] == [(True, False)] * 2


SLICES = [(0, 1), (3, 64), (100, 7), (499, 1), (17, 300)]


@pytest.mark.parametrize(("estimator", "draws"), [("importance", 500), ("prior", 30_000)])
def test_estimates_are_those_of_the_density(
    engine: Engine, estimator: Estimator, draws: int
) -> None:
    answer = asyncio.run(
        operations.log_density(engine, X[:8], draws=draws, seed=1, estimator=estimator)
    )
    score = answer["log_density"] - WIDE.log_density(X[:8].astype(float))
    assert np.abs(score / answer["standard_error"]).max() < 4.5
    assert answer["standard_error"].max() < 0.2


def test_windows_of_the_prior_add_up_to_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> np.ndarray:
        call = operations.log_density(engine, X, draws=100, seed=1, estimator="prior")
        return asyncio.run(call)["log_density"]

    whole = ask()
    monkeypatch.setattr(monte_carlo, "WINDOW_DRAWS", 1)
    np.testing.assert_allclose(ask(), whole, rtol=1e-10)


def test_bound_is_the_closed_form_and_its_divergence_is_by_draws(engine: Engine) -> None:
    answer = asyncio.run(operations.elbo(engine, X, draws=4000, seed=1))
    np.testing.assert_array_equal(answer["elbo"], answer["reconstruction"] - answer["kl"])
    truth = WIDE.log_density(X.astype(float)) - WIDE.own_gap
    assert np.abs((answer["elbo"] - truth) / answer["standard_error"]).max() < 4.5


def test_encoder_answers_a_gaussian(engine: Engine) -> None:
    answer = asyncio.run(operations.encode(engine, X, draws=None, seed=1))
    assert answer.keys() == {"z", "mean", "scale"}
    np.testing.assert_allclose(answer["z"], WIDE.mean(X.astype(float)), rtol=1e-4, atol=1e-5)


def test_inference_protocol_samples_by_it_and_offers_it(latent: Client) -> None:
    sampled = arrays(
        infer(
            latent,
            "lean-learned.sample",
            tensor("rows", np.zeros((9, 1), dtype=int), "UINT8"),
            parameters={"seed": 5},
        )
    )
    said = native(latent, "/sample", model="lean-learned", n=9, seed=5, include=["z"])
    np.testing.assert_allclose(sampled["z"], said["z"], rtol=1e-6)
    np.testing.assert_allclose(sampled["x"], said["x"], rtol=1e-6)
    eps = noise_of(5, 9)
    pushed = arrays(infer(latent, "lean-learned.prior", tensor("noise", eps)))
    np.testing.assert_allclose(pushed["z"], sampled["z"], rtol=1e-6)
    config = latent.get("/v2/models/lean-learned.prior/config").json()
    assert [each["optional"] for each in config["input"]] == [False]
    given = tensor("noise", eps)
    assert "unknown here" in refused(latent, "lean-learned.prior", given, parameters={"seed": 5})
    z = np.stack([eps, -eps], axis=1)[:5]
    answer = arrays(infer(latent, "lean-learned.likelihood", tensor("x", X[:5]), tensor("z", z)))
    expected = WIDE.likelihood_and_prior(X[:5].astype(float), z)
    for name in ("log_likelihood", "log_prior"):
        np.testing.assert_allclose(answer[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prior", "begins"), [(1, '"'), (None, 'W/"')])
def test_tag_is_weak_where_the_prior_depends_on_its_batch(
    make_client: MakeClient, tmp_path: Path, prior: int | None, begins: str
) -> None:
    folder = LEAN_LEARNED.publish(tmp_path)
    edit(folder, lambda manifest: manifest["graphs"]["decode"].update(rows_exact_at=1))
    edit(folder, lambda manifest: manifest["graphs"]["prior"].update(rows_exact_at=prior))
    client = make_client(models=tmp_path)
    assert client.get("/models/lean-learned").json()["rows_exact_at"]["prior"] == prior
    tag = client.get("/sample", params={"seed": 7, "version": 1}).headers["etag"]
    assert tag.startswith(begins)

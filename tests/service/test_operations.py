"""What the operations return, against the closed forms of the tiny models."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from service import bundle, noise, operations, sampling
from service.batching import Batcher
from service.calls import Answer
from service.condition import Condition
from service.engine import Engine
from service.errors import CapabilityMissing, EngineFailed, InputInvalid
from service.feeds import Draws, Noise
from service.interface import Density, Event, Interface, Latent
from service.noise import Stream
from service.session import Device
from tests.service import bundles
from tests.service.bundles import ALL, TO_PIXELS
from tests.service.ppca import BIAS, NOISE, WEIGHT, ppca_log_density
from tests.service.tiny import Tiny


@pytest.fixture(scope="module")
def engines(models: Path) -> Iterator[dict[str, Engine]]:
    with closing(Batcher(devices=1)) as batcher:
        yield {
            tiny.name: Engine(
                bundle.read(models / tiny.name / "1"),
                Device("cpu"),
                batcher=batcher,
                max_batch_rows=64,
            )
            for tiny in ALL
        }


def test_samples_of_a_flow_have_the_moments_of_its_density(engines: dict[str, Engine]) -> None:
    answer = asyncio.run(sampling.sample(engines["affine"], sampling.Drawing(n=20_000, seed=1)))
    x = answer["x"].astype(float)
    covariance = bundles.MIX.T @ bundles.MIX
    z = (x.mean(axis=0) - bundles.SHIFT) / np.sqrt(np.diag(covariance) / len(x))
    assert np.abs(z).max() <= 4.5
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.15)


def test_mean_log_density_of_samples_is_minus_the_entropy(engines: dict[str, Engine]) -> None:
    answer = asyncio.run(
        sampling.sample(
            engines["affine"], sampling.Drawing(n=20_000, seed=2, include=["log_density"])
        )
    )
    entropy = math.log(2 * math.pi * math.e) + bundles.LOG_DET
    # The variance of -1/2 z^2, summed over two dimensions, is 1.
    assert abs(answer["log_density"].mean() + entropy) * math.sqrt(20_000) <= 4.5


def test_ancestral_draws_have_the_covariance_of_the_model(engines: dict[str, Engine]) -> None:
    answer = asyncio.run(
        sampling.sample(engines["ppca"], sampling.Drawing(n=20_000, seed=3, observation="draw"))
    )
    covariance = WEIGHT.T @ WEIGHT + NOISE**2 * np.eye(3)
    np.testing.assert_allclose(answer["x"].mean(axis=0), BIAS, atol=0.06)
    np.testing.assert_allclose(np.cov(answer["x"].T), covariance, atol=0.1)


def test_draw_is_the_mean_plus_the_noise_of_its_own_stream(engines: dict[str, Engine]) -> None:
    mean, draw = (
        asyncio.run(
            sampling.sample(
                engines["ppca"], sampling.Drawing(n=4, seed=3, start=9, observation=observation)
            )
        )["x"]
        for observation in ("mean", "draw")
    )
    eps = noise.normal(3, noise.Stream.OBSERVATION, start=9, rows=4, size=3)
    np.testing.assert_allclose(draw, mean + NOISE * eps, atol=1e-5)


def test_labels_are_drawn_row_by_row_from_the_seed(engines: dict[str, Engine]) -> None:
    answer = asyncio.run(
        sampling.sample(
            engines["tiles"], sampling.Drawing(n=50, seed=4, start=20, include=["label"])
        )
    )
    expected = noise.labels(4, start=0, rows=70, classes=3)[20:]
    np.testing.assert_array_equal(answer["label"], expected)


def test_pixels_are_the_same_image_in_bytes(engines: dict[str, Engine]) -> None:
    x = asyncio.run(sampling.sample(engines["grains"], sampling.Drawing(n=5, seed=1)))["x"]
    pixels = asyncio.run(
        sampling.sample(engines["grains"], sampling.Drawing(n=5, seed=1, outputs=["pixels"]))
    )
    np.testing.assert_array_equal(pixels["pixels"], np.rint(255 * x.transpose(0, 2, 3, 1)))


def test_draw_of_a_black_and_white_image_is_black_or_white(tmp_path: Path) -> None:
    shades = np.array([[0.0, 0.25, 0.5, 1.0]])
    dots = Tiny(
        name="dots",
        interface=Interface(
            family="vae",
            event=Event(kind="image", shape=(1, 2, 2), minimum=0, maximum=1),
            latent=Latent(shape=(1,)),
            observation="bernoulli",
            density=Density(kind="none", estimator=None),
        ),
        nodes={
            "decode": f"o = Mul(z, zero) a = Add(o, shades) x = Reshape(a, shape) {TO_PIXELS}",
            "observe": "o = Mul(z, zero) a = Add(o, shades) p = Reshape(a, shape) "
            f"b = Less(noise, p) x = Cast<to=1>(b) {TO_PIXELS}",
        },
        constants={
            "zero": np.array([0], np.float32),
            "shades": shades.astype(np.float32),
            "shape": np.array([-1, 1, 2, 2]),
            "white": np.array([255], np.float32),
        },
        references={
            "decode": lambda z: _dots(np.tile(shades, (len(z), 1))),
            "observe": lambda z, noise: _dots(noise.reshape(-1, 4) < shades),
        },
    )
    read = bundle.read(dots.publish(tmp_path))
    with closing(Batcher(devices=1)) as batcher:
        engine = Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=64)
        answer = asyncio.run(
            sampling.sample(engine, sampling.Drawing(n=4000, seed=1, observation="draw"))
        )
    assert set(np.unique(answer["x"])) == {0.0, 1.0}
    z = (answer["x"].reshape(-1, 4).mean(axis=0) - shades[0]) * math.sqrt(4000)
    assert np.abs(z).max() <= 4.5 * 0.5


def _dots(x: np.ndarray) -> dict[str, np.ndarray]:
    image = x.astype(float).reshape(-1, 1, 2, 2)
    return {"x": image, "pixels": np.rint(255 * image).transpose(0, 2, 3, 1)}


@pytest.mark.parametrize("seed", [0, 1])
def test_first_draws_of_an_estimate_do_not_depend_on_how_many_follow(
    engines: dict[str, Engine], seed: int
) -> None:
    x = np.zeros((2, 3), np.float32)
    few, many = (
        asyncio.run(operations.encode(engines["ppca"], x, draws=draws, seed=seed))["z"]
        for draws in (5, 90)
    )
    np.testing.assert_array_equal(few, many[:, :5])


def test_estimate_grows_to_the_truth_with_its_draws(engines: dict[str, Engine]) -> None:
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    truth = ppca_log_density(x.astype(float))
    gaps = []
    for draws in (1, 8, 64):
        answer = asyncio.run(operations.log_density(engines["ppca"], x, draws=draws, seed=1))
        gaps.append(float((truth - answer["log_density"]).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > -0.01
    assert gaps[2] < 0.01


def test_standard_error_covers_the_truth_as_often_as_it_says(engines: dict[str, Engine]) -> None:
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    truth = ppca_log_density(x.astype(float))
    answer = asyncio.run(operations.log_density(engines["ppca"], x, draws=300, seed=7))
    score = (answer["log_density"] - truth) / answer["standard_error"]
    covered = (np.abs(score) < 1.96).mean()
    assert abs(covered - 0.95) <= 4.5 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_dequantised_estimate_does_not_depend_on_the_other_rows_in_number(
    engines: dict[str, Engine], rows: int
) -> None:
    x = np.zeros((rows, 3, 2, 2), np.float32)
    answer = asyncio.run(operations.log_density(engines["grains"], x, draws=65, seed=1))
    truth = bundles.grains_log_density(x[:1].astype(float))
    assert answer["log_density"].shape == (rows,)
    assert abs(answer["log_density"][0] - truth[0]) < 4.5 * answer["standard_error"][0]


def test_capabilities_are_those_of_the_graphs() -> None:
    offered = {tiny.name: operations.capabilities(tiny.manifest(tiny.files())) for tiny in ALL}
    assert offered == {
        "affine": ["sample", "decode", "encode", "log-density"],
        "grains": ["sample", "decode", "encode", "log-density"],
        "ppca": ["sample", "decode", "encode", "log-density", "elbo"],
        "tiles": ["sample", "decode"],
    }
    with pytest.raises(
        CapabilityMissing, match=r"implicit model and has no density\. It can: sample, dec"
    ):
        operations.require(bundles.TILES.manifest(bundles.TILES.files()), "log-density")


def test_flow_with_labels_is_asked_with_them_and_samples_with_their_density(
    tmp_path: Path,
) -> None:
    shifts = np.array([[1.0, -1.0], [0.0, 3.0]])
    labelled = replace(
        bundles.AFFINE,
        interface=bundles.AFFINE.interface.model_copy(update={"labels": ("left", "right")}),
        nodes={
            role: f"shift = Gather(shifts, label) {text}"
            for role, text in bundles.AFFINE.nodes.items()
        },
        constants={
            **{name: value for name, value in bundles.AFFINE.constants.items() if name != "shift"},
            "shifts": shifts.astype(np.float32),
        },
        references={
            "decode": lambda z, label: {"x": z @ bundles.MIX + shifts[label]},
            "encode": lambda x, label: {
                "z": (x - shifts[label]) @ np.linalg.inv(bundles.MIX),
                "log_abs_det": np.full(len(x), -bundles.LOG_DET),
            },
            "log_density": lambda x, label: {
                "log_density": bundles.affine_log_density(x - shifts[label] + bundles.SHIFT)
            },
        },
    )
    with closing(Batcher(devices=1)) as batcher:
        engine = Engine(bundle.read(labelled.publish(tmp_path)), Device("cpu"), batcher=batcher)
        drawing = sampling.Drawing(n=20, seed=1, include=["z", "label", "log_density"])
        drawn = asyncio.run(sampling.sample(engine, drawing))
        told = Condition(drawn["label"].tolist())
        density, code = (
            asyncio.run(ask(engine, drawn["x"], draws=None, seed=0, condition=told))
            for ask in (operations.log_density, operations.encode)
        )
        with pytest.raises(InputInvalid, match="'label': affine needs one, 0 to 1"):
            asyncio.run(operations.encode(engine, drawn["x"], draws=None, seed=0))
    np.testing.assert_array_equal(density["log_density"], drawn["log_density"])
    np.testing.assert_allclose(code["z"], drawn["z"], atol=1e-5)
    prior = -0.5 * (drawn["z"] ** 2).sum(axis=1) - math.log(2 * math.pi) - bundles.LOG_DET
    np.testing.assert_allclose(drawn["log_density"], prior, rtol=1e-4, atol=1e-4)


def test_each_draw_of_a_dequantised_event_has_its_label(tmp_path: Path) -> None:
    grains = bundles.GRAINS
    told = replace(
        grains,
        interface=grains.interface.model_copy(update={"labels": ("none", "one", "two")}),
        nodes={
            role: text.replace("log_density = Add(", "t = Add(")
            + (" f = Cast<to=1>(label) log_density = Add(t, f)" if role == "log_density" else "")
            for role, text in grains.nodes.items()
        },
        references={
            "decode": lambda z, label: grains.references["decode"](z=z),
            "encode": lambda x, noise, label: grains.references["encode"](x=x, noise=noise),
            "log_density": lambda x, noise, label: {
                "log_density": grains.references["log_density"](x=x, noise=noise)["log_density"]
                + label
            },
        },
    )
    x = np.zeros((3, 3, 2, 2), np.float32)
    with closing(Batcher(devices=1)) as batcher:
        engine = Engine(bundle.read(told.publish(tmp_path)), Device("cpu"), batcher=batcher)
        ask = partial(operations.log_density, engine, x, draws=33, seed=1)
        plain, other = (asyncio.run(ask(condition=Condition(label))) for label in (0, [2, 0, 1]))
    difference = other["log_density"] - plain["log_density"]
    np.testing.assert_allclose(difference, [2, 0, 1], atol=1e-4)


NAN = np.float32("nan")


@pytest.mark.parametrize(
    ("model", "call"),
    [
        ("affine", operations.encode),
        ("ppca", operations.encode),
        ("affine", operations.log_density),
        ("ppca", operations.log_density),
        ("ppca", operations.elbo),
    ],
)
def test_row_of_x_whose_answer_is_nan_is_named(
    engines: dict[str, Engine], model: str, call: Callable[..., Coroutine[None, None, Answer]]
) -> None:
    x = np.zeros((5, *engines[model].manifest.event.shape), np.float32)
    x[3] = NAN
    with pytest.raises(InputInvalid, match=f"'x': row 3 is too large for {model}") as caught:
        asyncio.run(call(engines[model], x, draws=None, seed=0))
    assert caught.value.field == "x"


def test_row_of_a_dequantised_estimate_is_that_of_x(engines: dict[str, Engine]) -> None:
    x = np.zeros((5, 3, 2, 2), np.float32)
    x[3] = NAN
    with pytest.raises(InputInvalid, match="row 3 is too large"):
        asyncio.run(operations.log_density(engines["grains"], x, draws=7, seed=0))


@pytest.mark.parametrize("output", ["x", "pixels"])
def test_row_of_z_whose_answer_is_nan_is_named_in_every_format(
    engines: dict[str, Engine], output: Literal["x", "pixels"]
) -> None:
    z = np.array([[0, 0], [NAN, 0]], np.float32)
    with pytest.raises(InputInvalid, match="'z': row 1 is too large for tiles"):
        asyncio.run(operations.decode(engines["tiles"], z, condition=Condition(0), output=output))


@pytest.mark.parametrize("output", ["x", "pixels"])
def test_sample_that_is_nan_is_our_own_fault_in_every_format(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, output: Literal["x", "pixels"]
) -> None:
    monkeypatch.setattr(noise, "uniform", lambda *_, rows, size, **__: np.full((rows, size), NAN))
    drawing = sampling.Drawing(n=2, seed=0, condition=Condition(0), outputs=[output])
    with pytest.raises(EngineFailed, match="tiles: decode answered NaN in 'x'"):
        asyncio.run(sampling.sample(engines["tiles"], drawing))


def test_uniform_noise_is_below_one_in_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = 1 - 2.0**-53
    monkeypatch.setattr(
        noise, "uniform", lambda *_, rows, size, **__: np.full((rows, size), nearest)
    )
    single = Noise(0, Stream.OBSERVATION, (3,), is_normal=False).rows(0, 2)
    cells = Draws(0, Stream.DEQUANTISATION, (3,), is_normal=False, draws=2).rows(0, 2)
    for values in (single, cells):
        assert values.dtype == np.float32
        assert (values == 1 - 2.0**-24).all()

"""Guided flows: solved along two velocities, each in closed form, and so is where they lead."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import noise, ode, operations, sampling
from service.batching import Batcher
from service.condition import Condition
from service.engine import Engine
from service.errors import InputInvalid
from service.interface import Ode
from service.noise import Stream
from service.ode import Method
from service.sampling import Drawing
from tests.service.linear_odes import (
    DRIFT,
    GUST,
    LED,
    LEVELS,
    PULL,
    SPIRAL,
    drift_path,
    gust_encode,
)
from tests.service.test_ode import IMAGES, LABELS, decode, engine_of, estimated
from tests.service.tiny import Floats


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    with closing(Batcher(devices=2)) as made:
        yield made


@pytest.fixture(scope="module")
def led(tmp_path_factory: pytest.TempPathFactory, batcher: Batcher) -> Engine:
    return engine_of(LED, tmp_path_factory.mktemp("led"), batcher)


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory, batcher: Batcher) -> Engine:
    return engine_of(DRIFT, tmp_path_factory.mktemp("drift"), batcher)


def test_guided_evaluations_are_of_twice_as_many_rows() -> None:
    manifest = LED.manifest(LED.files())
    assert ode.usual(manifest) == Method("midpoint", 40, guidance=0.5)
    method = ode.chosen(manifest, Drawing(n=1, seed=0, steps=3, guidance=0))
    assert method == Method("midpoint", 3)
    assert (method.runs, method.evaluations) == (6, 6)
    guided = Method("midpoint", 3, guidance=2.0)
    assert (guided.runs, guided.evaluations) == (6, 12)


def test_guided_paths_end_where_the_label_and_none_lead_them(led: Engine, drift: Engine) -> None:
    z = np.random.default_rng(5).normal(size=(5, 1, 2, 2))

    def x_of(w: Floats) -> Floats:
        return np.asarray((((w + 1) / 2 * LEVELS - 0.5) / (LEVELS - 1)).clip(0, 1))

    for guidance in (0.0, 0.5, 3.0):
        method = Method("rk4", 40, guidance=guidance)
        wanted = x_of(drift_path(z.reshape(5, 4), np.array(LABELS), guidance=guidance))
        found = decode(led, z, method, label=LABELS)
        np.testing.assert_allclose(found.reshape(5, 4), wanted, atol=1e-5)
    np.testing.assert_array_equal(
        decode(led, z, Method("rk4", 9), label=LABELS),
        decode(drift, z, Method("rk4", 9), label=LABELS),
    )
    # Which is what happens to a sample where nobody says otherwise, whatever its company.
    drawing = Drawing(n=300, seed=4, condition=Condition(1))
    whole = asyncio.run(sampling.sample(led, drawing))["x"]
    normal = noise.normal(4, Stream.LATENT, start=0, rows=300, size=4)
    wanted = x_of(drift_path(normal, np.ones(300, np.int64), guidance=0.5))
    np.testing.assert_allclose(whole.reshape(300, 4), wanted, atol=1e-3)
    part = asyncio.run(sampling.sample(led, drawing.part(70, 3)))["x"]
    np.testing.assert_array_equal(part, whole[70:73])


def test_guided_density_is_that_of_the_guided_paths(led: Engine) -> None:
    """The divergence does not depend on the label here; the ends of the paths do."""
    method, draws = Method("rk4", 30, guidance=1.5), 6
    condition = Condition(LABELS)
    answer = asyncio.run(
        operations.log_density(led, IMAGES, draws=draws, seed=3, condition=condition, method=method)
    )
    found = estimated(draws, guidance=1.5)
    np.testing.assert_allclose(answer["log_density"], found.mean(axis=1), atol=1e-4)
    code = asyncio.run(
        operations.encode(led, IMAGES, draws=None, seed=3, condition=condition, method=method)
    )
    back = decode(led, code["z"], method, label=LABELS)
    assert np.abs(back - IMAGES).max() <= 0.5 / 3 + 1e-5


@pytest.mark.parametrize("guidance", [None, 0.0, 0.5, 2.0])
def test_exact_density_is_led_like_the_paths(
    tmp_path: Path, batcher: Batcher, guidance: float | None
) -> None:
    engine = engine_of(GUST, tmp_path, batcher)
    x = np.random.default_rng(6).normal(size=(30, 2))
    label = np.arange(30) % 2
    told = Condition(label.tolist())
    method = None if guidance is None else Method("rk4", 20, guidance=guidance)
    z, log_abs_det = gust_encode(x, label, 0.5 if guidance is None else guidance)
    code = asyncio.run(
        operations.encode(engine, x, draws=None, seed=0, condition=told, method=method)
    )
    np.testing.assert_allclose(code["z"], z, atol=1e-5)
    np.testing.assert_allclose(code["log_abs_det"], log_abs_det, atol=1e-5)
    density = asyncio.run(
        operations.log_density(engine, x, draws=None, seed=0, condition=told, method=method)
    )
    wanted = -0.5 * (z**2).sum(axis=1) - np.log(2 * np.pi) + log_abs_det
    np.testing.assert_allclose(density["log_density"], wanted, atol=1e-4)


def test_flow_that_is_told_no_labels_cannot_be_guided() -> None:
    ode = Ode(solver="rk4", steps=20, guidance=0.5)
    with pytest.raises(ValueError, match="labels: of a model with an ode it has some"):
        replace(SPIRAL, interface=SPIRAL.interface.model_copy(update={"ode": ode})).manifest(
            SPIRAL.files()
        )


def test_row_that_runs_away_is_the_callers_where_it_is_guided(led: Engine) -> None:
    z = np.zeros((3, 1, 2, 2), np.float32)
    z[2] = 3e38 * np.sign(PULL[:, 0]).reshape(1, 2, 2)
    with pytest.raises(InputInvalid, match="field 'z': row 2 is too large for led"):
        decode(led, z, Method("rk4", 4, guidance=4.0), label=[0, 1, 0])

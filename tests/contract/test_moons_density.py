"""The density of the shipped models of two moons is a density, and that of their samples."""

import asyncio
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest

from service import bundle, operations, sampling
from service.batching import Batcher
from service.engine import Engine
from service.session import Device
from tests.contract.test_shipped_bundles import MODELS

Points = npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=["moons-flow", "moons-flow-matching"])
def moons(request: pytest.FixtureRequest) -> Iterator[Engine]:
    newest = bundle.versions(MODELS, request.param)[0]
    with closing(Batcher(devices=2)) as batcher:
        read = bundle.read(MODELS / request.param / str(newest))
        yield Engine(read, Device("cpu"), batcher=batcher, max_batch_rows=1024)


@pytest.fixture(scope="module")
def samples(moons: Engine) -> Points:
    return asyncio.run(sampling.sample(moons, sampling.Drawing(n=20_000, seed=1)))["x"]


@pytest.fixture(scope="module")
def grid(moons: Engine) -> tuple[npt.NDArray[np.float64], float]:
    """Log-densities on the points of a fine grid well beyond the data, and a cell's area."""
    across, up = np.linspace(-3, 4, 351), np.linspace(-2.5, 3, 276)
    area = (across[1] - across[0]) * (up[1] - up[0])
    centres = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2).astype(np.float32)
    return _log_density(moons, centres), float(area)


def _log_density(engine: Engine, x: Points) -> npt.NDArray[np.float64]:
    answer = asyncio.run(operations.log_density(engine, x, draws=None, seed=0))
    return answer["log_density"].astype(np.float64)


def _held_out_moons(*, rows: int, noise: float, seed: int) -> Points:
    """Return new moons by scikit-learn's definition of them, written without it."""
    rng = np.random.default_rng(seed)
    outer, inner = np.linspace(0, np.pi, rows // 2), np.linspace(0, np.pi, rows - rows // 2)
    upper = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    lower = np.stack([1 - np.cos(inner), 0.5 - np.sin(inner)], axis=1)
    x = np.concatenate([upper, lower]) + noise * rng.standard_normal((rows, 2))
    return x.astype(np.float32)


def test_the_density_integrates_to_one(
    grid: tuple[npt.NDArray[np.float64], float],
) -> None:
    log_density, area = grid
    assert abs(np.exp(log_density).sum() * area - 1) <= 1e-3


def test_samples_have_the_mean_log_density_of_the_model(
    moons: Engine, samples: Points, grid: tuple[npt.NDArray[np.float64], float]
) -> None:
    log_density, area = grid
    negative_entropy = (np.exp(log_density) * log_density).sum() * area
    of_samples = _log_density(moons, samples)
    error = of_samples.std() / np.sqrt(len(of_samples))
    assert abs(of_samples.mean() - negative_entropy) <= 4.5 * error


def test_a_point_far_away_has_a_finite_tiny_density(moons: Engine) -> None:
    far = np.array([[1e3, -1e3], [50, 50]], dtype=np.float32)
    log_density = _log_density(moons, far)
    assert np.isfinite(log_density).all()
    assert (log_density < -100).all()


def test_samples_pass_for_held_out_moons(moons: Engine, samples: Points) -> None:
    """Energy statistic of 500 samples against 500 new moons, by 999 permutations."""
    noise = moons.manifest.provenance.recipe["data"]["noise"]
    both = np.concatenate([samples[:500], _held_out_moons(rows=500, noise=noise, seed=5)])
    distance = np.linalg.norm(both[:, None] - both[None], axis=-1)
    # With +1 for one sample and -1 for the other, 2 E|x-y| - E|x-x'| - E|y-y'| is -s'Ds / m^2.
    sign = np.repeat([1.0, -1.0], 500)
    rng = np.random.default_rng(6)
    signs = np.stack([sign, *(rng.permutation(sign) for _ in range(999))])
    statistics = -np.einsum("bi,bi->b", signs @ distance, signs)
    assert np.mean(statistics >= statistics[0]) > 0.01

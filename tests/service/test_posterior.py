"""What is known of a Gaussian posterior in closed form, against the plain formulas."""

import numpy as np
import pytest

from service import feeds
from service.feeds import Codes, Draws
from service.noise import Stream
from service.posterior import Diagonal, Full, Gaussian, gaussian

SHAPE = (2, 3)
SIZE = 6


def posterior(kind: str, rows: int = 5) -> tuple[Gaussian, np.ndarray, np.ndarray]:
    """Return one, with its means (rows, SIZE) and factors L (rows, SIZE, SIZE) in float64."""
    generator = np.random.default_rng(0)
    mean = generator.normal(size=(rows, *SHAPE)).astype(np.float32)
    flat = mean.reshape(rows, SIZE).astype(np.float64)
    if kind == "diagonal":
        scale = generator.uniform(0.1, 2, size=mean.shape).astype(np.float32)
        factors = scale.reshape(rows, SIZE, 1).astype(np.float64) * np.eye(SIZE)
        return Diagonal(mean, scale), flat, factors
    tril = np.tril(generator.normal(size=(rows, SIZE, SIZE))).astype(np.float32)
    tril[:, range(SIZE), range(SIZE)] = generator.uniform(0.1, 2, size=(rows, SIZE))
    return Full(mean, tril), flat, tril.astype(np.float64)


KINDS = pytest.mark.parametrize("kind", ["diagonal", "full"])


@KINDS
def test_divergence_is_that_of_two_normals(kind: str) -> None:
    q, mean, factor = posterior(kind)
    covariance = factor @ factor.transpose(0, 2, 1)
    trace = np.trace(covariance, axis1=1, axis2=2)
    expected = 0.5 * (trace + (mean**2).sum(1) - SIZE - np.linalg.slogdet(covariance)[1])
    assert q.kl().dtype == np.float64
    np.testing.assert_allclose(q.kl(), expected, rtol=1e-12)


@KINDS
def test_draw_is_its_mean_and_the_factor_times_its_noise(kind: str) -> None:
    q, mean, factor = posterior(kind)
    noise = Draws(7, Stream.POSTERIOR, SHAPE, first=3, draws=10, width=4)
    z = Codes(q, noise).rows(0, 15).reshape(5, 12, SIZE)
    eps = noise.rows(0, 15).reshape(5, 12, SIZE)
    assert z.dtype == np.float32
    expected = mean[:, None] + eps @ factor.transpose(0, 2, 1)
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)


@KINDS
def test_bytes_of_a_draw_do_not_depend_on_those_beside_it(kind: str) -> None:
    q = posterior(kind, rows=40)[0]
    codes = Codes(q, Draws(7, Stream.POSTERIOR, SHAPE, draws=64, width=16))
    whole = codes.rows(0, 160)
    for first, stop in ((0, 1), (3, 5), (17, 159)):
        np.testing.assert_array_equal(codes.rows(first, stop), whole[first:stop])


@KINDS
@pytest.mark.parametrize("piece", [1, 40, 2**20])
def test_ratio_is_that_of_the_densities(
    kind: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "PIECE_VALUES", piece)
    q, mean, factor = posterior(kind)
    codes = Codes(q, Draws(7, Stream.POSTERIOR, SHAPE, first=3, draws=9))
    found = codes.log_ratios()
    single = Codes(q, Draws(7, Stream.POSTERIOR, SHAPE, first=3, draws=9, width=1))
    z = single.rows(0, 45).reshape(5, 9, SIZE).astype(np.float64)
    precision = np.linalg.inv(factor @ factor.transpose(0, 2, 1))
    apart = z - mean[:, None]
    log_q = -0.5 * (apart @ precision * apart).sum(2)
    log_q += 0.5 * np.linalg.slogdet(precision)[1][:, None]
    assert found.shape == (5, 9)
    # z is what was fed, rounded to float32: its distance from the mean is not quite the noise.
    np.testing.assert_allclose(found, -0.5 * (z**2).sum(2) - log_q, rtol=1e-4, atol=1e-4)


def test_what_is_above_the_diagonal_is_not_read() -> None:
    q = posterior("full")[0]
    other = gaussian({**q.parameters, "scale_tril": q.parameters["scale_tril"] + np.triu(
        np.full((SIZE, SIZE), 9, np.float32), 1)})  # fmt: skip
    noise = Draws(7, Stream.POSTERIOR, SHAPE, draws=3, width=3)
    np.testing.assert_array_equal(Codes(other, noise).rows(0, 5), Codes(q, noise).rows(0, 5))
    np.testing.assert_array_equal(other.kl(), q.kl())


def test_scale_of_nothing_is_infinitely_far_from_the_prior() -> None:
    assert Diagonal(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)).kl() == [np.inf]

"""Distances of features against closed forms, explicit moments, scipy and torch-fidelity."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from torch import Tensor

from training.features import frechet, frechet_of_moments, kernel_distance, sliced_wasserstein
from training.manifolds import support

# What torch-fidelity 0.4.0 says of `waves`, by `mmd2(..., mmd_est="u-statistic")` of its
# `kernel_poly`, `fid_statistics_to_metric` and `prc_features_to_metric(prc_neighborhood=3)`. It is
# not installed here: it needs torchvision, which the CPU build of torch cannot import from PyPI.
FIDELITY = {
    "KID": 0.3139054762963456,
    "KID with pairs": 0.31381074868068826,
    "FID": 0.4743170062662969,
    "precision": 0.58,
    "recall": 0.78,
}


def waves(rows: int, seed: int, shift: float, spread: float) -> Tensor:
    """Return numbers that every machine computes alike."""
    i = torch.arange(rows * 5, dtype=torch.float64).reshape(rows, 5) + 1000 * seed
    return shift + spread * torch.sin(12.9898 * i + 78.233) * torch.cos(0.37 * i.square() % 6.0)


X, Y = waves(300, 1, 0.3, 1.1), waves(300, 2, 0.0, 1.0)


def normal(rows: int, seed: int, features: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64)


def test_torch_fidelity_says_the_same() -> None:
    assert kernel_distance(X, Y).value == pytest.approx(FIDELITY["KID"], rel=1e-9)
    assert frechet(X, Y).value == pytest.approx(FIDELITY["FID"], rel=1e-9)
    found = support(X, Y)
    assert found.precision == pytest.approx(FIDELITY["precision"], abs=1e-6)
    assert found.recall == pytest.approx(FIDELITY["recall"], abs=1e-6)


def test_kid_over_all_partners_is_torch_fidelitys_with_pairs() -> None:
    """Ours leaves out pairs of equal index: the mean over all partners has each as often."""
    x, y = X[:40], Y[:40]
    shifted = [kernel_distance(x, y.roll(k, 0)).value for k in range(40)]
    kernel = ((x @ y.T) / 5 + 1) ** 3
    of_x, of_y = (((a @ a.T) / 5 + 1) ** 3 for a in (x, y))
    pairs = [(each.sum() - each.trace()) / (40 * 39) for each in (of_x, of_y)]
    assert np.mean(shifted) == pytest.approx(float(sum(pairs) - 2 * kernel.mean()), rel=1e-9)
    assert kernel_distance(X, Y).value != pytest.approx(FIDELITY["KID with pairs"], rel=1e-6)


def test_kid_is_the_distance_of_three_moments() -> None:
    """(x.y / d + 1)^3 is the product of all monomials of x and of y up to the third degree."""
    x, y = normal(12, 0), 0.5 + normal(12, 1) ** 2

    def monomials(a: Tensor) -> Tensor:
        one = torch.cat((a / math.sqrt(3), torch.ones(len(a), 1, dtype=a.dtype)), dim=1)
        columns = [one[:, i] * one[:, j] * one[:, k] for i, j, k in product(range(4), repeat=3)]
        return torch.stack(columns, dim=1)

    gap = monomials(x) - monomials(y)
    pairs = gap.sum(0).square().sum() - gap.square().sum()
    assert kernel_distance(x, y).value == pytest.approx(float(pairs) / (12 * 11), abs=1e-8)


def test_kid_is_zero_on_average_and_its_error_is_its_spread() -> None:
    found = [kernel_distance(normal(50, 2 * i), normal(50, 2 * i + 1)) for i in range(300)]
    values = np.array([each.value for each in found])
    assert abs(values.mean()) <= 4.5 * values.std() / math.sqrt(300)
    errors = np.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert values.std() < errors < 1.4 * values.std()


def test_fid_of_gaussians_is_their_squared_wasserstein_distance() -> None:
    generator = np.random.default_rng(0)
    mean, other = generator.normal(size=4), generator.normal(size=4)
    roots = generator.normal(size=(2, 4, 4))
    first, second = (root @ root.T for root in roots)
    cross = sqrtm(first @ second).real
    wanted = ((mean - other) ** 2).sum() + np.trace(first + second - 2 * cross)
    found = frechet_of_moments(*map(torch.from_numpy, (mean, first, other, second)))
    assert found == pytest.approx(wanted, rel=1e-9)
    assert frechet_of_moments(*map(torch.from_numpy, (mean, first, mean, first))) < 1e-9


@pytest.mark.parametrize("features", [29, 30, 31, 32, 60])
def test_fid_of_more_features_than_rows_is_the_same_formula(features: int) -> None:
    # With covariances, whatever there is more of.
    x, y = normal(30, 1, features), normal(30, 2, features) * 2 + 1
    moments = [each for z in (x, y) for each in (z.mean(0), z.T.cov())]
    assert frechet(x, y).value == pytest.approx(frechet_of_moments(*moments), rel=1e-6)


def test_fid_of_very_many_features_needs_no_covariance() -> None:
    x, y = normal(20, 1, 50_000), normal(20, 2, 50_000)
    assert frechet(x, y).value > 0


def test_fid_of_samples_is_that_of_their_gaussians_but_for_its_bias() -> None:
    spread, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, -1.0])
    wanted = float((shift.square() + (1 - spread).square()).sum())
    found = [
        frechet(normal(400, 2 * i), normal(400, 2 * i + 1) * spread + shift) for i in range(60)
    ]
    values = np.array([each.value for each in found])
    corrected = np.array([each.value - (each.bias or 0.0) for each in found])
    assert abs(corrected.mean() - wanted) <= 4.5 * corrected.std() / math.sqrt(60)
    errors = np.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert errors == pytest.approx(values.std(), rel=0.25)


def test_fid_is_too_large_where_samples_agree_and_says_by_how_much() -> None:
    found = [frechet(normal(200, 2 * i, 8), normal(200, 2 * i + 1, 8)) for i in range(30)]
    values = np.array([each.value for each in found])
    biases = np.array([each.bias for each in found])
    assert values.min() > 0
    assert biases.mean() == pytest.approx(values.mean(), rel=0.2)


def test_fid_of_one_feature_and_of_more_features_than_rows_is_finite() -> None:
    assert frechet(normal(50, 0, 1), normal(50, 1, 1)).value < 0.2
    wide = frechet(normal(10, 0, 300), normal(10, 1, 300))
    assert math.isfinite(wide.value)
    assert math.isfinite(wide.standard_error)
    assert frechet(torch.ones(9, 2), torch.ones(9, 2)).value == pytest.approx(0.0, abs=1e-12)


def test_sliced_wasserstein_of_one_feature_is_scipys() -> None:
    x, y = normal(80, 0, 1), 0.4 + 1.5 * normal(80, 1, 1)
    found = sliced_wasserstein(x, y, seed=0)
    assert found.value == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)
    assert found.standard_error < 1e-12


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    """Of rows that are moved by m, W_1 along v is |m.v|, whose mean in the plane is 2 |m| / pi."""
    x = normal(50, 0, 2)
    found = sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), seed=0)
    assert abs(found.value - 10 / math.pi) <= 4.5 * found.standard_error
    # The standard deviation of |cos| is sqrt(1/2 - 4 / pi^2), over 200 directions.
    wanted = 5 * math.sqrt(0.5 - 4 / math.pi**2) / math.sqrt(200)
    assert found.standard_error == pytest.approx(wanted, rel=0.2)
    assert sliced_wasserstein(x, x, seed=0).value == 0
    assert sliced_wasserstein(x, x + 1, seed=3) == sliced_wasserstein(x, x + 1, seed=3)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="four rows or more of each sample; got 3"):
        frechet(normal(3, 0), normal(3, 1))

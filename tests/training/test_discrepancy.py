"""MMD^2 is unbiased, and its standard error is the spread it really has."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from training.discrepancy import estimate, squared_mmd, terms
from training.kernels import SCALES, Kernel, energy, squared_distances

REPLICATES = 400


def normal(rows: int, shift: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, generator=generator, dtype=torch.float64) + shift


def replicate(shift: float, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    found = [
        squared_mmd(normal(rows, 0.0, 2 * i), normal(rows, shift, 2 * i + 1), unit=2.0)
        for i in range(REPLICATES)
    ]
    return np.array([f.value for f in found]), np.array([f.standard_error for f in found])


def test_value_is_the_sum_over_pairs_of_its_definition() -> None:
    x, y = normal(5, 0.0, 1), normal(5, 0.3, 2)

    def kernel(a: Tensor, b: Tensor) -> float:
        squared = float((a - b).square().sum())
        return sum(1 / (1 + squared / (2 * s * 3.0)) for s in SCALES)

    total = sum(
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i in range(5)
        for j in range(5)
        if i != j
    )
    assert squared_mmd(x, y, unit=3.0).value == pytest.approx(total / 20, rel=1e-9)


def replicated(kernel: Kernel, shift: float, rows: int = 60) -> np.ndarray:
    return np.array(
        [
            estimate(terms(normal(rows, 0.0, 2 * i), normal(rows, shift, 2 * i + 1), kernel)).value
            for i in range(REPLICATES)
        ]
    )


def gaussians(unit: float) -> Kernel:
    """A kernel whose MMD^2 has a closed form."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        distances = squared_distances(x, y) / (2 * unit)
        return torch.stack([(-distances / scale).exp() for scale in SCALES]).sum(0)

    return kernel


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_is_its_closed_form_of_gaussians_on_average(shift: float) -> None:
    """E exp(-|x - y|^2 / 2 v) of N(0, 1) and N(m, 1): (v / (v + 2))^(d / 2) e^(-|m|^2 / 2 (v + 2)).

    Of two features, each moved by `shift`: d = 2 and |m|^2 = 2 shift^2.
    """
    unit = 2.0
    found = replicated(gaussians(unit), shift)
    wanted = sum(
        2 * v / (v + 2) * (1 - math.exp(-(shift**2) / (v + 2)))
        for v in (scale * unit for scale in SCALES)
    )
    assert abs(found.mean() - wanted) <= 4.5 * found.std() / math.sqrt(REPLICATES)


def test_energy_distance_is_its_closed_form_on_average() -> None:
    """E|x - y| in the plane, where x - y ~ N(m, 2): of a Rice distribution."""
    shift = 0.7
    found = replicated(energy, shift)
    centre, spread = math.sqrt(2) * shift, math.sqrt(2)
    apart = stats.rice.mean(centre / spread, scale=spread)
    wanted = 2 * apart - 2 * stats.rayleigh.mean(scale=spread)
    assert abs(found.mean() - wanted) <= 4.5 * found.std() / math.sqrt(REPLICATES)


def test_it_is_zero_on_average_and_often_negative_where_the_samples_agree() -> None:
    values, _ = replicate(shift=0.0)
    assert abs(values.mean()) <= 4.5 * values.std() / math.sqrt(REPLICATES)
    assert (values < 0).mean() > 0.3


@pytest.mark.parametrize("shift", [0.3, 1.5])
def test_standard_error_is_the_spread_over_replicates(shift: float) -> None:
    values, errors = replicate(shift)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)


def test_standard_error_is_a_little_too_careful_where_the_samples_agree() -> None:
    values, errors = replicate(shift=0.0)
    assert values.std() < np.sqrt((errors**2).mean()) < 1.3 * values.std()


def test_it_sees_a_shift() -> None:
    found = squared_mmd(normal(500, 0.0, 1), normal(500, 0.5, 2), unit=2.0)
    assert found.value > 4 * found.standard_error


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="three rows or more"):
        squared_mmd(normal(2, 0.0, 1), normal(2, 0.0, 2), unit=1.0)

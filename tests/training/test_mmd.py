"""The squared MMD of an objective, against loops and closed forms, and its witness."""

import math

import pytest
import torch
from torch import Tensor

from training.mmd import DEVIATIONS, EXPONENTS, KERNELS, unbiased_mmd, witness

each_kernel = pytest.mark.parametrize("name", KERNELS)


def one(name: str, a: Tensor, b: Tensor) -> float:
    """Return k(a, b) by its formula."""
    d: float = (a - b).square().sum().item()
    if name == "mmd-gaussian":
        return math.fsum(math.exp(-d / (2 * s * s)) for s in DEVIATIONS)
    if name == "mmd-rational-quadratic":
        return math.fsum(math.pow(1 + d / (2 * alpha), -alpha) for alpha in EXPONENTS)
    return -math.sqrt(d)


def two_samples(rows: int, features: int = 3, shift: float = 0.7) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, features, dtype=torch.float64)
    return x, 1.5 * torch.randn(rows, features, dtype=torch.float64) + shift


@each_kernel
def test_discrepancy_is_that_of_loops_over_pairs(name: str) -> None:
    torch.manual_seed(0)
    x, y = two_samples(7)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    brute = sum(
        one(name, x[i], x[j]) + one(name, y[i], y[j]) - 2 * one(name, x[i], y[j]) for i, j in pairs
    ) / len(pairs)
    assert unbiased_mmd(KERNELS[name], x, y).item() == pytest.approx(brute, abs=1e-12)


@each_kernel
def test_discrepancy_of_equal_distributions_is_0_on_average_and_often_negative(name: str) -> None:
    torch.manual_seed(1)
    found = torch.stack(
        [
            unbiased_mmd(KERNELS[name], *torch.randn(2, 12, 2, dtype=torch.float64).unbind(0))
            for _ in range(2000)
        ]
    )
    assert abs(found.mean()) <= 4.5 * found.std() / math.sqrt(len(found))
    assert 0.2 < (found < 0).double().mean() < 0.9


def test_discrepancy_of_two_gaussians_is_the_closed_form() -> None:
    """Differences are normal, and the mean of a Gaussian kernel over those is another Gaussian."""
    torch.manual_seed(2)
    features, shift = 3, 0.7

    def mean_kernel(variance: float, squared: float) -> float:
        return math.fsum(
            math.pow(s * s / (s * s + variance), features / 2)
            * math.exp(-squared / (2 * (s * s + variance)))
            for s in DEVIATIONS
        )

    exact = mean_kernel(2.0, 0) + mean_kernel(4.5, 0) - 2 * mean_kernel(3.25, features * shift**2)
    kernel = KERNELS["mmd-gaussian"]
    found = torch.stack([unbiased_mmd(kernel, *two_samples(30)) for _ in range(800)])
    assert abs(found.mean() - exact) <= 4.5 * found.std() / math.sqrt(len(found))


def test_discrepancy_of_distances_is_the_energy_distance() -> None:
    """Of N(0, 1) and N(m, 1), whose differences are N(m, 2)."""
    torch.manual_seed(3)
    m = 0.8
    between = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    exact = 2 * between - 4 / math.sqrt(math.pi)
    kernel = KERNELS["mmd-distance"]
    found = torch.stack(
        [
            unbiased_mmd(kernel, x, y + m)
            for x, y in torch.randn(800, 2, 30, 1, dtype=torch.float64).unbind(0)
        ]
    )
    assert abs(found.mean() - exact) <= 4.5 * found.std() / math.sqrt(len(found))


@each_kernel
def test_curvature_is_the_second_derivative_at_equal_features(name: str) -> None:
    kernel = KERNELS[name]
    a = torch.zeros(1, 2, dtype=torch.float64)
    if kernel.curvature is None:
        assert name == "mmd-distance"
        return
    assert kernel(a, a).item() == pytest.approx(kernel.at_zero)

    def of(both: Tensor) -> Tensor:
        return kernel(both[:2][None], both[2:][None]).squeeze()

    hessian = torch.autograd.functional.hessian(of, torch.zeros(4, dtype=torch.float64))
    assert hessian[0, 2].item() == pytest.approx(kernel.curvature)
    assert hessian[1, 3].item() == pytest.approx(kernel.curvature)


@each_kernel
def test_gradients_are_finite_where_features_are_equal(name: str) -> None:
    x = torch.zeros(4, 2, requires_grad=True)
    unbiased_mmd(KERNELS[name], x, torch.ones(4, 2)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@each_kernel
def test_witness_is_high_at_the_data_and_low_at_samples(name: str) -> None:
    torch.manual_seed(4)
    x, y = torch.randn(40, 2), torch.randn(40, 2) + 6
    found = witness(KERNELS[name], torch.tensor([[0.0, 0.0], [6.0, 6.0]]), x, y)
    assert found[0] > 0 > found[1]
    # The squared MMD with all pairs is the witness's mean over the data less that over samples.
    biased = witness(KERNELS[name], x, x, y).mean() - witness(KERNELS[name], y, x, y).mean()
    kernel = KERNELS[name]
    whole = kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()
    assert biased.item() == pytest.approx(whole.item(), rel=1e-4)


def test_one_row_has_no_unbiased_discrepancy() -> None:
    with pytest.raises(ValueError, match=r"train\.batch_size: an unbiased MMD² needs two rows"):
        unbiased_mmd(KERNELS["mmd-gaussian"], torch.zeros(1, 2), torch.zeros(1, 2))

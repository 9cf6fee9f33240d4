r"""The squared maximum mean discrepancy of two samples, without bias and with its error.

    MMD^2(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y),    x, x' ~ p and y, y' ~ q

It is 0 exactly when p = q. The kernel is a sum of rational quadratics of several tails, so
that no single length scale has to be right:

    k(x, y) = sum_a (1 + |x - y|^2 / (2 a u))^-a,    a in KERNEL_SHAPES

Source:
    Gretton et al. 2012, JMLR 13, eq. 4. Kernels: Binkowski et al. 2018, arXiv:1801.01401.
    Variance: Sutherland et al. 2017, arXiv:1611.04488, eq. 5.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

KERNEL_SHAPES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Exponents a: Binkowski et al. 2018, eq. 10."""


@dataclass(frozen=True)
class Discrepancy:
    """An estimate of MMD^2, which may be negative, and its standard error."""

    value: float
    standard_error: float


def squared_mmd(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"], *, unit: float
) -> Discrepancy:
    r"""Return the U-statistic of MMD^2 and its standard error.

    With h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), the estimate is the mean of
    h over i != j; its variance is 4 (n - 2) / (n (n - 1)) s1 + 2 / (n (n - 1)) s2, where s1 is
    the variance of E[h_ij | i] and s2 that of h_ij. Where p = q, s1 is 0 and the second term is
    all there is, so the error is right there too. Pairs of equal index never meet: y_i may
    share its label with x_i.

    Args:
        x: One sample, of three rows or more.
        y: The other, of as many rows.
        unit: The squared length u, say the mean squared distance of two rows.

    Raises:
        ValueError: The samples differ in length or are too short for a variance.
    """
    rows = len(x)
    if rows != len(y) or rows < 3:
        raise ValueError(f"expected two samples of n >= 3 rows; got {rows} and {len(y)}")
    cross = _kernel(x, y, unit)
    terms = _kernel(x, x, unit) + _kernel(y, y, unit) - cross - cross.T
    terms.fill_diagonal_(0.0)
    pairs = rows * (rows - 1)
    value = terms.sum().item() / pairs
    of_terms = terms.square().sum().item() / pairs - value**2
    of_rows = (terms.sum(1) / (rows - 1)).var().item()
    # A row's mean over n - 1 terms still carries (s2 - s1) / (n - 1) of the terms' own noise.
    of_expectation = max(0.0, (of_rows - of_terms / (rows - 1)) * (rows - 1) / (rows - 2))
    variance = (4 * (rows - 2) * of_expectation + 2 * of_terms) / pairs
    return Discrepancy(value, math.sqrt(variance))


def _kernel(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "columns feature"], unit: float
) -> Float[Tensor, "rows columns"]:
    # float64: this form of the distance cancels, and near neighbours would lose their digits.
    x, y = x.double(), y.double()
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    ratio = squared.clamp(min=0.0) / (2 * unit)
    total = (1 + ratio / KERNEL_SHAPES[0]) ** -KERNEL_SHAPES[0]
    for shape in KERNEL_SHAPES[1:]:
        total += (1 + ratio / shape) ** -shape
    return total

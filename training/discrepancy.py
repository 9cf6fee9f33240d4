r"""The squared maximum mean discrepancy of two samples, without bias and with its error.

    MMD^2(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y),    x, x' ~ p and y, y' ~ q

It is 0 exactly when p = q. The kernel is a sum of rational quadratics, one for each length
scale, so that it sees both where the mass lies and how sharp it is:

    k(x, y) = sum_s 1 / (1 + |x - y|^2 / (2 s u)),    s in SCALES

Source:
    Gretton et al. 2012, JMLR 13, eq. 4. Variance: Sutherland et al. 2017, arXiv:1611.04488,
    eq. 5.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SCALES = (1.0, 0.1, 0.01)
"""Squared lengths s, as parts of u. The smallest is what notices two moons that are blurred by
0.08: at 1 alone they look like the data (measured, 2,000 rows)."""


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
    all there is. s1 cannot be estimated below 0, which makes the error about a fifth too large
    there (measured, 60 rows). Pairs of equal index never meet: y_i may share its label with x_i.

    Args:
        x: One sample, of three rows or more.
        y: The other, of as many rows.
        unit: The squared length u, say the mean squared distance of two rows.

    Raises:
        ValueError: The samples are too short for a variance.
    """
    rows = len(x)
    if rows < 3:
        raise ValueError(f"MMD² needs three rows or more of each sample; got {rows}")
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
    return sum((1 / (1 + ratio / scale) for scale in SCALES), start=torch.zeros_like(ratio))

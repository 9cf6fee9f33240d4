"""Kernels k(x, y), by which two samples are compared: of two sets of rows the matrix of all pairs.

That of lengths is a sum over several, so that it sees both where the mass lies and how sharp it
is. Its unit u is a squared length, say `mean_squared_distance` of the rows that are compared.

    rational quadratics   sum_s 1 / (1 + |x - y|^2 / (2 s u)),    s in SCALES
    energy                -|x - y|, whose MMD^2 is the energy distance
    cubic                 (x.y / d + 1)^3, of d features: that of KID

All are computed in float64: this form of the distance cancels, and near neighbours would lose their
digits.

Source:
    Gretton et al. 2012, JMLR 13. Energy: Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018;
    Sejdinovic et al. 2013, arXiv:1207.6076. Cubic: Binkowski et al. 2018, arXiv:1801.01401.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Kernel: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From (rows, feature) and (columns, feature) to (rows, columns), in float64."""

SCALES = (1.0, 0.1, 0.01)
"""Squared lengths s, as parts of u. The smallest is what notices two moons that are blurred by
0.08: at 1 alone they look like the data (measured, 2,000 rows)."""
LEAST_UNIT = 1e-12
"""Of rows that are all alike, for which every length would do."""


def rational_quadratics(unit: float) -> Kernel:
    """Return the sum of rational quadratics, whose tails reach far."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        ratio = squared_distances(x, y) / (2 * unit)
        return sum((1 / (1 + ratio / scale) for scale in SCALES), start=torch.zeros_like(ratio))

    return kernel


def energy(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "columns feature"]
) -> Float[Tensor, "rows columns"]:
    """Return minus the distance, which has no length to choose."""
    return -squared_distances(x, y).sqrt()


def cubic(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "columns feature"]
) -> Float[Tensor, "rows columns"]:
    """Return (x.y / d + 1)^3, which sees the first three moments and nothing else."""
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def squared_distances(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "columns feature"]
) -> Float[Tensor, "rows columns"]:
    """Return |x - y|^2 of all pairs, in float64."""
    x, y = x.double(), y.double()
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return squared.clamp(min=0.0)


def mean_squared_distance(x: Float[Tensor, "rows feature"]) -> float:
    """Return the mean of |x - x'|^2 over any two rows: twice the sum of the features' variances.

    Of two samples together it does not depend on which row is of which, as a permutation test of
    them wants.

    Example:
        >>> round(mean_squared_distance(torch.tensor([[0.0], [3.0], [3.0]])), 4)
        6.0
    """
    return max(LEAST_UNIT, 2 * x.var(0).double().sum().item())

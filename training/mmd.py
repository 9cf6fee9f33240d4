r"""Kernels of a critic's features, the squared MMD without bias, and its witness.

    MMD^2(p, q) = E k(h(x), h(x')) + E k(h(y), h(y')) - 2 E k(h(x), h(y))

for x, x' of the data and y, y' samples. The witness f(t) = E k(h(x), h(t)) - E k(h(y), h(t)) says
where there is too little of the samples and where too much. Finished models are judged by other
kernels, of fixed lengths in units of the data: `kernels.py`.

Source:
    Gretton et al. 2012, JMLR 13, eq. 4; Bińkowski et al. 2018, arXiv:1801.01401.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.kernels import squared_distances

DEVIATIONS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the Gaussian kernels: Li et al. 2017, arXiv:1705.08584."""
EXPONENTS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Of the rational quadratic ones: Bińkowski et al. 2018, section 4."""
LEAST = 1e-12
"""Squared distance below which two features are taken for equal: a root has no slope at 0."""


@dataclass(frozen=True)
class Radial:
    """A kernel that is a function of the squared distance d alone.

    Args:
        profile: Of d >= 0.
        at_zero: k(a, a).
        curvature: c, where k near d = 0 is at_zero - c d / 2; None where it has a kink there. Then
            sum_i of the second derivatives d/da_i d/db_i k(a, b) at a = b is c times the features.
    """

    profile: Callable[[Float[Tensor, "rows columns"]], Float[Tensor, "rows columns"]]
    at_zero: float
    curvature: float | None

    def __call__(
        self, a: Float[Tensor, "rows feature"], b: Float[Tensor, "columns feature"]
    ) -> Float[Tensor, "rows columns"]:
        """Return k(a_i, b_j), in float64."""
        return self.profile(squared_distances(a, b))


def _gaussians(d: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return sum_s exp(-d / (2 s^2))."""
    return torch.stack([torch.exp(-d / (2 * s**2)) for s in DEVIATIONS]).sum(0)


def _rational_quadratics(d: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return sum_a (1 + d / (2 a))^-a."""
    return torch.stack([(1 + d / (2 * a)) ** -a for a in EXPONENTS]).sum(0)


def _distance(d: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return -sqrt d, whose MMD^2 is the energy distance 2 E|x - y| - E|x - x'| - E|y - y'|."""
    return -d.clamp(min=LEAST).sqrt()


KERNELS: Mapping[str, Radial] = {
    "mmd-gaussian": Radial(
        _gaussians, at_zero=float(len(DEVIATIONS)), curvature=sum(s**-2 for s in DEVIATIONS)
    ),
    "mmd-rational-quadratic": Radial(
        _rational_quadratics, at_zero=float(len(EXPONENTS)), curvature=float(len(EXPONENTS))
    ),
    "mmd-distance": Radial(_distance, at_zero=0.0, curvature=None),
}
"""By the objective's name."""


def unbiased_mmd(
    kernel: Radial, x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"]
) -> Float[Tensor, ""]:
    """Return the U-statistic of MMD^2: the mean of h_ij over i != j, which may be negative.

    h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i). Pairs of equal index never meet,
    because x_i and y_i may share their label.

    Raises:
        ValueError: There are no pairs.
    """
    rows = len(x)
    if rows < 2:
        raise ValueError(f"train.batch_size: an unbiased MMD² needs two rows or more; got {rows}")
    terms = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    return ((terms.sum() - terms.diagonal().sum()) / (rows * (rows - 1))).to(x)


def witness(
    kernel: Radial,
    at: Float[Tensor, "points feature"],
    x: Float[Tensor, "rows feature"],
    y: Float[Tensor, "rows feature"],
) -> Float[Tensor, " points"]:
    """Return the mean of k(x_i, at) less that of k(y_i, at), for each point."""
    return (kernel(at, x).mean(1) - kernel(at, y).mean(1)).to(at)

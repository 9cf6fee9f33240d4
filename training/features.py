r"""Distances of two samples of features: Frechet's, KID and the sliced Wasserstein distance.

    FID = |m - n|^2 + tr(S + T - 2 (S T)^(1/2))    of means m, n and covariances S, T

is the squared 2-Wasserstein distance of two Gaussians of those moments: 0 wherever the first two
moments agree, and too large on average for finitely many rows, by about as much as two samples of
one distribution are apart. The error and that bias are estimated by leaving out one of `GROUPS`
parts of the rows after another (a jackknife); the bias is told and not taken away.

    KID = MMD^2 by the kernel (x.y / d + 1)^3

has no bias, sees the third moment too, and no other.

    SW = mean over directions v of W_1(x.v, y.v) = mean of |the sorted x.v - the sorted y.v|

is 0 exactly for equal distributions, and as FID too large on average.

Source:
    FID: Heusel et al. 2017, arXiv:1706.08500; Dowson & Landau 1982. Its bias: Binkowski et al.
    2018, arXiv:1801.01401, who give KID; Chong & Forsyth 2020, arXiv:1911.07023. Sliced: Bonneel
    et al. 2015, doi:10.1007/s10851-014-0506-3. Jackknife: Kunsch 1989.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.discrepancy import Discrepancy, estimate, terms
from training.kernels import cubic

GROUPS, FEW_GROUPS = 20, 5
"""Parts of the rows, of which the jackknife leaves out one at a time; few of many features."""
MANY_FEATURES = 256
"""Of 784 the eigenvalues take a second on one core (measured)."""
DIRECTIONS = 200
"""Of the sliced Wasserstein distance."""
CHUNK_DIRECTIONS = 50
"""Directions along which all rows are held at once."""


@dataclass(frozen=True)
class Distance:
    """A distance with its standard error.

    Args:
        bias: By how much it is too large on average, estimated; None where that is unknown.
    """

    value: float
    standard_error: float
    bias: float | None = None


def frechet(x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"]) -> Distance:
    """Return FID, with the error and the bias that a jackknife says it has.

    Rows of equal index are left out together: one may share its label with the other.

    Args:
        x: One sample, of four rows or more, in a random order.
        y: The other, of as many rows.

    Raises:
        ValueError: The samples are too short.
    """
    rows = len(x)
    if rows < 4:
        raise ValueError(f"FID needs four rows or more of each sample; got {rows}")
    x, y = x.double(), y.double()
    value = _frechet(x, y)
    groups = min(FEW_GROUPS if x.shape[1] > MANY_FEATURES else GROUPS, rows // 2)
    part = torch.arange(rows) % groups
    others = torch.tensor(
        [_frechet(x[part != group], y[part != group]) for group in range(groups)],
        dtype=torch.float64,
    )
    error = math.sqrt((groups - 1) / groups * (others - others.mean()).square().sum().item())
    return Distance(value, error, (groups - 1) * (others.mean().item() - value))


def _frechet(x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"]) -> float:
    """Return FID in float64.

    Of more features than rows no covariance is made, which nothing might have room for: the trace
    of (S T)^(1/2) is the sum of the singular values of X Y' / (rows - 1), centred.
    """
    rows, features = x.shape
    if features <= rows:
        return frechet_of_moments(*_moments(x), *_moments(y))
    mean, other_mean = x.mean(0), y.mean(0)
    x, y = x - mean, y - other_mean
    spread = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return float((mean - other_mean).square().sum() + spread / (rows - 1))


def frechet_of_moments(
    mean: Float[Tensor, " feature"],
    covariance: Float[Tensor, "feature feature"],
    other_mean: Float[Tensor, " feature"],
    other_covariance: Float[Tensor, "feature feature"],
) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians.

    The trace of (S T)^(1/2) is that of (R T R)^(1/2) with R the root of S, which is symmetric, so
    that no eigenvalue is complex and small negative ones are rounding.

    Example:
        >>> one, none = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        >>> round(frechet_of_moments(none, one, none + 3, 4 * one), 9)
        20.0
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ other_covariance @ root)
    trace = covariance.trace() + other_covariance.trace() - 2 * product.clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + trace)


def _moments(
    x: Float[Tensor, "rows feature"],
) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature feature"]]:
    # cov() of one feature is a number.
    return x.mean(0), x.T.cov().reshape(x.shape[1], x.shape[1])


def kernel_distance(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"]
) -> Discrepancy:
    """Return KID with its closed-form standard error.

    Raises:
        ValueError: There are fewer than three rows.
    """
    return estimate(terms(x, y, cubic))


def sliced_wasserstein(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "rows feature"], *, seed: int
) -> Distance:
    """Return the mean W_1 along random directions; its error is that of the directions alone.

    Args:
        x: One sample.
        y: The other, of as many rows.
        seed: Of the directions.
    """
    x, y = x.double(), y.double()
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(DIRECTIONS, x.shape[1], generator=generator, dtype=torch.float64)
    directions = normal / normal.norm(dim=1, keepdim=True)
    found = torch.cat(
        [
            ((x @ part.T).sort(0).values - (y @ part.T).sort(0).values).abs().mean(0)
            for part in directions.split(CHUNK_DIRECTIONS)
        ]
    )
    return Distance(found.mean().item(), found.std().item() / math.sqrt(DIRECTIONS))

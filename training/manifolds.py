r"""Where samples lie beside data, by balls about rows that reach to their k-th nearest neighbour.

    precision   share of samples that lie in the ball of some row of data
    recall      share of rows of data that lie in the ball of some sample
    density     mean over samples of the number of data's balls about it, over k: 1 for samples like
                the data, more where these are closest, and no share
    coverage    share of data's balls that hold a sample

Precision and recall are moved by a single stray row, whose ball is large: density and coverage have
balls about data only, and count. All depend on the number of rows, on k and on the features, so
they mean little but beside the same of rows of data.

And whether a generator copies: how often a sample is nearer to a training row than a test row is.
The ranks of the two kinds of distances are compared by Mann and Whitney's statistic, as z,

    C_T = (U - n m / 2) / sqrt(n m (n + m + 1) / 12),    U = #{d(sample) > d(test row)} + ties / 2

which is N(0, 1) for samples like the test rows, far below 0 for copies, and far above for samples
that are far from any data. It is the statistic of the paper with a single cell: copies of one kind
of rows could be balanced by strangers of another.

Source:
    Precision, recall: Kynkaanniemi et al. 2019, arXiv:1904.06991. Density, coverage: Naeem et al.
    2020, arXiv:2002.09797. Copies: Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import mannwhitneyu
from torch import Tensor

BLOCK = 2**22
"""Distances that are held at once."""
NEAREST, COUNTED = 3, 5
"""k of precision and recall, and of density and coverage: those of the papers."""


@dataclass(frozen=True)
class Support:
    """How samples and data cover each other."""

    precision: float
    recall: float
    density: float
    density_error: float
    """Over samples, as if the balls were given; of the others it is that of a share."""
    coverage: float


def support(
    samples: Float[Tensor, "rows feature"],
    real: Float[Tensor, "others feature"],
    *,
    nearest: int = NEAREST,
    counted: int = COUNTED,
) -> Support:
    """Return precision, recall, density and coverage. Fewer rows than k make k smaller.

    Args:
        samples: Of the generator, two rows or more.
        real: Rows of data, two or more.
        nearest: k of precision and recall.
        counted: k of density and coverage.
    """
    nearest, counted = (min(k, len(samples) - 1, len(real) - 1) for k in (nearest, counted))
    about_samples = radii(samples, (nearest,))[:, 0]
    about_real = radii(real, (nearest, counted))
    precise, counts = [], []
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, distance in _blocks(samples, real):
        precise.append((distance <= about_real[:, 0]).any(1))
        inside = distance <= about_real[:, 1]
        counts.append(inside.double().sum(1) / counted)
        covered |= inside.any(0)
        recalled |= (distance <= about_samples[rows, None]).any(0)
    density = torch.cat(counts)
    return Support(
        precision=_share(torch.cat(precise)),
        recall=_share(recalled),
        density=density.mean().item(),
        density_error=density.std().item() / math.sqrt(len(density)),
        coverage=_share(covered),
    )


def radii(x: Float[Tensor, "rows feature"], ks: tuple[int, ...]) -> Float[Tensor, "rows ks"]:
    """Return the distance of each row to its k-th nearest other row, for each k.

    Example:
        >>> radii(torch.tensor([[0.0], [1.0], [3.0]]), (1, 2)).tolist()
        [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]]
    """
    found = []
    for rows, distance in _blocks(x, x):
        # A row is no neighbour of itself, and another that equals it is one.
        distance[torch.arange(len(distance)), rows] = torch.inf
        near = distance.topk(max(ks), largest=False).values
        found.append(near[:, [k - 1 for k in ks]])
    return torch.cat(found)


@dataclass(frozen=True)
class Copying:
    """How near samples are to training rows, beside how near test rows are.

    Args:
        z: C_T, N(0, 1) where samples are like test rows, far below 0 where they are copies.
        share: How often a sample is nearer than a test row; a half where they are alike.
    """

    z: float
    share: float


def copying(
    samples: Float[Tensor, "rows feature"],
    test: Float[Tensor, "others feature"],
    train: Float[Tensor, "more feature"],
) -> Copying:
    """Return whether samples are nearer to training rows than test rows are.

    Args:
        samples: Of the generator.
        test: Rows that it never saw.
        train: Rows that it learnt from.
    """
    of_samples, of_test = nearest(samples, train), nearest(test, train)
    n, m = len(samples), len(test)
    # U counts pairs with the sample further away.
    further = float(mannwhitneyu(of_samples.numpy(), of_test.numpy()).statistic)
    spread = math.sqrt(n * m * (n + m + 1) / 12)
    return Copying(z=(further - n * m / 2) / spread, share=1 - further / (n * m))


def nearest(
    x: Float[Tensor, "rows feature"], others: Float[Tensor, "others feature"]
) -> Float[Tensor, " rows"]:
    """Return the distance of each row to the nearest of others."""
    distance: Tensor = (x - others[closest(x, others)]).double().norm(dim=1)
    return distance


def closest(
    x: Float[Tensor, "rows feature"], others: Float[Tensor, "others feature"]
) -> Int[Tensor, " rows"]:
    """Return which of others is nearest to each row.

    Example:
        >>> closest(torch.tensor([[0.9], [5.0]]), torch.tensor([[0.0], [1.0], [3.0]])).tolist()
        [1, 2]
    """
    # The differences to those say how near they are: squares cancel too much for that.
    return torch.cat([square.argmin(1) for square in _squares(x, others)])


def surroundings(
    x: Float[Tensor, "rows feature"], others: Float[Tensor, "others feature"], *, k: int
) -> Float[Tensor, " rows"]:
    """Return the mean distance of each row to the k nearest of others, to all if they are fewer.

    To the precision that it takes to say where rows are dense, not which are equal.

    Example:
        >>> surroundings(torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0], [9.0]]), k=2).tolist()
        [1.5]
    """
    k = min(k, len(others))
    near = (square.topk(k, largest=False).values for square in _squares(x, others))
    return torch.cat([square.clamp(min=0).sqrt().mean(1) for square in near])


def _squares(
    x: Float[Tensor, "rows feature"], others: Float[Tensor, "others feature"]
) -> Iterator[Float[Tensor, "some others"]]:
    """Yield the squared distances of rows to others, some rows at a time."""
    # By |x|^2 + |y|^2 - 2 x.y, which is fast and cancels, less so about the mean.
    centre = others.mean(0)
    centred = others - centre
    squares = centred.square().sum(1)
    for rows in _some(x, others):
        own = x[rows] - centre
        yield own.square().sum(1, keepdim=True) + squares - 2 * own @ centred.T


def _blocks(
    x: Float[Tensor, "rows feature"], y: Float[Tensor, "others feature"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield row numbers of x and their distances to all of y, some rows at a time."""
    for rows in _some(x, y):
        # Equal rows must be at 0, or a copy would lie outside a ball of radius 0.
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")


def _some(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield row numbers of x, so many that their distances to y are a `BLOCK`."""
    yield from torch.arange(len(x)).split(max(1, BLOCK // len(y)))


def _share(inside: Tensor) -> float:
    return inside.double().mean().item()

r"""Whether two samples look like draws of one distribution: MMD^2, and how rare one so large is.

    MMD^2(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y),    x, x' ~ p and y, y' ~ q

It is 0 exactly where p = q. Row i of one sample is the partner of row i of the other, drawn apart
from all other pairs. If p = q, nothing changes when partners change places: so the estimate is
compared with what it is after every pair has changed places or not by the toss of a coin. That is
cheap: when pair i does so, the terms h_ij change their sign and no others do.

Source:
    Gretton et al. 2012, JMLR 13, eq. 4. Variance: Sutherland et al. 2017, arXiv:1611.04488, eq. 5.
    Energy distance: Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018. p-value: Phipson & Smyth
    2010, doi:10.2202/1544-6115.1585.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.estimates import Floats
from service.interface import Event
from service.noise import Stream, uniform
from service.tensors import Array

Kernel = Literal["rational-quadratic", "energy"]

LEAST_ROWS = 8
"""Fewer cannot look unlikely: their pairs change places in 128 ways that differ."""
MOST_ROWS = 1000
"""Of 28 x 28 numbers they take half a second of a core and 150 MB (measured)."""
PERMUTATIONS = 999
"""Tosses for all pairs: no p-value is below 1 / 1000."""
SCALES = (1.0, 0.1, 0.01)
"""Squared lengths of the rational quadratics, as parts of the samples' mean squared distance."""
ROUNDING = 1e-9
"""Relative: a permutation this close to what is seen is as large, whichever way it rounded."""


@dataclass(frozen=True)
class Verdict:
    """What was found of two samples.

    Args:
        statistic: The unbiased estimate of MMD^2, which may be negative.
        standard_error: Of it, given the scale of the features and the kernel's lengths, which are
            of the same rows. Where both are alike it is up to a third too large.
        p_value: How probable one so large is if both samples are of one distribution. Uniform then,
            and never 0.
    """

    statistic: float
    standard_error: float
    p_value: float


def compare(x: Array, y: Array, *, event: Event, kernel: Kernel, seed: int) -> Verdict:
    """Return what is found of two samples of events.

    Args:
        x: One, shape (n, *event.shape), of at least `LEAST_ROWS`.
        y: The other, of as many rows.
        event: What a row is. Features are standardised by both samples together, a category is as
            far from another as a feature's standard deviation; images stay as they are.
        kernel: `rational-quadratic` sees where the mass lies and how sharp it is, at three lengths;
            `energy`, minus the distance, has no length: its MMD^2 is the energy distance.
        seed: Of the tosses.
    """
    rows = len(x)
    matrix = _kernel(_squared_distances(np.concatenate([x, y]), event), kernel)
    cross = matrix[:rows, rows:]
    terms = matrix[:rows, :rows] + matrix[rows:, rows:] - cross - cross.T
    np.fill_diagonal(terms, 0.0)
    pairs = rows * (rows - 1)
    seen = float(terms.sum()) / pairs
    tosses = uniform(seed, Stream.PERMUTATION, start=0, rows=PERMUTATIONS, size=rows)
    signs = np.where(tosses < 0.5, -1.0, 1.0)
    others = ((signs @ terms) * signs).sum(axis=1) / pairs
    as_large = others >= seen - ROUNDING * float(np.abs(terms).max())
    p_value = (1 + int(as_large.sum())) / (1 + PERMUTATIONS)
    return Verdict(seen, _standard_error(terms, seen), p_value)


def _standard_error(terms: Floats, mean: float) -> float:
    """Return that of the mean of the terms, of which each row has one with every other row.

    Its variance is 4 (n - 2) / (n (n - 1)) s1 + 2 / (n (n - 1)) s2, of the variance s1 of a row's
    expectation and s2 of a term.
    """
    rows = len(terms)
    pairs = rows * (rows - 1)
    of_terms = float(np.square(terms).sum()) / pairs - mean**2
    of_rows = float((terms.sum(axis=1) / (rows - 1)).var(ddof=1))
    # Means of rows vary by their terms' own noise besides, and two of them share a term.
    expected = ((rows - 1) ** 2 / (rows - 2) * of_rows - of_terms) / (rows - 4)
    variance = 4 * (rows - 2) * max(0.0, expected) + 2 * of_terms
    return math.sqrt(max(0.0, variance) / pairs)


def _squared_distances(events: Array, event: Event) -> Floats:
    """Return |a - b|^2 of all pairs of rows, in what makes their numbers comparable."""
    rows: Floats = events.reshape(len(events), -1).astype(np.float64)
    is_name = np.array([bool(names) for names in event.categories] or [False] * rows.shape[1])
    numbers = rows[:, ~is_name] - rows[:, ~is_name].mean(axis=0)
    if event.kind == "vector":
        spread = numbers.std(axis=0)
        numbers /= np.where(spread > 0, spread, 1.0)
    # float64: this form of the distance cancels.
    lengths = np.square(numbers).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths - 2 * numbers @ numbers.T, 0.0)
    np.fill_diagonal(squared, 0.0)
    for names in rows.T[is_name]:
        squared += names[:, None] != names
    return np.asarray(squared)


def _kernel(squared: Floats, kernel: Kernel) -> Floats:
    """Return k of all pairs, of their squared distances."""
    if kernel == "energy":
        return np.asarray(-np.sqrt(squared))
    unit = float(squared.mean()) or 1.0
    found = np.zeros_like(squared)
    for scale in SCALES:
        found += 1 / (1 + squared / (2 * scale * unit))
    return found

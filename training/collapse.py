r"""Whether a model has collapsed: which modes or classes its samples are of, and which are missing.

Where data was drawn from a mixture (`mixtures.py`), its modes are known and samples are counted at
each. Of labelled images a classifier reads the samples, those of a model without labels too. A
class is present if samples are read as it at least a tenth as often as test rows are. Of a class
that fewer than ten test rows are read as, chance alone would decide: it is not counted. The
histograms q of samples and p of test rows, of all classes, are compared by

    KL(q || p) = sum_k q_k log(q_k / p_k)

with half a count added to each class, so that an empty one is finite. It is too large on average,
for like distributions by (K - 1) (1/n + 1/m) / 2; so is that of training rows beside it.

Source:
    Modes and classes counted: Metz et al. 2017, arXiv:1611.02163; Srivastava et al. 2017,
    arXiv:1705.07761. Half a count: Krichevsky & Trofimov 1981, doi:10.1109/TIT.1981.1056331.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import binom
from torch import Tensor, nn

from service.manifest import Figure
from training.classifier import read
from training.mixtures import NEAR, SHARE, Mixture

PRESENT = 0.1
"""Of the share of a class among test rows, that a class has at least which is present. A guess at
what nobody would call a matter of chance or of weight."""
LEAST_READS = 10
"""Test rows that are read as a class which is counted, at least. As many samples of a perfect model
then miss it once in 20,000 times, by exp(-10)."""


def by_modes(x: Float[Tensor, "rows 2"], mixture: Mixture) -> Iterator[Figure]:
    """Yield how many modes rows cover, and which share of them is good."""
    found = mixture.find(x.double().numpy())
    yield Figure(
        name="modes covered",
        value=found.modes,
        standard_error=_error_of_count(
            found.hits, found.samples, np.full(len(found.hits), SHARE * found.samples)
        ),
        n=found.samples,
        unit=f"of {len(mixture.centres)}",
        note=f"those with {SHARE:.0%} of the rows within {NEAR:g} standard deviations",
    )
    yield Figure(
        name="good share",
        value=found.good,
        standard_error=found.good_error,
        n=found.samples,
        unit="fraction",
        note=f"within {NEAR:g} standard deviations of a mode",
    )


def by_classes(
    x: Float[Tensor, "rows ..."],
    test: Float[Tensor, "others ..."],
    reader: nn.Module,
    labels: Sequence[str],
    *,
    name: str,
) -> Iterator[Figure]:
    """Yield how many classes a classifier reads in rows, and how unlike test rows they are in that.

    Args:
        x: Rows.
        test: Test rows.
        reader: The classifier.
        labels: Names of the classes.
        name: Of the classifier.
    """
    ours, theirs = (classes(each, reader, len(labels)) for each in (x, test))
    present, error = presence(ours, theirs)
    yield Figure(
        name="classes read",
        value=present,
        standard_error=error,
        n=len(x),
        unit=f"of {int((theirs >= LEAST_READS).sum())}",
        note=f"those read a tenth as often as of test rows, or more, of those that {LEAST_READS} "
        f"of these or more are read as; by {name}",
    )
    value, error = divergence(ours, theirs)
    yield Figure(
        name="class divergence",
        value=value,
        standard_error=error,
        n=len(x),
        unit="nats",
        note=f"KL of the histogram of classes read to that of test rows; by {name}",
    )


def classes(x: Float[Tensor, "rows ..."], reader: nn.Module, count: int) -> Int64[np.ndarray, " k"]:
    """Return how many rows are read as each class."""
    return torch.bincount(read(reader, x).argmax(1), minlength=count).numpy()


def presence(ours: Int64[np.ndarray, " k"], theirs: Int64[np.ndarray, " k"]) -> tuple[int, float]:
    """Return how many of their classes that are counted are present in ours, and its error."""
    least = PRESENT * theirs * ours.sum() / theirs.sum()
    counted = theirs >= LEAST_READS
    present = int((ours >= least)[counted].sum())
    return present, _error_of_count(ours[counted], int(ours.sum()), least[counted])


def divergence(
    ours: Int64[np.ndarray, " k"], theirs: Int64[np.ndarray, " k"]
) -> tuple[float, float]:
    """Return KL(ours || theirs) in nats, half a count added to each, and its standard error.

    The variance has two parts. That by the delta method is 0 where the two are alike; what it has
    on average of the counts' own noise is taken from it. The other is that of the chi-squared
    variable of K - 1 degrees, times (1/n + 1/m) / 2, that the divergence then is.

    Example:
        >>> value, error = divergence(np.array([10, 10]), np.array([10, 10]))
        >>> value, round(error, 3)
        (0.0, 0.071)
    """
    n, m, k = ours.sum(), theirs.sum(), len(ours)
    q, p = (ours + 0.5) / (n + k / 2), (theirs + 0.5) / (m + k / 2)
    log = np.log(q / p)
    value = float((q * log).sum())
    of_ours = ((q * log**2).sum() - value**2) / n
    of_theirs = ((q**2 / p).sum() - 1) / m
    noise = (k - 1) * (1 / n + 1 / m) ** 2
    return value, math.sqrt(max(0.0, of_ours + of_theirs - noise) + noise / 2)


def _error_of_count(
    hits: Int64[np.ndarray, " k"], rows: int, least: Float64[np.ndarray, " k"]
) -> float:
    """Return the standard deviation of how many have the least, were their shares those found.

    To three decimals: a count that changes less often than that is as good as certain.
    """
    chance = binom.sf(np.ceil(least) - 1, rows, hits / rows)
    return round(math.sqrt(float(np.sum(chance * (1 - chance)))), 3)

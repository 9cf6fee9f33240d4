"""Means and log-means of Monte-Carlo draws that come in blocks, in float64 and constant memory.

Blocks are merged in the order they are added (Chan, Golub & LeVeque 1979, "Updating formulae and
a pairwise algorithm for computing sample variances"), so that a spread of nothing stays nothing,
however many draws there are.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.tensors import Array

Floats = npt.NDArray[np.float64]


def anomaly_scores(log_density: Array, held_out: Sequence[float]) -> Floats:
    """Return for each event the share of held-out ones that are more probable, 0 to below 1.

    One minus it, counting the event itself among the held-out ones, is a conformal p-value: if
    the event is drawn as they are, a score of 0.99 or more comes up at most once in a hundred.

    Args:
        log_density: log p(x) in nats, shape (n,).
        held_out: -log p(x) of held-out events in nats, ascending.

    Source:
        Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World", section 2.2.
    """
    more_probable = np.searchsorted(held_out, -log_density.astype(np.float64), side="left")
    return np.asarray(more_probable / (len(held_out) + 1))


class Moments:
    """The mean of each row over its draws, and the error of that mean."""

    def __init__(self, rows: int) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(rows)
        self._squares: Floats = np.zeros(rows)

    def add(self, values: Array) -> None:
        """Take in a block, shape (rows, draws)."""
        values = values.astype(np.float64)
        count, mean = values.shape[1], values.mean(axis=1)
        with np.errstate(invalid="ignore"):  # impossible events have no spread to give
            squares = ((values - mean[:, None]) ** 2).sum(axis=1)
            apart = mean - self.mean
            total = self.count + count
            self._squares += squares + apart**2 * (self.count * count / total)
            self.mean += apart * (count / total)
        self.count = total

    def scale(self, factor: Floats) -> None:
        """Multiply all values that came so far, row by row."""
        self.mean *= factor
        self._squares *= factor**2

    @property
    def standard_error(self) -> Floats:
        """Of the mean of each row; NaN after a single draw."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(self._squares / (self.count - 1) / self.count))

    @property
    def mean_square(self) -> Floats:
        """The mean of the squares of each row."""
        return np.asarray(self._squares / self.count + self.mean**2)


class Bound:
    """An evidence lower bound of each row, by its parts, in nats.

    elbo = reconstruction - kl, of which reconstruction is the mean of log p(x|z) over the draws.
    kl = KL(q(z|x) || p(z)) is known of each row, or its mean over the draws stands for it.
    """

    def __init__(self, rows: int) -> None:
        self._reconstruction = Moments(rows)
        self._kl = Moments(rows)
        self._terms = Moments(rows)
        self._tighter = LogMean(rows)

    def add(self, reconstruction: Array, kl: Array, log_weight: Array) -> None:
        """Take in a block of draws, shape (rows, draws); kl may be (rows,)."""
        self._reconstruction.add(reconstruction)
        self._tighter.add(log_weight)
        if kl.ndim == 1:  # the same in every block, so that all error is the reconstruction's
            self._kl.mean = kl.astype(np.float64)
            self._terms = self._reconstruction
        else:
            self._kl.add(kl)
            self._terms.add(reconstruction.astype(np.float64) - kl)

    @property
    def parts(self) -> dict[str, Floats]:
        """The bound and what it is made of, with the tighter one of the same draws."""
        reconstruction, kl = self._reconstruction.mean, self._kl.mean
        return {
            "elbo": reconstruction - kl,
            "standard_error": self._terms.standard_error,
            "reconstruction": reconstruction,
            "kl": kl,
            "importance_weighted": self._tighter.value,
            "effective_sample_size": self._tighter.effective_sample_size,
        }


class LogMean:
    """log (1/K) sum_k w_k of each row, given log w_k."""

    def __init__(self, rows: int) -> None:
        self._top: Floats = np.full(rows, -np.inf)
        self._weights = Moments(rows)

    def add(self, log_weight: Array) -> None:
        """Take in a block of log-weights, shape (rows, draws)."""
        log_weight = log_weight.astype(np.float64)
        top = np.maximum(self._top, log_weight.max(axis=1))
        some = np.isfinite(top)  # else all draws were impossible so far: their weights are 0
        known = some & np.isfinite(self._top)
        factor = np.exp(np.subtract(self._top, top, out=np.zeros_like(top), where=known))
        self._weights.scale(np.where(known, factor, 0.0))
        self._weights.add(np.exp(log_weight - np.where(some, top, 0.0)[:, None]))
        self._top = top

    @property
    def value(self) -> Floats:
        """The log of the mean weight."""
        with np.errstate(divide="ignore"):
            return np.asarray(
                np.log(self._weights.mean) + np.where(np.isfinite(self._top), self._top, 0.0)
            )

    @property
    def standard_error(self) -> Floats:
        """Of the value, by the delta method: that of the mean weight over the mean weight."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self._weights.standard_error / self._weights.mean)

    @property
    def effective_sample_size(self) -> Floats:
        """(sum w)^2 / sum w^2 of Kish, from 1 to the number of draws."""
        with np.errstate(divide="ignore", invalid="ignore"):
            size = self._weights.count * self._weights.mean**2 / self._weights.mean_square
        return np.asarray(np.minimum(size, self._weights.count))

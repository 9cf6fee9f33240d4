"""Mixtures of round Gaussians in the plane, whose modes a model may find or miss.

A sample is good within three standard deviations of the nearest mode. A mode is covered if at least
one in a hundred samples is good and nearest to it: of the ring each should have 12.5 in a hundred,
of the grid 4.

Source:
    Metz et al. 2017, arXiv:1611.02163 (the ring); Srivastava et al. 2017, arXiv:1705.07761 (the
    grid).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial.distance import pdist

NEAR = 3.0
"""Standard deviations of a mode within which a sample is good: 0.989 of perfect ones are."""
SHARE = 0.01
"""Of all samples, that are good and nearest to a mode which is covered."""


@dataclass(frozen=True)
class Found:
    """How samples lie among the modes of a mixture.

    Args:
        hits: Of each mode, the good samples nearest to it.
        samples: All of them.
    """

    hits: Int64[np.ndarray, " modes"]
    samples: int

    @property
    def modes(self) -> int:
        """How many are covered."""
        return int((self.hits >= SHARE * self.samples).sum())

    @property
    def good(self) -> float:
        """The share of the samples that are good."""
        return float(self.hits.sum() / self.samples)

    @property
    def good_error(self) -> float:
        """The standard error of that share."""
        return math.sqrt(self.good * (1 - self.good) / self.samples)


@dataclass(frozen=True)
class Mixture:
    """Gaussians of equal weight.

    Args:
        centres: Their means.
        spread: The standard deviation of each, in either direction.
    """

    centres: Float64[np.ndarray, "modes 2"]
    spread: float

    @property
    def is_apart(self) -> bool:
        """Whether no sample is near two modes, and modes are no points, which rounding misses."""
        return 0 < 2 * NEAR * self.spread < float(pdist(self.centres).min())

    def draw(self, rows: int, *, spread: float, seed: int) -> Float64[np.ndarray, "rows 2"]:
        """Return points, by another standard deviation if one is wanted."""
        generator = np.random.default_rng(seed)
        centre = self.centres[generator.integers(len(self.centres), size=rows)]
        return np.asarray(centre + spread * generator.standard_normal((rows, 2)))

    def find(self, x: Float64[np.ndarray, "samples 2"]) -> Found:
        """Return how samples lie among the modes."""
        distance = np.linalg.norm(x[:, None] - self.centres, axis=2)
        good = distance.min(axis=1) <= NEAR * self.spread
        hits = np.bincount(distance.argmin(axis=1)[good], minlength=len(self.centres))
        return Found(hits, len(x))


_ANGLES = np.arange(8) * np.pi / 4
_PLACES = np.linspace(-4.0, 4.0, 5)

MIXTURES = {
    "ring": Mixture(2 * np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1), 0.02),
    "grid": Mixture(np.stack(np.meshgrid(_PLACES, _PLACES), axis=-1).reshape(-1, 2), 0.05),
}
"""Eight on a circle of radius 2, and 25 in five rows two apart."""

"""Mixtures of round Gaussians in the plane, whose modes a model may find or miss.

Source:
    Metz et al. 2017, arXiv:1611.02163 (the ring); Srivastava et al. 2017, arXiv:1705.07761 (the
    grid).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Mixture:
    """Gaussians of equal weight.

    Args:
        centres: Their means.
        spread: The standard deviation of each, in either direction.
    """

    centres: Float64[np.ndarray, "modes 2"]
    spread: float

    def draw(self, rows: int, *, spread: float, seed: int) -> Float64[np.ndarray, "rows 2"]:
        """Return points, by another standard deviation if one is wanted."""
        generator = np.random.default_rng(seed)
        centre = self.centres[generator.integers(len(self.centres), size=rows)]
        return np.asarray(centre + spread * generator.standard_normal((rows, 2)))


_ANGLES = np.arange(8) * np.pi / 4
_PLACES = np.linspace(-4.0, 4.0, 5)

MIXTURES = {
    "ring": Mixture(2 * np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), axis=1), 0.02),
    "grid": Mixture(np.stack(np.meshgrid(_PLACES, _PLACES), axis=-1).reshape(-1, 2), 0.05),
}
"""Eight on a circle of radius 2, and 25 in five rows two apart."""

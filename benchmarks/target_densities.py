"""Densities in the plane that are known exactly, and that generative models are tried on.

    targets()   eight Gaussians, a checkerboard, three rings, two moons

Each has a sampler, its log-density and, by the midpoint rule on a fine grid, its entropy: no
model's mean negative log-density can be less, and what it is more is what there is to learn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Points = Float64[np.ndarray, "points 2"]
Values = Float64[np.ndarray, " points"]

CELL = 0.02
"""Side of a cell of the grid. The narrowest hump has a deviation of 0.1: five cells, at which the
midpoint rule of a Gaussian is exact in float64."""
BLOCK = 4096
"""Points whose density is found at once, so that memory does not grow with their number."""
SPREAD = 0.5 / np.sqrt(2)
"""Deviation of each of the eight Gaussians."""
CENTRES = 4 / np.sqrt(2) * np.stack((np.cos(a := np.arange(8) * np.pi / 4), np.sin(a)), axis=1)
RADII = np.array([1.0, 2.0, 3.0])
RING_SPREAD = 0.1
"""Deviation of the radius around each: at the least ten of them lie between a ring and 0."""
MOON_NOISE = 0.1
ARC_NODES = 200
"""Of the Gauss-Legendre rule along a half circle, six in a deviation of the noise."""


@dataclass(frozen=True)
class Target:
    """A distribution in the plane.

    Args:
        name: Of it, for tables.
        draw: So many points by a generator.
        log_density: At points, in nats; -inf where there is nothing.
        window: (left, right, bottom, top), whole cells apart, with all of the mass but 1e-7.
    """

    name: str
    draw: Callable[[int, np.random.Generator], Points]
    log_density: Callable[[Points], Values]
    window: tuple[float, float, float, float]

    def integrals(self) -> tuple[float, float]:
        """Return the mass, which is one, and the entropy in nats, both over the window."""
        log_p = self.log_density(self.grid(CELL))
        log_p = log_p[np.isfinite(log_p)]
        p = np.exp(log_p)
        return float(p.sum() * CELL**2), float(-(p * log_p).sum() * CELL**2)

    def grid(self, cell: float) -> Points:
        """Return the middles of the window's cells, row by row from the bottom."""
        left, right, bottom, top = self.window
        x, y = (
            low + cell * (np.arange(round((high - low) / cell)) + 0.5)
            for low, high in ((left, right), (bottom, top))
        )
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def targets() -> tuple[Target, ...]:
    """Return the four."""
    return (
        Target("eight Gaussians", _draw_gaussians, _gaussians, (-5.0, 5.0, -5.0, 5.0)),
        Target("checkerboard", _draw_checkerboard, _checkerboard, (-5.0, 5.0, -5.0, 5.0)),
        Target("rings", _draw_rings, _rings, (-4.0, 4.0, -4.0, 4.0)),
        Target("moons", _draw_moons, _moons, (-2.0, 3.0, -1.5, 2.0)),
    )


def _draw_gaussians(n: int, generator: np.random.Generator) -> Points:
    centre = CENTRES[generator.integers(8, size=n)]
    return np.asarray(centre + SPREAD * generator.standard_normal((n, 2)))


def _gaussians(x: Points) -> Values:
    """Return log of the mean of eight normal densities."""
    return _log_mixture(x, CENTRES, np.full(8, 1 / 8), SPREAD)


def _draw_checkerboard(n: int, generator: np.random.Generator) -> Points:
    column, half = generator.integers(4, size=n), generator.integers(2, size=n)
    corner = np.stack((column, 2 * half + column % 2), axis=1)
    return 2 * (corner + generator.random((n, 2))) - 4


def _checkerboard(x: Points) -> Values:
    """Return -log 32 on the black squares, of side 2, of a board from -4 to 4."""
    square = np.floor((x + 4) / 2)
    is_black = (square.sum(axis=1) % 2 == 0) & ((square >= 0) & (square < 4)).all(axis=1)
    return np.where(is_black, -np.log(32), -np.inf)


def _draw_rings(n: int, generator: np.random.Generator) -> Points:
    radius = RADII[generator.integers(3, size=n)] + RING_SPREAD * generator.standard_normal(n)
    angle = 2 * np.pi * generator.random(n)
    return np.asarray(radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1))


def _rings(x: Points) -> Values:
    """Return log (f(r) / (2 pi r)), f the density of the radius: a mean of three normal ones."""
    radius = np.hypot(x[:, 0], x[:, 1])
    humps = -0.5 * ((radius[:, None] - RADII) / RING_SPREAD) ** 2
    log_f = np.logaddexp.reduce(humps, axis=1) - np.log(3 * RING_SPREAD * np.sqrt(2 * np.pi))
    return np.asarray(log_f - np.log(2 * np.pi * radius))


def _draw_moons(n: int, generator: np.random.Generator) -> Points:
    on_arc = _arcs(np.pi * generator.random(n))[generator.integers(2, size=n), np.arange(n)]
    return np.asarray(on_arc + MOON_NOISE * generator.standard_normal((n, 2)))


def _moons(x: Points) -> Values:
    """Return the log of the noise's density, averaged along both half circles."""
    nodes, weights = np.polynomial.legendre.leggauss(ARC_NODES)
    centres = _arcs(np.pi / 2 * (nodes + 1)).reshape(-1, 2)
    return _log_mixture(x, centres, np.tile(weights, 2) / 4, MOON_NOISE)


def _arcs(angle: Values) -> Float64[np.ndarray, "2 points 2"]:
    """Return the places at these angles on both half circles of scikit-learn's `make_moons`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((np.stack((cos, sin), 1), np.stack((1 - cos, 0.5 - sin), 1)))


def _log_mixture(
    x: Points, centres: Points, weights: Values, spread: float
) -> Float64[np.ndarray, " points"]:
    """Return the log-density of weighted round normal ones around the centres."""
    constant = np.log(weights) - np.log(2 * np.pi * spread**2)
    found = [
        np.logaddexp.reduce(
            constant
            - 0.5 * ((block[:, None] - centres) ** 2).sum(axis=2, dtype=np.float64) / spread**2,
            axis=1,
        )
        for block in np.array_split(x, max(1, len(x) // BLOCK))
    ]
    return np.concatenate(found)

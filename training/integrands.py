r"""Integrands: what a proposal is trained on in place of rows of data.

An integrand f is a function on a box in as many dimensions, with values of 0 or more; wanted is
its integral over the box. Those that are built in have an integral that is known, on the unit
cube in any dimension. Others are functions of somebody's own Python module.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Shaped

from training.raw import DataInvalid, Raw, reason

SCHEMES = ("integrand:", "python:")
"""How a source begins that is an integrand."""

LARGEST_POWER = 250
"""Of ten, in the volume of a box: float64 ends at 308, and weights need some of it."""

Function = Callable[[Float64[np.ndarray, "points dimension"]], Shaped[np.ndarray, "..."]]


@dataclass(frozen=True)
class Integrand:
    """A function on the box [low, high]^dimensions.

    Args:
        source: As the recipe names it.
        function: Maps points to one value each.
        dimensions: Of the box.
        low, high: Its sides, the same in every dimension, as float32 has them.
        exact: The integral, where it is known.
    """

    source: str
    function: Function
    dimensions: int
    low: float = 0.0
    high: float = 1.0
    exact: float | None = None

    @property
    def volume(self) -> float:
        """Of the box."""
        return (self.high - self.low) ** self.dimensions

    def __call__(self, x: Float[np.ndarray, "points dimension"]) -> Float64[np.ndarray, " points"]:
        """Return f at points of the box.

        Raises:
            DataInvalid: It is not one number for each point, or one is NaN, infinite or negative.
        """
        points = np.ascontiguousarray(x, dtype=np.float64)
        values = np.asarray(self.function(points))
        if values.shape != (len(x),) or values.dtype.kind not in "buif":
            raise DataInvalid(
                f"data.source {self.source}: expected one number for each of {len(x)} points, "
                f"shape ({len(x)},); got {values.dtype} of shape {values.shape}"
            )
        values = values.astype(np.float64)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(bad):
            raise DataInvalid(
                f"data.source {self.source}: expected finite values of 0 or more; got "
                f"{values[bad[0]]:g} at x = {points[bad[0]].tolist()}; a function that changes its "
                f"sign is the difference of two that do not"
            )
        return values

    def points(self, rows: int, *, seed: int) -> Raw:
        """Return so many points, uniform in the box, as the rows of a source."""
        unit = np.random.default_rng(seed).random((rows, self.dimensions))
        where = f"[{self.low:g}, {self.high:g}]^{self.dimensions}"
        return Raw(
            self.low + (self.high - self.low) * unit,
            source=self.source,
            title=f"{self.source}, at points that are uniform in {where}",
        )


def is_integrand(source: str) -> bool:
    """Return whether a source names an integrand and no rows."""
    return source.startswith(SCHEMES)


def find(source: str, *, dimensions: int | None, low: float, high: float) -> Integrand:
    """Return the integrand that a recipe names.

    Args:
        source: `integrand:NAME` or `python:package.module:function`.
        dimensions: Of the box.
        low: Its lower side.
        high: Its upper one.

    Raises:
        DataInvalid: There is no such function, or no box.
    """
    if dimensions is None:
        raise DataInvalid(
            f"data.dimensions is missing: say in how many {source} is to be integrated"
        )
    scheme, _, name = source.partition(":")
    if scheme == "python":
        start, stop = (float(np.float32(edge)) for edge in (low, high))
        if abs(dimensions * math.log10(stop - start)) > LARGEST_POWER:
            raise DataInvalid(
                f"data.low and data.high: a box of {stop - start:g}^{dimensions} has no volume in "
                f"float64; let {source} take other units"
            )
        return Integrand(source, _entry(name), dimensions, start, stop)
    if name not in BUILT_IN:
        raise DataInvalid(
            f"data.source {source}: unknown integrand; known here are "
            f"{', '.join(sorted(BUILT_IN))}, and your own by python:package.module:function"
        )
    if (low, high) != (0.0, 1.0):
        raise DataInvalid(
            f"data.low and data.high: {source} lives on the unit cube; leave them out"
        )
    function, integral = BUILT_IN[name]
    return Integrand(source, function, dimensions, exact=integral(dimensions))


def _entry(name: str) -> Function:
    """Return the function that package.module:function names.

    Raises:
        DataInvalid: There is none.
    """
    module, _, attribute = name.partition(":")
    wanted = f"data.source python:{name}"
    if not module or not attribute:
        raise DataInvalid(f"{wanted}: expected python:package.module:function")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise DataInvalid(
            f"{wanted}: the module cannot be imported ({reason(error)}); it is looked for from the "
            f"current directory and among the installed packages"
        ) from error
    if not callable(found):
        what = "is no function" if found is not None else "is not there"
        raise DataInvalid(f"{wanted}: {attribute} {what} in {module}")
    function: Function = found
    return function


CAMEL_CENTRES = (1 / 3, 2 / 3)
CAMEL_SCALE = 0.1 / math.sqrt(2)
"""Lepage 1978 writes exp(-|x - c|² / 0.1²)."""
GAUSSIAN_SCALE = 0.1
RING_RADIUS = 0.3
RING_WIDTH = 0.1


def camel(x: Float64[np.ndarray, "points dimension"]) -> Float64[np.ndarray, " points"]:
    """Return the mean of two normal densities on the diagonal of the cube.

    Source:
        Lepage 1978, "A new algorithm for adaptive multidimensional integration", eq. 16.
    """
    size = (math.sqrt(2 * math.pi) * CAMEL_SCALE) ** x.shape[1]
    humps = [np.exp(-_squared(x, c) / (2 * CAMEL_SCALE**2)) for c in CAMEL_CENTRES]
    return np.asarray(np.mean(humps, axis=0) / size)


def gaussian(x: Float64[np.ndarray, "points dimension"]) -> Float64[np.ndarray, " points"]:
    """Return exp(-|x - c|² / (2 s²)) around the centre of the cube."""
    return np.asarray(np.exp(-_squared(x, 0.5) / (2 * GAUSSIAN_SCALE**2)))


def ring(x: Float64[np.ndarray, "points dimension"]) -> Float64[np.ndarray, " points"]:
    """Return 1 - ((r - R) / h)² within h of the sphere of radius R, and 0 elsewhere."""
    place = (np.sqrt(_squared(x, 0.5)) - RING_RADIUS) / RING_WIDTH
    return np.asarray(np.maximum(0.0, 1 - place**2))


def _squared(
    x: Float64[np.ndarray, "points dimension"], centre: float
) -> Float64[np.ndarray, " points"]:
    return np.asarray(((x - centre) ** 2).sum(axis=1))


def _mass(centre: float, scale: float) -> float:
    """Return how much of a normal variable lies in [0, 1]."""
    return 0.5 * sum(math.erf(edge / (scale * math.sqrt(2))) for edge in (centre, 1 - centre))


def _camel_integral(dimensions: int) -> float:
    return sum(math.pow(_mass(c, CAMEL_SCALE), dimensions) for c in CAMEL_CENTRES) / len(
        CAMEL_CENTRES
    )


def _gaussian_integral(dimensions: int) -> float:
    one = math.sqrt(2 * math.pi) * GAUSSIAN_SCALE * _mass(0.5, GAUSSIAN_SCALE)
    return math.pow(one, dimensions)


def _ring_integral(dimensions: int) -> float:
    """Return S h ∫ (1 - t²) (R + h t)^(D - 1) dt from -1 to 1, S the surface of the unit sphere.

    The integral of (1 - t²) t^k is 4 / ((k + 1) (k + 3)) for even k, and 0 for odd ones.
    """
    d = dimensions
    surface = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    terms = (
        math.comb(d - 1, k) * RING_RADIUS ** (d - 1 - k) * RING_WIDTH**k * 4 / ((k + 1) * (k + 3))
        for k in range(0, d, 2)
    )
    return float(surface * RING_WIDTH * sum(terms))


BUILT_IN: dict[str, tuple[Function, Callable[[int], float]]] = {
    "camel": (camel, _camel_integral),
    "gaussian": (gaussian, _gaussian_integral),
    "ring": (ring, _ring_integral),
}
"""Each with its integral over the unit cube of so many dimensions."""

r"""Runge-Kutta schemes: what the words of a solver mean, to training and serving alike.

In each step of length h a scheme asks s times how fast w moves, and then goes by all answers:

    k_i = v(w + c_i h k_{i-1}, t + c_i h),    w <- w + h sum_i b_i k_i.

Each stage here goes by the one before it alone. The error of a whole path shrinks with h to the
power of the scheme's order: 1 for Euler's, 2 for the midpoint, 4 for the classical one.

Source:
    Hairer, Norsett & Wanner 1993, "Solving ordinary differential equations I", section II.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from service.interface import Solver


@dataclass(frozen=True)
class Scheme:
    """The numbers of a scheme.

    Args:
        places: c, where in a step each stage is, and how far it has gone by the one before.
        weights: b, of the stages in the step.
    """

    places: tuple[float, ...]
    weights: tuple[float, ...]


SCHEMES: dict[Solver, Scheme] = {
    "euler": Scheme((0.0,), (1.0,)),
    "midpoint": Scheme((0.0, 0.5), (0.0, 1.0)),
    "rk4": Scheme((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def stages(
    solver: Solver, steps: int, *, start: float, stop: float
) -> Iterator[tuple[float, float, tuple[float, ...]]]:
    """Yield for every stage of a path its time, how far it goes, and at a step's end the weights.

    Both are in units of t and signed; the weights are () but at the last stage of a step. Times
    are no sums of lengths, whose rounding errors would add up, and never leave [start, stop].

    Example:
        >>> list(stages("midpoint", 1, start=0.0, stop=1.0))
        [(0.0, 0.0, ()), (0.5, 0.5, (0.0, 1.0))]
    """
    scheme, length = SCHEMES[solver], (stop - start) / steps
    low, high = sorted((start, stop))
    weights = tuple(length * weight for weight in scheme.weights)
    for step in range(steps):
        for stage, place in enumerate(scheme.places, start=1):
            time = start + (stop - start) * ((step + place) / steps)
            is_last = stage == len(scheme.places)
            yield min(max(time, low), high), place * length, weights if is_last else ()

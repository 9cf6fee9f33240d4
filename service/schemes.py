r"""Runge-Kutta schemes: what the words of a solver mean, to training and serving alike.

In each step of length h a scheme asks s times how fast w moves, and then goes by all answers:

    k_i = v(w + c_i h k_{i-1}, t + c_i h),    w <- w + h sum_i b_i k_i.

Each stage here goes by the one before it alone. The error of a whole path shrinks with h to the
power of the scheme's order: 1 for Euler's, 2 for the midpoint, 4 for the classical one.

Source:
    Hairer, Norsett & Wanner 1993, "Solving ordinary differential equations I", section II.1.
"""

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

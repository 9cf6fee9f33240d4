r"""Ordinary differential equations, solved by explicit Runge-Kutta methods in steps of one length.

A method takes s looks at the velocity in each step of length h:

    k_i = v(w + h sum_j<i a_ij k_j, t + c_i h),    w <- w + h sum_i b_i k_i.

Its error shrinks with h to the power of its order: 1 for Euler's, 2 for the midpoint, 4 for the
classical method.

Source:
    Hairer, Nørsett & Wanner 1993, Solving Ordinary Differential Equations I, section II.1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from service.interface import Solver

State = tuple[Tensor, ...]
"""What moves, batch axis first: w, and perhaps integrals along its way."""
Rates = Callable[[Tensor, Tensor], State]
"""How fast each part of the state moves, given w and the time of each row."""


@dataclass(frozen=True)
class Tableau:
    """A method's numbers, in Butcher's order.

    Args:
        nodes: c, when in the step each look is taken.
        rows: a, how far each look has moved along the ones before.
        weights: b, what each look counts in the step.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS: Mapping[Solver, Tableau] = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "rk4": Tableau(
        (0.0, 1 / 2, 1 / 2, 1.0),
        ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


def solve(
    rates: Rates,
    state: State,
    *,
    solver: Solver,
    steps: int,
    start: float = 0.0,
    end: float = 1.0,
) -> State:
    """Return the state at the time `end`, given that at `start`, of which either may be later.

    Gradients flow through every step.

    Args:
        rates: Of all parts of the state, as functions of the first of them and of the time.
        state: At the start.
        solver: Which method.
        steps: All of one length.
        start: The time of `state`.
        end: The time of the answer.

    Example:
        >>> import torch
        >>> (w,) = solve(lambda w, t: (w,), (torch.ones(1),), solver="euler", steps=2)
        >>> w.tolist()
        [2.25]
    """
    tableau, length = TABLEAUS[solver], (end - start) / steps
    for step in range(steps):
        # Not a sum of lengths, whose rounding errors would add up.
        now = start + (end - start) * (step / steps)
        looks: list[State] = []
        for node, row in zip(tableau.nodes, tableau.rows, strict=True):
            w = _moved(state, looks, row, length)[0]
            looks.append(rates(w, w.new_full((len(w),), now + node * length)))
        state = _moved(state, looks, tableau.weights, length)
    return state


def _moved(state: State, looks: list[State], weights: tuple[float, ...], length: float) -> State:
    """Return the state after a weighted sum of looks."""
    for look, weight in zip(looks, weights, strict=True):
        if weight:
            state = tuple(
                part + length * weight * rate for part, rate in zip(state, look, strict=True)
            )
    return state

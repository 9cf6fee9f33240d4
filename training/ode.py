"""Ordinary differential equations, solved by the schemes of the service in steps of one length."""

from collections.abc import Callable

from torch import Tensor

from service.interface import Solver
from service.schemes import stages

State = tuple[Tensor, ...]
"""What moves, batch axis first: w, and perhaps integrals along its way."""
Rates = Callable[[Tensor, Tensor], State]
"""How fast each part of the state moves, given w and the time of each row."""


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
    found: list[State] = []
    for time, ahead, weights in stages(solver, steps, start=start, stop=end):
        w = state[0] + ahead * found[-1][0] if found else state[0]
        found.append(rates(w, w.new_full((len(w),), time)))
        if not weights:
            continue
        for rate, weight in zip(found, weights, strict=True):
            if weight:
                state = tuple(part + weight * each for part, each in zip(state, rate, strict=True))
        found = []
    return state

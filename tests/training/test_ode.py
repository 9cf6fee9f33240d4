"""The solvers against fields whose solution is known, and against another library."""

import math

import pytest
import torch
import torchdiffeq
from torch import Tensor

from service.interface import Solver
from service.schemes import SCHEMES
from training.ode import solve

FIELD = torch.tensor([[0.3, -1.2, 0.1], [0.8, -0.5, 0.4], [0.2, 0.6, 0.1]], dtype=torch.float64)
START = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.7, -1.0]], dtype=torch.float64)


def speed(t: Tensor) -> Tensor:
    """How fast the linear field is at a time; its integral over [0, 1] is 2.5."""
    return 1 + 3 * t


def rates(w: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A linear field that changes with the time, and its divergence."""
    return speed(t)[:, None] * (w @ FIELD.T), speed(t) * FIELD.trace()


def error(solver: Solver, steps: int) -> float:
    """How far the end is from the exact one, which is a matrix exponential."""
    w, _ = solve(rates, (START, torch.zeros(2, dtype=torch.float64)), solver=solver, steps=steps)
    exact = START @ torch.linalg.matrix_exp(2.5 * FIELD).T
    return float((w - exact).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_half_the_step_divides_the_error_by_two_to_the_order(solver: Solver, order: int) -> None:
    ratio = error(solver, 64) / error(solver, 128)
    assert ratio == pytest.approx(2**order, rel=0.06)


@pytest.mark.parametrize("solver", SCHEMES)
def test_log_det_of_a_linear_field_is_the_trace_times_the_time(solver: Solver) -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    _, log_det = solve(rates, (START, zero), solver=solver, steps=2000)
    # Of the field's speed, Euler's sum is half a step short at its end.
    allowed = 2e-3 if solver == "euler" else 1e-9
    assert (log_det - 2.5 * FIELD.trace()).abs().max() <= allowed


def test_the_way_back_undoes_the_way_there() -> None:
    state = START, torch.zeros(2, dtype=torch.float64)
    there = solve(rates, state, solver="rk4", steps=100)
    w, log_det = solve(rates, there, solver="rk4", steps=100, start=1.0, end=0.0)
    assert (w - START).abs().max() <= 1e-7
    assert log_det.abs().max() <= 1e-12


def test_gradients_are_those_of_the_matrix_exponential() -> None:
    start = START.clone().requires_grad_()
    (w,) = solve(lambda w, t: rates(w, t)[:1], (start,), solver="rk4", steps=100)
    (gradient,) = torch.autograd.grad(w[:, 0].sum(), start)
    exact = torch.linalg.matrix_exp(2.5 * FIELD)[0].expand(2, 3)
    assert (gradient - exact).abs().max() <= 1e-6


def bent(w: Tensor, t: Tensor) -> Tensor:
    """A field that is not linear."""
    return torch.tanh(2 * w.roll(1, dims=-1)) - w * (1 + torch.sin(math.pi * t))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("solver", "theirs", "steps", "allowed"),
    # Their rk4 is another method of the same order.
    [
        ("euler", "euler", 7, 1e-12),
        ("midpoint", "midpoint", 7, 1e-12),
        ("rk4", "dopri5", 100, 1e-8),
    ],
)
def test_end_is_that_of_torchdiffeq(
    solver: Solver, theirs: str, steps: int, allowed: float
) -> None:
    (ours,) = solve(lambda w, t: (bent(w, t[:, None]),), (START,), solver=solver, steps=steps)
    options = {} if theirs == "dopri5" else {"options": {"step_size": 1 / steps}}
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    other = torchdiffeq.odeint(
        lambda t, w: bent(w, t), START, times, method=theirs, rtol=1e-10, atol=1e-10, **options
    )[1]
    assert (ours - other).abs().max() <= allowed

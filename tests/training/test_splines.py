"""The spline against what must be exactly true of it, in float64."""

import pytest
import torch
import zuko
from torch import Tensor

from training.splines import Knots, inverse_spline, knots, parameters_per_spline, spline

BOUND = 3.0
BINS = 6


@pytest.fixture
def free() -> Tensor:
    torch.manual_seed(0)
    return 2 * torch.randn(4, 3, parameters_per_spline(BINS), dtype=torch.float64)


def _hard_values(through: Knots) -> Tensor:
    """Return (4, 3, n) values: knots, ends and beside them, far outside, zero, and inside."""
    special = torch.tensor(
        [0.0, BOUND, -BOUND, BOUND - 1e-6, BOUND + 1e-6, -BOUND - 1e-6, 10 * BOUND, -10 * BOUND],
        dtype=torch.float64,
    )
    inside = torch.linspace(-1.2 * BOUND, 1.2 * BOUND, 101, dtype=torch.float64)
    everywhere = torch.cat((special, inside)).expand(4, 3, -1)
    return torch.cat((through.x, through.y, everywhere), dim=-1)


def _spread(through: Knots, like: Tensor) -> Knots:
    """Return the knots repeated along a space axis, one spline for all the values of a row."""
    return Knots(*(each.unsqueeze(-1).expand(*each.shape, like.shape[-1]) for each in through))


def test_zeros_are_the_identity() -> None:
    through = knots(torch.zeros(1, 1, 23, dtype=torch.float64), BOUND)
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    y, log_slope = spline(x.reshape(1, 1, -1), _spread(through, x))
    assert torch.allclose(y.flatten(), x, atol=1e-14)
    assert log_slope.abs().max() < 1e-13


def test_inverse_undoes_the_spline_on_knots_edges_and_tails(free: Tensor) -> None:
    through = knots(free, BOUND)
    x = _hard_values(through)
    y, log_slope = spline(x, _spread(through, x))
    back, log_slope_back = inverse_spline(y, _spread(through, x))
    assert (back - x).abs().max() <= 1e-10
    assert (log_slope + log_slope_back).abs().max() <= 1e-9
    again, _ = spline(inverse_spline(x, _spread(through, x))[0], _spread(through, x))
    assert (again - x).abs().max() <= 1e-10


def test_outside_the_box_is_the_identity(free: Tensor) -> None:
    x = torch.tensor([-30.0, -3.000001, 3.000001, 30.0], dtype=torch.float64).expand(4, 3, 4)
    y, log_slope = spline(x, _spread(knots(free, BOUND), x))
    assert torch.allclose(y, x, atol=1e-14)
    assert log_slope.abs().max() <= 1e-13


def test_log_slope_is_the_derivative(free: Tensor) -> None:
    x = _hard_values(knots(free, BOUND)).requires_grad_()
    for way in (spline, inverse_spline):
        y, log_slope = way(x, _spread(knots(free, BOUND), x))
        (slope,) = torch.autograd.grad(y.sum(), x)
        inner = (x.abs() - BOUND).abs() > 1e-9  # at the corner itself two slopes meet
        assert (slope.log() - log_slope)[inner].abs().max() <= 1e-8


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_no_value_and_no_gradient_is_ever_nan(free: Tensor, scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        numbers = (scale * free).to(dtype).requires_grad_()
        x = _hard_values(knots(numbers.detach(), BOUND)).to(dtype).requires_grad_()
        for way in (spline, inverse_spline):
            y, log_slope = way(x, _spread(knots(numbers, BOUND), x))
            gradients = torch.autograd.grad((y + log_slope).sum(), (x, numbers))
            for each in (y, log_slope, *gradients):
                assert torch.isfinite(each).all()


def test_spline_agrees_with_zuko(free: Tensor) -> None:
    widths, heights, slopes = free.split((BINS, BINS, BINS - 1), dim=2)
    theirs = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=BOUND)
    ours = Knots(theirs.horizontal, theirs.vertical, theirs.derivatives)
    x = torch.linspace(-4, 4, 51, dtype=torch.float64)
    for value in x:
        each = value.expand(4, 3)
        y, log_slope = spline(each, ours)
        y_theirs, log_slope_theirs = theirs.call_and_ladj(each)
        assert (y - y_theirs).abs().max() <= 1e-12
        assert (log_slope - log_slope_theirs).abs().max() <= 1e-12
        assert (inverse_spline(y, ours)[0] - theirs.inv(y)).abs().max() <= 1e-12

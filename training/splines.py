"""Monotone rational-quadratic splines: flexible maps of the line onto itself, exact both ways.

Values are (batch, channel, ...) and their splines (batch, channel, knots, ...): the knots lie on
axis 2, where a convolution leaves them, so that no copy is needed to bring them to the end.

Source: Durkan, Bekasov, Murray & Papamakarios 2019, "Neural Spline Flows", arXiv:1906.04032.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Smallest share of the box that a bin may have, and smallest slope at a knot. They bound how
# much a rounding error can grow on the way through (paper, appendix B.1, uses the same values).
MIN_SHARE = 1e-3
MIN_SLOPE = 1e-3
AXIS = 2


class Knots(NamedTuple):
    """A spline: where its knots are, where they go, and its slope at each of them."""

    x: Float[Tensor, "batch channel knots *space"]
    y: Float[Tensor, "batch channel knots *space"]
    slope: Float[Tensor, "batch channel knots *space"]


def parameters_per_spline(bins: int) -> int:
    """Return how many free numbers a spline of this many bins has: widths, heights, slopes.

    Example:
        >>> parameters_per_spline(8)
        23
    """
    return 3 * bins - 1


def knots(free: Float[Tensor, "batch channel free *space"], bound: float) -> Knots:
    """Return the spline on the box [-bound, bound] that free numbers stand for.

    Zeros give the identity. The slopes at both ends are 1, so that the spline continues
    smoothly as the identity outside the box.

    Args:
        free: 3 K - 1 numbers of any size: K widths, K heights, K - 1 inner slopes.
        bound: Half the side of the box, > 0.
    """
    bins = (free.shape[AXIS] + 1) // 3
    widths, heights, slopes = free.split((bins, bins, bins - 1), dim=AXIS)
    # softplus(offset) + MIN_SLOPE = 1: a free number of zero is a slope of one.
    offset = math.log(math.expm1(1 - MIN_SLOPE))
    inner = MIN_SLOPE + _softplus(slopes + offset)
    return Knots(_edges(widths, bound), _edges(heights, bound), _between(1.0, inner, 1.0))


def spline(
    x: Float[Tensor, "batch channel *space"], through: Knots
) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, "batch channel *space"]]:
    """Return y(x) and log dy/dx; outside the box y = x.

    With s = h / w the mean slope of the bin, d and d' the slopes at its ends, and t in [0, 1]
    the place in the bin:
        y = y_k + h (s t^2 + d t (1 - t)) / (s + (d + d' - 2 s) t (1 - t))

    Source:
        Durkan et al. 2019, equations 4 and 5.
    """
    # Clamped before the maths: a value thrown away by `where` would still give a NaN gradient.
    # The slope is 1 at both ends, so what was cut off is simply added back.
    inside = _clamp(x, through.x)
    place = _bin(inside, through.x)
    x0, w, y0, h, d0, d1 = _in_bin(place, through)
    s = h / w
    t = ((inside - x0) / w).clamp(0, 1)
    bend = d0 + d1 - 2 * s
    bottom = s + bend * t * (1 - t)
    y = y0 + h * (s * t + d0 * (1 - t)) * t / bottom
    return y + (x - inside), _log_slope(t, s, d0, d1, bottom)


def inverse_spline(
    y: Float[Tensor, "batch channel *space"], through: Knots
) -> tuple[Float[Tensor, "batch channel *space"], Float[Tensor, "batch channel *space"]]:
    """Return x(y) and log dx/dy, the inverse of `spline`.

    Source:
        Durkan et al. 2019, equations 6 to 8, in the form that does not cancel.
    """
    inside = _clamp(y, through.y)
    place = _bin(inside, through.y)
    x0, w, y0, h, d0, d1 = _in_bin(place, through)
    s = h / w
    bend = d0 + d1 - 2 * s
    rise = inside - y0
    a = h * (s - d0) + rise * bend
    b = h * d0 - rise * bend
    c = -s * rise
    # Never negative but for rounding, which happens (bayesiains/nflows issue 87). The floor is
    # not 0, where the gradient of a root is infinite.
    root = (b * b - 4 * a * c).clamp_min(torch.finfo(y.dtype).tiny).sqrt()
    t = (2 * c / (-b - root)).clamp(0, 1)
    x = x0 + t * w
    return x + (y - inside), -_log_slope(t, s, d0, d1, s + bend * t * (1 - t))


def _edges(
    free: Float[Tensor, "batch channel bins *space"], bound: float
) -> Float[Tensor, "batch channel knots *space"]:
    """Return the ends of bins that share the box as softmax says, each at least MIN_SHARE."""
    bins = free.shape[AXIS]
    share = MIN_SHARE + (1 - MIN_SHARE * bins) * free.softmax(dim=AXIS)
    inner = bound * (2 * share.narrow(AXIS, 0, bins - 1).cumsum(dim=AXIS) - 1)
    # The last edge is set and not summed, so that rounding never leaves a gap at the end.
    return _between(-bound, inner, bound)


def _softplus(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return log(1 + exp x), of which ONNX Runtime has no float64."""
    return x.clamp_min(0) + (-x.abs()).exp().log1p()


def _between(
    first: float, inner: Float[Tensor, "batch channel inner *space"], last: float
) -> Float[Tensor, "batch channel knots *space"]:
    """Return the inner numbers of each spline with a constant before and one after them."""
    one = torch.ones_like(inner.narrow(AXIS, 0, 1))
    return torch.cat((first * one, inner, last * one), dim=AXIS)


def _clamp(x: Float[Tensor, "batch channel *space"], edges: Tensor) -> Tensor:
    """Return x cut off at the first and the last knot."""
    return torch.minimum(torch.maximum(x, edges.select(AXIS, 0)), edges.select(AXIS, -1))


def _bin(
    x: Float[Tensor, "batch channel *space"], edges: Float[Tensor, "batch channel knots *space"]
) -> Int[Tensor, "batch channel 1 *space"]:
    """Return the index of the bin that x is in: a count, because searchsorted has no ONNX."""
    inner = edges.narrow(AXIS, 1, edges.shape[AXIS] - 2)
    return (x.unsqueeze(AXIS) >= inner).sum(dim=AXIS, keepdim=True)


def _in_bin(place: Int[Tensor, "batch channel 1 *space"], through: Knots) -> tuple[Tensor, ...]:
    """Return left end, width, lower end, height and both slopes of each value's bin."""
    x0, y0, d0 = (edge.gather(AXIS, place).squeeze(AXIS) for edge in through)
    x1, y1, d1 = (edge.gather(AXIS, place + 1).squeeze(AXIS) for edge in through)
    return x0, x1 - x0, y0, y1 - y0, d0, d1


def _log_slope(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor, bottom: Tensor) -> Tensor:
    """Return log dy/dx of the spline (equation 5)."""
    top = d1 * t * t + 2 * s * t * (1 - t) + d0 * (1 - t) * (1 - t)
    return 2 * s.log() + top.log() - 2 * bottom.log()

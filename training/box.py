r"""Between a box and the whole space: each coordinate's place in the box by its normal score.

With u = (x - low) / (high - low), z = Phi^-1(u) is a standard normal where x is uniform: a flow
that begins with this layer and does nothing else is the uniform density on the box.

Neither Phi nor its inverse has an operator of double precision in ONNX Runtime; both are written
as quotients of polynomials.

Source:
    Wichura 1988, Applied Statistics 37, algorithm AS 241 (the inverse). Hart et al. 1968, as in
    West 2005, "Better approximations to cumulative normal functions" (Phi).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from service.noise import AS241_CENTRE, AS241_TAIL
from training.coupling import Bijection, Context

EDGE = 2.0**-25
"""Nearest to the edges that a score is taken, in units of the box: half of what float32 can tell
from 1. Beyond, the map goes on along its tangent, so that no score is infinite."""

_UPPER = (
    (3.52624965998911e-2, 0.700383064443688, 6.37396220353165, 33.912866078383, 112.079291497871,
     221.213596169931, 220.206867912376),
    (8.83883476483184e-2, 1.75566716318264, 16.064177579207, 86.7807322029461, 296.564248779674,
     637.333633378831, 793.826512519948, 440.413735824752),
)  # fmt: skip
"""Numerators and denominators, the highest power first."""


def normal_cdf(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return Phi(z) for |z| < 7, to 1e-15."""
    far = z.abs()
    upper = (-0.5 * far * far).exp() * _quotient(_UPPER, far)
    return torch.where(z > 0, 1 - upper, upper)


def normal_score(u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return Phi^-1(u) for 1e-11 < u < 1 - 1e-11, to 1e-15."""
    q = u - 0.5
    inner = q * _quotient(AS241_CENTRE, 0.180625 - (q * q).clamp(max=0.180625))
    # Both branches are worked out for all, and neither may be infinite where it is not meant.
    r = (-torch.minimum(u, 1 - u).log()).sqrt()
    outer = _quotient(AS241_TAIL, r - 1.6)
    return torch.where(q.abs() <= 0.425, inner, torch.where(q < 0, -outer, outer))


def _quotient(
    coefficients: tuple[Sequence[float], Sequence[float]], x: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    over, under = (_polynomial(each, x) for each in coefficients)
    return over / under


def _polynomial(coefficients: Sequence[float], x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    value = torch.zeros_like(x) + coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


FARTHEST = float(normal_score(torch.tensor(1 - EDGE, dtype=torch.float64)))
"""The score at the edge, 5.4: one normal number in 30 million lies beyond."""
TANGENT = math.exp(-0.5 * FARTHEST**2) / math.sqrt(2 * math.pi)
"""The slope of Phi there."""


class Box(Bijection):
    """Points of the box [low, high]^D to their normal scores.

    Args:
        low, high: The sides, which float32 must know apart.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))

    @property
    def width(self) -> Tensor:
        """Of the box, in each dimension."""
        return self.high - self.low

    def forward(
        self, x: Float[Tensor, "batch feature"], context: Context = None
    ) -> tuple[Float[Tensor, "batch feature"], Float[Tensor, " batch"]]:
        """Return z and sum(z² / 2 + log sqrt(2 pi) - log(high - low)), by dz/du = 1 / phi(z)."""
        u = (x - self.low) / self.width
        inside = u.clamp(EDGE, 1 - EDGE)
        # In float32 there is no 1 - EDGE: what it was rounded to has no score.
        z = normal_score(inside.clamp(max=1 - torch.finfo(x.dtype).eps / 2))
        log_slope = 0.5 * z * z + 0.5 * math.log(2 * math.pi) - self.width.log()
        return z + (u - inside) / TANGENT, log_slope.sum(dim=1)

    def inverse(
        self, z: Float[Tensor, "batch feature"], context: Context = None
    ) -> Float[Tensor, "batch feature"]:
        """Return x, never outside the box."""
        inside = z.clamp(-FARTHEST, FARTHEST)
        u = normal_cdf(inside) + (z - inside) * TANGENT
        # Rounding may lead out of the box, where nobody has said what the integrand is.
        return torch.minimum(torch.maximum(self.low + self.width * u, self.low), self.high)

r"""f-divergences of the data's density p from that of samples, q, as bounds that a critic raises.

    D_f(p || q) = E_q f(p/q) >= E_p T - E_q f*(T),    f*(t) = sup_u (u t - f(u)),

with equality at T = f'(p/q). f is convex with f(1) = 0, so D_f is 0 where samples follow the data.
The critic's number v is any real one; the activation g maps it onto the values that f* is made
for, and rises: the larger v, the more an event looks like data.

Source:
    Nowozin et al. 2016, arXiv:1606.00709, tables 1, 2 and 6; but the activations are g = f'(u(v))
    with a ratio u that does not grow exponentially, where theirs do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

Map = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]
"""Of each number on its own."""


@dataclass(frozen=True)
class FDivergence:
    """One of them.

    Args:
        f: Of the ratio u = p/q > 0.
        conjugate: f*, on its domain.
        domain: Where f* is used, as an open interval: the range of `activation`. It is where f* is
            finite, but of the total variation where it is not constant besides.
        activation: g, from any number into the domain.
        composed: f*(g(v)), written so that it neither cancels nor overflows before it must.
        best: T* = f'(u), the critic's best answer, after the activation.
        log_ratio: log u at the critic whose answer after the activation is T*, of v. None where
            f' is a step, and T* tells the sign of log u alone.
    """

    f: Map
    conjugate: Map
    domain: tuple[float, float]
    activation: Map
    composed: Map
    best: Map
    log_ratio: Map | None

    @property
    def undecided(self) -> float:
        """T* where p = q: above it an event is more likely data than a sample."""
        return self.best(torch.ones((), dtype=torch.float64)).item()


_LOG_2 = math.log(2)
_LINEAR = -30.0
"""Below it log(1 + e^v) is e^v in any precision, and its logarithm v, which does not overflow."""


def _log_softplus(v: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return torch.where(v < _LINEAR, v, softplus(v.clamp(min=_LINEAR)).log())


def _ratio(v: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a u > 0 for any v, with u(-v) = 1/u(v), that grows no faster than v.

    The paper's activations say u = exp(v), and KL's and Hellinger's bounds then grow
    exponentially in v: in convolutional critics without spectral normalisation they overflowed
    within 130 steps, by a penalty of 10 on the gradient too (measured).
    """
    return (1 + softplus(v)) / (1 + softplus(-v))


def _log_ratio(v: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return softplus(v).log1p() - softplus(-v).log1p()


DIVERGENCES: Mapping[str, FDivergence] = {
    # KL(p || q), the integral of p log (p/q): large where samples are missing.
    "kl": FDivergence(
        f=lambda u: torch.xlogy(u, u),
        conjugate=lambda t: torch.exp(t - 1),
        domain=(-math.inf, math.inf),
        activation=lambda v: 1 + _log_ratio(v),
        composed=_ratio,
        best=lambda u: 1 + u.log(),
        log_ratio=_log_ratio,
    ),
    # KL(q || p): large where samples lie that are no data.
    "reverse-kl": FDivergence(
        f=lambda u: -u.log(),
        conjugate=lambda t: -1 - torch.log(-t),
        domain=(-math.inf, 0.0),
        activation=lambda v: -_ratio(-v),
        composed=lambda v: _log_ratio(v) - 1,
        best=lambda u: -1 / u,
        log_ratio=_log_ratio,
    ),
    # The integral of (p - q)^2 / q.
    "pearson": FDivergence(
        f=lambda u: (u - 1).square(),
        conjugate=lambda t: t.square() / 4 + t,
        # Of u > 0 alone: below -2 f* is -1, and t^2 / 4 + t would fall as v rises.
        domain=(-2.0, math.inf),
        activation=lambda v: softplus(v) - 2,
        composed=lambda v: softplus(v).square() / 4 - 1,
        best=lambda u: 2 * (u - 1),
        log_ratio=lambda v: _log_softplus(v) - _LOG_2,
    ),
    # The integral of (sqrt p - sqrt q)^2.
    "squared-hellinger": FDivergence(
        f=lambda u: (u.sqrt() - 1).square(),
        conjugate=lambda t: t / (1 - t),
        domain=(-math.inf, 1.0),
        activation=lambda v: 1 - _ratio(-v).sqrt(),
        composed=lambda v: _ratio(v).sqrt() - 1,
        best=lambda u: 1 - u.rsqrt(),
        log_ratio=_log_ratio,
    ),
    # KL(p || m) + KL(q || m) for m = (p + q) / 2: twice the Jensen-Shannon divergence, so that the
    # bound is the value of Goodfellow et al. 2014 and log 4.
    "jensen-shannon": FDivergence(
        f=lambda u: torch.xlogy(u, u) - (1 + u) * torch.log((1 + u) / 2),
        conjugate=lambda t: -torch.log(2 - torch.exp(t)),
        domain=(-math.inf, _LOG_2),
        activation=lambda v: _LOG_2 + logsigmoid(v),
        composed=lambda v: softplus(v) - _LOG_2,
        best=lambda u: torch.log(2 * u / (1 + u)),
        log_ratio=lambda v: v,
    ),
    # Half the integral of |p - q|.
    "total-variation": FDivergence(
        f=lambda u: (u - 1).abs() / 2,
        conjugate=lambda t: t,
        domain=(-0.5, 0.5),
        activation=lambda v: torch.tanh(v) / 2,
        composed=lambda v: torch.tanh(v) / 2,
        best=lambda u: torch.sign(u - 1) / 2,
        log_ratio=None,
    ),
}
"""By the objective's name."""


def bound(
    divergence: FDivergence, real: Float[Tensor, " batch"], fake: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return E_p g(v) - E_q f*(g(v)), which is at most the divergence in expectation.

    Args:
        divergence: Which.
        real: The critic's numbers v at events of the data.
        fake: And at samples.

    Example:
        >>> undecided = torch.zeros(2)
        >>> bound(DIVERGENCES["kl"], undecided, undecided).item()
        0.0
    """
    return divergence.activation(real).mean() - divergence.composed(fake).mean()

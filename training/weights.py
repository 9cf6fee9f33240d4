r"""What importance weights say: the integral, its error, and what a proposal is worth.

With points x of density m and w = f(x) / m(x), the mean of w is the integral of f without bias,
and its error is the deviation of w over the root of n. A proposal is good as w varies little.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from service.manifest import Figure

INTEGRAL = "integral"
UNIFORM = "integral by uniform points"
EFFECTIVE = "effective sample size"
RATIO = "variance of uniform points over that of the proposal"
LARGEST = "largest weight over the mean"


def figures(
    weight: Float64[Tensor, " points"],
    uniform: Float64[Tensor, " points"],
    *,
    exact: float | None,
    bound: float,
    how: str,
) -> tuple[Figure, ...]:
    """Return what two samples of equal length say of an integral; no ratio where one is constant.

    Errors of what is not a mean come from its derivative in each point's weight (the delta
    method); weights with heavy tails make them, as every error here, too small.

    Args:
        weight: Of points of the proposal.
        uniform: Of uniform points: f times the volume.
        exact: The integral, where it is known.
        bound: What the largest weight cannot exceed, as far as is known of f.
        how: What the points of the proposal are.
    """
    n = len(weight)
    integral = _mean(INTEGRAL, weight, note=how)
    if exact is not None and integral.standard_error:
        off = abs(integral.value - exact) / integral.standard_error
        said = f"{how}; exactly {exact:.6g}, which is {off:.2f} standard errors away"
        integral = integral.model_copy(update={"note": said})
    note = "the row to compare with: as many points, uniform in the box"
    found = [integral, _mean(UNIFORM, uniform, note=note)]
    # Squares of very large or small values would not fit into float64.
    unit = weight.max().item()
    if unit > 0:
        found.append(_effective(weight / unit))
    if unit > 0 and (weight / unit).var() > 0 and (uniform / unit).var() > 0:
        found.append(_ratio(weight / unit, uniform / unit))
    if unit > 0:
        found.append(
            Figure(
                name=LARGEST,
                value=unit / integral.value,
                standard_error=None,
                n=n,
                note=f"the uniform share keeps it below {bound / integral.value:.4g}, if f is "
                "nowhere larger than was seen",
            )
        )
    return tuple(found)


def effective_share(weight: Float64[Tensor, " points"]) -> Float64[Tensor, ""]:
    """Return (sum w)² / (n sum w²), in (0, 1]: the effective sample size as a part of n.

    Source:
        Kong 1992, "A note on importance sampling using standardized weights".
    """
    largest = weight.max().clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / largest).mean().square() / (weight / largest).square().mean().clamp_min(1e-300)


def _effective(weight: Float64[Tensor, " points"]) -> Figure:
    first, second = weight.mean(), weight.square().mean()
    influence = 2 * first / second * weight - (first / second) ** 2 * weight.square()
    return Figure(
        name=EFFECTIVE,
        value=effective_share(weight).item(),
        standard_error=influence.std().item() / math.sqrt(len(weight)),
        n=len(weight),
        unit="fraction",
        note="(sum w)² / (n sum w²): so many points drawn from f itself would be worth as much",
    )


def _ratio(weight: Float64[Tensor, " points"], uniform: Float64[Tensor, " points"]) -> Figure:
    """Return how many times fewer points the proposal needs for the same error."""
    ours, theirs = weight.var(), uniform.var()
    relative = _error_of_variance(weight) / ours.item() ** 2
    relative += _error_of_variance(uniform) / theirs.item() ** 2
    value = (theirs / ours).item()
    return Figure(
        name=RATIO,
        value=value,
        standard_error=value * math.sqrt(relative),
        n=len(weight),
        note="so many times fewer evaluations of f give the same error",
    )


def _error_of_variance(values: Float64[Tensor, " points"]) -> float:
    """Return the variance of the sample variance, (m4 - s⁴) / n."""
    squared = (values - values.mean()).square()
    return squared.var().item() / len(values)


def _mean(name: str, values: Float64[Tensor, " points"], *, note: str) -> Figure:
    unit = values.max().item() or 1.0
    return Figure(
        name=name,
        value=values.mean().item(),
        standard_error=unit * (values / unit).std().item() / math.sqrt(len(values)),
        n=len(values),
        note=note,
    )

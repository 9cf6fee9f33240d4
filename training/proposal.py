r"""Neural importance sampling: a flow on a box learns where an integrand has its mass.

Wanted is the integral I of f >= 0 over a box of volume V. Points come from a mixture of the flow
q and a share of uniform ones, which bounds the weights:

    m = (1 - a) q + a / V,    w = f / m <= V max f / a,    E_m[w] = I

With p = f / I, the flow minimises, by points of m that are drawn anew at every step and never
differentiated (f is a black box):

    forward-kl   KL(p || q)            gradient -E_m[w grad log q] / E_m[w]
    reverse-kl   KL(q || p)            gradient E_m[q / m (log q - log f - b) grad log q]
    chi-square   log E_m[(w / I)²]     gradient -E_m[w² grad log m] / E_m[w²]

The last is the logarithm of 1 + the relative variance of w, so what the error of the integral
comes from; 1 over its exponential is the effective sample size as a part of all points.

What is served is the flow alone, as any other flow: a client mixes as it likes.

Source:
    Müller et al. 2019, "Neural Importance Sampling", arXiv:1808.03856. Mixture: Hesterberg 1995,
    "Weighted average importance sampling and defensive mixture distributions".
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from service.interface import Density, Frozen, Interface
from service.manifest import Figure
from training import weights
from training.data import Batch, Data
from training.family import Score, Turn
from training.flow import Flow
from training.flow_config import FlowConfig

Objective = Literal["forward-kl", "reverse-kl", "chi-square"]
FLOOR = 1e-10
"""The reverse KL takes f for at least this part of the largest value among the data's points,
because a single 0 would make it infinite. A guess: 23 nats."""
CHUNK_ROWS = 4096
"""Points worked on at once when the proposal is judged."""


class ProposalConfig(Frozen):
    """A flow of spline couplings, and what it learns by."""

    family: Literal["proposal"] = Field("proposal", description="Selects this family.")
    objective: Objective = Field(
        "forward-kl",
        description="What is minimised: KL(p||q), with p = f / integral; KL(q||p), which may leave "
        "a part of p out; or chi-square, the variance of the weights.",
    )
    uniform: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of points that are uniform in the box, in training and in the figures. "
        "No weight exceeds volume * largest f / this share.",
    )
    layers: int = Field(8, ge=2, description="Couplings.")
    width: int = Field(64, ge=1, description="Hidden units of each network.")
    depth: int = Field(2, ge=1, description="Residual blocks of each network.")
    bins: int = Field(8, ge=2, le=64, description="Bins of each spline.")

    @property
    def flow(self) -> FlowConfig:
        """The same as of a flow."""
        return FlowConfig(layers=self.layers, width=self.width, depth=self.depth, bins=self.bins)


class Proposal(Flow):
    """A flow on the box of an integrand.

    Raises:
        ValueError: The data is no integrand.
    """

    def __init__(self, config: ProposalConfig, data: Data) -> None:
        if data.integrand is None or data.train.value is None:
            raise ValueError(
                "model.family: a proposal is for an integrand; give data.source = "
                '"integrand:camel" or "python:package.module:function"'
            )
        super().__init__(config.flow, data)
        self.objective, self.uniform = config.objective, config.uniform
        self.integrand = data.integrand
        self.log_floor = math.log(FLOOR * data.train.value.max().item())

    @property
    def interface(self) -> Interface:
        """What is served: the flow, without the uniform share."""
        density = Density(
            kind="exact",
            estimator="exact",
            measure="per unit of x, inside the box",
            preprocessing="the normal score of each coordinate's place in the box",
        )
        return super().interface.model_copy(update={"density": density})

    def turns(self) -> tuple[Turn, ...]:
        """Return the one move: a step along the objective's gradient, at fresh points."""
        return (Turn(self.objective, tuple(self.parameters()), self._loss),)

    def score(self, batch: Batch) -> Score:
        """Return log E[w²] / E[w]², whatever the objective: the variance is what figures tell."""
        x = self.draw(batch)
        log_q = self.log_density(x).double()
        return Score(chi_square(self.values(x), self.log_mixture(log_q)).to(x.dtype).item())

    def own_figures(self, test: Batch) -> tuple[Figure, ...]:
        """Return the integral by the mixture, and how it compares with the test rows alone.

        Those are uniform points. Where the mixture takes a uniform point, it takes theirs.
        """
        points = torch.arange(len(test)).split(CHUNK_ROWS)
        device = next(self.parameters()).device
        x = torch.cat([self.draw(test[part].to(device)) for part in points])
        log_q = torch.cat([self.log_density(x[part]) for part in points]).double()
        value, uniform = self.values(x), self.values(test.x)
        largest, volume = max(value.max().item(), uniform.max().item()), self.integrand.volume
        return weights.figures(
            (value * (-self.log_mixture(log_q)).exp()).cpu(),
            volume * uniform,
            exact=self.integrand.exact,
            bound=volume * largest / self.uniform,
            how=f"points of the flow and a share of {self.uniform:g} of uniform ones",
        )

    @torch.no_grad()
    def draw(self, batch: Batch) -> Float[Tensor, "batch feature"]:
        """Return points of the mixture; those that are uniform are the batch's own."""
        drawn = self.decode(torch.randn_like(batch.x))
        is_uniform = torch.rand(len(batch), 1, device=batch.x.device) < self.uniform
        return torch.where(is_uniform, batch.x, drawn)

    def values(self, x: Float[Tensor, "batch feature"]) -> Float64[Tensor, " batch"]:
        """Return f at points of the box."""
        return torch.from_numpy(self.integrand(x.cpu().numpy())).to(x.device)

    def log_mixture(self, log_q: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
        """Return log m from log q."""
        uniform = math.log(self.uniform) - math.log(self.integrand.volume)
        return torch.logaddexp(log_q + math.log1p(-self.uniform), torch.full_like(log_q, uniform))

    def _loss(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        x = self.draw(batch)
        log_q = self.log_density(x).double()
        value, log_m = self.values(x), self.log_mixture(log_q)
        if self.objective == "forward-kl":
            loss = forward_kl(value, log_m, log_q)
        elif self.objective == "reverse-kl":
            loss = reverse_kl(value, log_m, log_q, log_floor=self.log_floor)
        else:
            loss = chi_square(value, log_m)
        effective = weights.effective_share(value * (-log_m.detach()).exp())
        return {"loss": loss, "effective": effective}


def forward_kl(
    value: Float64[Tensor, " points"],
    log_m: Float64[Tensor, " points"],
    log_q: Float64[Tensor, " points"],
) -> Float64[Tensor, ""]:
    """Return KL(p || q) by self-normalised weights, with the gradient of that in q.

    Args:
        value: f at points of the mixture m.
        log_m: Its density there. Only the number counts: no gradient passes.
        log_q: The flow's.
    """
    weight = value * (-log_m.detach()).exp()
    share = _normalised(weight)
    # Where f is 0, log f is -infinity and its share 0.
    log_f = torch.where(value > 0, value, 1.0).log()
    estimate = (share * (log_f - log_q)).sum() - _log(weight.mean())
    return _with_gradient(estimate, -(share * log_q).sum())


def reverse_kl(
    value: Float64[Tensor, " points"],
    log_m: Float64[Tensor, " points"],
    log_q: Float64[Tensor, " points"],
    *,
    log_floor: float,
) -> Float64[Tensor, ""]:
    """Return KL(q || p), with the score function's gradient of it in q.

    Its baseline b is the mean of log q - log f over q. A baseline of other points would leave no
    bias; of the same n points it makes the gradient smaller by 1 / n.

    Args:
        value: f at points of the mixture m.
        log_m: Its density there.
        log_q: The flow's.
        log_floor: What log f is at least taken for.
    """
    ratio = (log_q - log_m).detach().exp()
    cost = log_q.detach() - torch.where(value > 0, value, 1e-300).log().clamp_min(log_floor)
    mean = (_normalised(ratio) * cost).sum()
    gradient = (ratio * (cost - mean) * log_q).mean()
    return _with_gradient(mean + _log((value * (-log_m.detach()).exp()).mean()), gradient)


def chi_square(
    value: Float64[Tensor, " points"], log_m: Float64[Tensor, " points"]
) -> Float64[Tensor, ""]:
    """Return log E[w²] / E[w]², with the gradient of log E[w²] in m.

    Args:
        value: f at points of m.
        log_m: Its log-density there.
    """
    weight = value * (-log_m.detach()).exp()
    # In units of the largest: squares of very large or small values would not fit into float64.
    weight = weight / weight.max().clamp_min(torch.finfo(weight.dtype).tiny)
    square = weight.square()
    estimate = _log(square.mean()) - 2 * _log(weight.mean())
    return _with_gradient(estimate, -(_normalised(square) * log_m).sum())


def _normalised(weight: Float64[Tensor, " points"]) -> Float64[Tensor, " points"]:
    """Return weights that sum to 1, or zeros where f is 0 at all points: then nothing is learnt."""
    return weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def _log(mean: Float64[Tensor, ""]) -> Float64[Tensor, ""]:
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def _with_gradient(
    estimate: Float64[Tensor, ""], surrogate: Float64[Tensor, ""]
) -> Float64[Tensor, ""]:
    """Return the estimate's number with the surrogate's gradient."""
    return estimate.detach() + surrogate - surrogate.detach()

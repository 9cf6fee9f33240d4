r"""Gradients of an expectation in the parameters of its distribution, from draws alone.

    ELBO(λ) = E_q(z|λ)[f(z)],    f(z) = log p(x|z) + log p(z) - log q(z|λ)

The expectation is over a distribution that itself depends on λ, so the gradient cannot simply be
moved inside. There are two ways around that, and both need nothing of the model but its value (or
its slope) at drawn z: they are black boxes to it.

    score function    ∇ E_q[f] = E_q[f(z) ∇ log q(z|λ)]         any q, any f; high variance
    pathwise          ∇ E_q[f] = E_e[∇ f(z(λ, e))]              smooth z(λ, e) and f; low variance

An estimator answers one term for each draw; the mean over draws is unbiased. `MeanField` is what
they draw from: independent latents with a row of λ for each event, and λ = 0 is the prior.

Source:
    Williams 1992 (REINFORCE). Ranganath et al. 2014, arXiv:1401.0118 (black-box variational
    inference). Kingma & Welling 2014, arXiv:1312.6114 (reparametrization).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from training.networks import LOG_BOUND, normal_log_prob

LARGEST_STEP = 1.0
"""Of one step of ascent, in units of the latent's own scale or in nats of its logit or log-scale.
A guess: far more than a good step, far less than what a noisy one may ask for."""

WIDEST = 1.0
"""Largest log-scale of a normal q. Where the likelihood is log-concave the best q is no wider than
the prior, whose log-scale is 0. A guess: without a bound, noise alone can drive it up for good."""

LogLikelihood = Callable[[Float[Tensor, "batch draws latent"]], Float[Tensor, "batch draws"]]
"""log p(x|z) of each draw, for the batch's own x."""


class MeanField(ABC):
    """q(z|λ) = prod_j q(z_j|λ_j): one row of λ for each event, and λ = 0 is the prior p(z)."""

    per_latent: int
    """Numbers of λ that each latent has."""

    @abstractmethod
    def draw(
        self, parameters: Float[Tensor, "batch parameters"], draws: int
    ) -> Float[Tensor, "batch draws latent"]:
        """Return draws z ~ q(z|λ), with torch's global generator."""

    @abstractmethod
    def log_ratio(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws"]:
        """Return log q(z|λ) - log p(z) in nats."""

    @abstractmethod
    def score(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws parameters"]:
        """Return ∇ log q(z|λ) in λ at a fixed z."""

    @abstractmethod
    def kl(self, parameters: Float[Tensor, "batch parameters"]) -> Float[Tensor, " batch"]:
        """Return KL(q(z|λ) || p(z)) in nats."""

    @abstractmethod
    def ascend(
        self,
        parameters: Float[Tensor, "batch parameters"],
        gradient: Float[Tensor, "batch parameters"],
        *,
        rate: float,
    ) -> Float[Tensor, "batch parameters"]:
        """Return λ after a step along the natural gradient: the gradient over q's information.

        No component moves by more than `LARGEST_STEP`, so that one wild draw ruins nothing.

        Source:
            Hoffman et al. 2013, arXiv:1206.7051, section 2.3.
        """


class Normal(MeanField):
    """z_j ~ N(mean, exp(log_scale)^2), with λ = (means, log-scales) and p(z) = N(0, I)."""

    per_latent = 2

    def draw(
        self, parameters: Float[Tensor, "batch parameters"], draws: int
    ) -> Float[Tensor, "batch draws latent"]:
        """Return mean + scale * noise."""
        mean, log_scale = _halves(parameters)
        noise = torch.randn(len(mean), draws, mean.shape[2], dtype=mean.dtype, device=mean.device)
        return mean + log_scale.exp() * noise

    def log_ratio(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws"]:
        """Return log N(z; mean, scale^2) - log N(z; 0, I)."""
        mean, log_scale = _halves(parameters)
        ratio = normal_log_prob(z, mean=mean, log_scale=log_scale) - normal_log_prob(z)
        return ratio.sum(2)

    def score(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws parameters"]:
        """Return (e / scale, e^2 - 1), with e = (z - mean) / scale."""
        mean, log_scale = _halves(parameters)
        noise = (z - mean) * torch.exp(-log_scale)
        return torch.cat([noise * torch.exp(-log_scale), noise.square() - 1], dim=2)

    def pull_back(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
        slope: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws parameters"]:
        """Return the gradient in λ of what has this slope in z, along z = mean + scale * e."""
        mean, _ = _halves(parameters)
        return torch.cat([slope, slope * (z - mean)], dim=2)

    def kl(self, parameters: Float[Tensor, "batch parameters"]) -> Float[Tensor, " batch"]:
        """Return 1/2 sum_j (s_j^2 + m_j^2 - 1 - 2 log s_j), with m = mean and s = scale.

        Source:
            Kingma & Welling 2014, arXiv:1312.6114, appendix B.

        Example:
            >>> Normal().kl(torch.zeros(2, 6)).tolist()
            [0.0, 0.0]
        """
        mean, log_scale = parameters.chunk(2, dim=1)
        return 0.5 * ((2 * log_scale).exp() + mean.square() - 1 - 2 * log_scale).sum(1)

    def ascend(
        self,
        parameters: Float[Tensor, "batch parameters"],
        gradient: Float[Tensor, "batch parameters"],
        *,
        rate: float,
    ) -> Float[Tensor, "batch parameters"]:
        """Return λ after a step; the information is 1 / scale^2 of a mean, 2 of a log-scale."""
        mean, log_scale = parameters.chunk(2, dim=1)
        slope, growth = gradient.chunk(2, dim=1)
        scale = log_scale.exp()
        mean = mean + scale * _limited(rate * scale * slope)
        log_scale = (log_scale + _limited(rate * growth / 2)).clamp(-LOG_BOUND, WIDEST)
        return torch.cat([mean, log_scale], dim=1)


class Bernoulli(MeanField):
    """z_j is +1 with probability sigmoid(λ_j), else -1; under p(z) either is as likely.

    Nothing of z but its sign may matter to the model: then z ~ N(0, I) is as good a prior.
    """

    per_latent = 1

    def draw(
        self, parameters: Float[Tensor, "batch parameters"], draws: int
    ) -> Float[Tensor, "batch draws latent"]:
        """Return +1 or -1."""
        chance = torch.sigmoid(parameters).unsqueeze(1).expand(-1, draws, -1)
        return 2 * torch.bernoulli(chance) - 1

    def log_ratio(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws"]:
        """Return sum_j log sigmoid(±λ_j) + log 2."""
        agreement = torch.where(z > 0, 1, -1) * parameters.unsqueeze(1)
        return (math.log(2) - softplus(-agreement)).sum(2)

    def score(
        self,
        parameters: Float[Tensor, "batch parameters"],
        z: Float[Tensor, "batch draws latent"],
    ) -> Float[Tensor, "batch draws parameters"]:
        """Return bit - p, with bit 1 where z > 0 and p = sigmoid(λ)."""
        return (z > 0).to(parameters) - torch.sigmoid(parameters).unsqueeze(1)

    def kl(self, parameters: Float[Tensor, "batch parameters"]) -> Float[Tensor, " batch"]:
        """Return sum_j log 2 - H(p_j), with H the entropy of a bit.

        Example:
            >>> Bernoulli().kl(torch.zeros(2, 3)).tolist()
            [0.0, 0.0]
        """
        entropy = softplus(parameters) - parameters * torch.sigmoid(parameters)
        return (math.log(2) - entropy).sum(1)

    def ascend(
        self,
        parameters: Float[Tensor, "batch parameters"],
        gradient: Float[Tensor, "batch parameters"],
        *,
        rate: float,
    ) -> Float[Tensor, "batch parameters"]:
        """Return λ after a step; the information of a logit is p (1 - p)."""
        information = torch.sigmoid(parameters) * torch.sigmoid(-parameters)
        moved = parameters + _limited(rate * gradient / information)
        return moved.clamp(-LOG_BOUND, LOG_BOUND)


Estimator = Callable[
    [MeanField, Float[Tensor, "batch parameters"], LogLikelihood, int],
    Float[Tensor, "batch draws parameters"],
]
"""From q, λ, log p(x|z) and a number of draws to one term of the gradient for each draw."""


def reinforce(
    q: MeanField,
    parameters: Float[Tensor, "batch parameters"],
    log_likelihood: LogLikelihood,
    draws: int,
) -> Float[Tensor, "batch draws parameters"]:
    """Return f(z) ∇ log q(z|λ) of each draw: the score function, and f as a black box."""
    value, score = _scored(q, parameters, log_likelihood, draws)
    return value.unsqueeze(2) * score


def reinforce_with_baseline(
    q: MeanField,
    parameters: Float[Tensor, "batch parameters"],
    log_likelihood: LogLikelihood,
    draws: int,
) -> Float[Tensor, "batch draws parameters"]:
    """Return (f(z) - b) ∇ log q(z|λ) of each draw, with b the mean of f over the other draws.

    E_q[∇ log q] = 0, so a number b that does not depend on z changes no mean, and one close to f
    takes most of the variance away. The draw's own f is left out of its b, which would bias it.

    Raises:
        ValueError: There is no other draw.

    Source:
        Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!".
    """
    if draws < 2:
        raise ValueError(f"draws: a baseline is the mean of the other draws; got {draws} in all")
    value, score = _scored(q, parameters, log_likelihood, draws)
    baseline = (value.sum(1, keepdim=True) - value) / (draws - 1)
    return (value - baseline).unsqueeze(2) * score


def reparametrization(
    q: MeanField,
    parameters: Float[Tensor, "batch parameters"],
    log_likelihood: LogLikelihood,
    draws: int,
) -> Float[Tensor, "batch draws parameters"]:
    """Return ∇ f(z(λ, e)) of each draw: the slope of f, followed back along z = mean + scale e.

    Raises:
        ValueError: z is not a smooth function of λ.
    """
    if not isinstance(q, Normal):
        raise ValueError(f"reparametrization: expected normal latents; got {type(q).__name__}")
    z = q.draw(parameters, draws)
    with torch.enable_grad():
        moving = z.detach().requires_grad_()
        value = log_likelihood(moving) - q.log_ratio(parameters, moving)
        (slope,) = torch.autograd.grad(value.sum(), moving)
    # At a fixed z, too, f depends on λ: by -log q(z|λ).
    return q.pull_back(parameters, z, slope) - q.score(parameters, z)


Gradient = Literal["reinforce", "reinforce-baseline", "reparametrization"]
ESTIMATORS: dict[Gradient, Estimator] = {
    "reinforce": reinforce,
    "reinforce-baseline": reinforce_with_baseline,
    "reparametrization": reparametrization,
}


@torch.no_grad()
def _scored(
    q: MeanField,
    parameters: Float[Tensor, "batch parameters"],
    log_likelihood: LogLikelihood,
    draws: int,
) -> tuple[Float[Tensor, "batch draws"], Float[Tensor, "batch draws parameters"]]:
    """Return f(z) and ∇ log q(z|λ) of fresh draws."""
    z = q.draw(parameters, draws)
    return log_likelihood(z) - q.log_ratio(parameters, z), q.score(parameters, z)


def _halves(
    parameters: Float[Tensor, "batch parameters"],
) -> tuple[Float[Tensor, "batch 1 latent"], Float[Tensor, "batch 1 latent"]]:
    """Return means and log-scales, with an axis for draws."""
    mean, log_scale = parameters.unsqueeze(1).chunk(2, dim=2)
    return mean, log_scale


def _limited(step: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
    return step.clamp(-LARGEST_STEP, LARGEST_STEP)

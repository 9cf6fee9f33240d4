"""Priors p(z), of which everything else knows how to draw and how to weigh.

A learned one is a flow of normal noise, and learns where the codes of events lie:

    p(z) = N(f(z); 0, I) |det df/dz|,    z = f^-1(noise)

Under N(0, I) much of the latent space belongs to no event, and what is drawn from there looks like
nothing. A learned prior leaves those places out, and the bound is the tighter for it.

Source:
    Chen et al. 2017, arXiv:1611.02731, section 3.2 (a flow for a prior, and why it is at least
    as good as the same flow in the posterior); Durkan et al. 2019, arXiv:1906.04032 (couplings).
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.coupling import Chain, halves, with_digits
from training.elementwise import Spline
from training.networks import normal_log_prob, total

BINS = 8
"""Of each spline, as in the flows of events."""
BOUND = 5.0
"""Half the side of the box in which the splines act. Of 20,000 draws of each shipped model all lie
within (4.85 at most, 2026-11-27)."""


class Prior(nn.Module, ABC):
    """p(z) of a latent-variable model, as a map of as much standard normal noise.

    Annealing walks among the noise: the map has to be continuous.
    """

    distribution: Literal["normal", "learned"] = "learned"
    """What the bundle says of it. Of a normal one everybody knows the density."""

    @abstractmethod
    def push(self, noise: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """Return the z that noise becomes."""

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log p(z) in nats. Refinement differentiates it, inside a graph."""


class StandardNormal(Prior):
    """z is the noise itself."""

    distribution = "normal"

    def push(self, noise: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """Return the noise."""
        return noise

    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log N(z; 0, I) in nats."""
        return total(normal_log_prob(z))


class FlowPrior(Prior):
    """Spline couplings between codes z and as many numbers of standard normal noise.

    Args:
        latent: How many, two or more.
        layers: Couplings.
        width: Units of each coupling's network.

    Raises:
        ValueError: There is one latent only.
    """

    def __init__(self, *, latent: int, layers: int, width: int) -> None:
        super().__init__()
        if latent < 2:
            raise ValueError("model.prior: a flow couples two latents or more; latent is 1")
        self.flow = Chain(
            [*halves(latent, transforms=[Spline(BINS, BOUND)] * layers, width=width, depth=1)]
        )

    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log p(z) in nats."""
        noise, log_abs_det = self.flow(with_digits(z.flatten(0, 1), training=self.training))
        log_prob = total(normal_log_prob(noise)) + log_abs_det
        return torch.unflatten(log_prob.to(z.dtype), 0, z.shape[:2])

    def push(self, noise: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """Return the z that noise becomes."""
        z: Tensor = self.flow.inverse(with_digits(noise, training=self.training))
        return z.to(noise.dtype)

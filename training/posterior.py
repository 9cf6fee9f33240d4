"""Approximate posteriors q(z|x) of a batch of events, each drawn from by standard normal noise.

A draw is a function of the noise that gradients pass through (Kingma & Welling 2014,
arXiv:1312.6114), and comes with log q of itself.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.autoregressive import InverseAutoregressive
from training.networks import LOG_2PI, normal_log_prob, total


class Posterior(ABC):
    """q(z|x) of a batch of events."""

    @abstractmethod
    def draw(
        self, noise: Float[Tensor, "batch draws latent"]
    ) -> tuple[Float[Tensor, "batch draws latent"], Float[Tensor, "batch draws"]]:
        """Return z and log q(z|x) in nats."""

    def kl(self) -> Float[Tensor, " batch"] | None:
        """Return KL(q(z|x) || N(0, I)) in nats, or None where only draws can tell."""
        return None


class Gaussian(Posterior, ABC):
    """A normal q(z|x), which `log_prob` knows at any z."""

    mean: Float[Tensor, "batch latent"]

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log q(z|x) in nats."""

    @abstractmethod
    def kl(self) -> Float[Tensor, " batch"]:
        """Return KL(q(z|x) || N(0, I)) in nats."""

    @abstractmethod
    def detach(self) -> "Gaussian":
        """Return the same posterior as constants, which no gradient reaches."""


@dataclass(frozen=True)
class DiagonalGaussian(Gaussian):
    """N(mean, diag(scale^2))."""

    mean: Float[Tensor, "batch latent"]
    log_scale: Float[Tensor, "batch latent"]

    @property
    def scale(self) -> Float[Tensor, "batch latent"]:
        """Standard deviation of each latent, positive and finite."""
        return self.log_scale.exp()

    def draw(
        self, noise: Float[Tensor, "batch draws latent"]
    ) -> tuple[Float[Tensor, "batch draws latent"], Float[Tensor, "batch draws"]]:
        """Return mean + scale * noise, and its log-density."""
        z = self.mean.unsqueeze(1) + self.scale.unsqueeze(1) * noise
        return z, total(normal_log_prob(noise)) - total(self.log_scale).unsqueeze(-1)

    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log q(z|x) in nats."""
        log_prob = normal_log_prob(
            z, mean=self.mean.unsqueeze(1), log_scale=self.log_scale.unsqueeze(1)
        )
        return total(log_prob)

    def kl(self) -> Float[Tensor, " batch"]:
        """Return KL(q(z|x) || N(0, I)) in nats, summed over the latent axis.

        Example:
            >>> DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)).kl().tolist()
            [0.0, 0.0]
        """
        return total(self.kl_by_latent())

    def kl_by_latent(self) -> Float[Tensor, "batch latent"]:
        r"""Return each latent's own part of the divergence, in nats.

        With m = mean and s = scale:
            KL_j = 1/2 (s_j^2 + m_j^2 - 1 - 2 log s_j)

        Source:
            Kingma & Welling 2014, arXiv:1312.6114, appendix B.
        """
        log_variance = 2 * self.log_scale
        return 0.5 * (log_variance.exp() + self.mean.square() - 1 - log_variance)

    def detach(self) -> "DiagonalGaussian":
        """Return the same posterior as constants."""
        return DiagonalGaussian(self.mean.detach(), self.log_scale.detach())


@dataclass(frozen=True)
class FullGaussian(Gaussian):
    """N(mean, L L'), with L lower triangular and positive on its diagonal."""

    mean: Float[Tensor, "batch latent"]
    scale_tril: Float[Tensor, "batch latent latent"]

    @property
    def log_diagonal(self) -> Float[Tensor, "batch latent"]:
        """Logarithms of L's diagonal: half of log |L L'| is their sum."""
        return torch.log(torch.diagonal(self.scale_tril, dim1=1, dim2=2))

    def draw(
        self, noise: Float[Tensor, "batch draws latent"]
    ) -> tuple[Float[Tensor, "batch draws latent"], Float[Tensor, "batch draws"]]:
        """Return mean + L noise, and its log-density."""
        # No matrix product, which autocast would make in bfloat16: log q is of the exact noise.
        z = self.mean.unsqueeze(1) + (self.scale_tril.unsqueeze(1) * noise.unsqueeze(2)).sum(-1)
        return z, normal_log_prob(noise).sum(-1) - self.log_diagonal.sum(-1, keepdim=True)

    def log_prob(self, z: Float[Tensor, "batch draws latent"]) -> Float[Tensor, "batch draws"]:
        """Return log q(z|x) in nats, by one triangular system for each event."""
        away = (z - self.mean.unsqueeze(1)).mT
        standard: Tensor = torch.linalg.solve_triangular(self.scale_tril, away, upper=False)
        squares = standard.square().sum(1)
        size = self.mean.shape[1]
        return -0.5 * (squares + size * LOG_2PI) - self.log_diagonal.sum(-1, keepdim=True)

    def kl(self) -> Float[Tensor, " batch"]:
        """Return KL(q(z|x) || N(0, I)) = 1/2 (|L|^2 + |m|^2 - d) - sum_j log L_jj, in nats."""
        squares = self.scale_tril.square().sum((1, 2)) + self.mean.square().sum(1)
        return 0.5 * (squares - self.mean.shape[1]) - self.log_diagonal.sum(1)

    def detach(self) -> "FullGaussian":
        """Return the same posterior as constants."""
        return FullGaussian(self.mean.detach(), self.scale_tril.detach())


@dataclass(frozen=True)
class FlowPosterior(Posterior):
    """A diagonal Gaussian, pushed through a flow that sees what the encoder says of x.

    Source:
        Rezende & Mohamed 2015, arXiv:1505.05770; Kingma et al. 2016, arXiv:1606.04934.
    """

    base: DiagonalGaussian
    flow: InverseAutoregressive
    context: Float[Tensor, "batch context"]

    def draw(
        self, noise: Float[Tensor, "batch draws latent"]
    ) -> tuple[Float[Tensor, "batch draws latent"], Float[Tensor, "batch draws"]]:
        """Return the flow's image of a draw of the base, and its log-density."""
        z, log_q = self.base.draw(noise)
        z, log_abs_det = self.flow(z, self.context.unsqueeze(1))
        return z, log_q - log_abs_det

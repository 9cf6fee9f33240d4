"""Probabilistic PCA in float64: z ~ N(0, I), x = W z + shift + scale noise. All of it is known."""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal


class PPCA:
    """W is random and has a short and a long axis, so that the posterior is no sphere."""

    def __init__(self, *, latent: int = 3, features: int = 5, scale: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(features, latent, generator=generator, dtype=torch.float64)
        self.weight = weight * torch.linspace(0.2, 2.0, latent, dtype=torch.float64)
        self.shift = torch.linspace(-1, 1, features, dtype=torch.float64)
        self.scale = scale
        self.latent = latent
        unit = torch.eye(latent, dtype=torch.float64)
        self.precision = unit + self.weight.T @ self.weight / scale**2

    def simulate(self, rows: int, *, seed: int = 99) -> tuple[Tensor, Tensor]:
        """Return events, and the z that each was made from: no test may seed its draws alike."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(rows, self.latent, generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, len(self.shift), generator=generator, dtype=torch.float64)
        return z @ self.weight.T + self.shift + self.scale * noise, z

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x)."""
        covariance = self.weight @ self.weight.T
        covariance += self.scale**2 * torch.eye(len(self.shift), dtype=torch.float64)
        log_prob: Tensor = MultivariateNormal(self.shift, covariance).log_prob(x)
        return log_prob

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) of each event (batch, features) and draw (batch, draws, latent)."""
        error = (x.unsqueeze(1) - z @ self.weight.T - self.shift) / self.scale
        constant = math.log(2 * math.pi) + 2 * math.log(self.scale)
        return -0.5 * (error.square() + constant).sum(2)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return p(z|x) of each event."""
        mean = torch.linalg.solve(self.precision, self.weight.T @ (x - self.shift).T).T
        return MultivariateNormal(mean / self.scale**2, precision_matrix=self.precision)

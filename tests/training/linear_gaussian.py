"""Probabilistic PCA as the VAE that it is: everything about it is known in closed form."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from tests.training.cases import vectors
from training.networks import LOG_BOUND
from training.observation import Gaussian
from training.vae import VAE, VAEConfig

FEATURES, LATENT, SCALE = 5, 3, 0.4


def unbounded(log_scale: Tensor) -> Tensor:
    """The inverse of `bounded_log`."""
    return LOG_BOUND * torch.atanh(log_scale / LOG_BOUND)


class LinearGaussian:
    """x = m + s (W z + b + noise), with the encoder that is best for it.

    Its likelihood and its posterior N(gain (x - ...), precision^-1) are known. With orthogonal
    columns of W the posterior is diagonal, so that a diagonal q can be exact.
    """

    def __init__(
        self, *, orthogonal: bool = False, posterior: Literal["diagonal", "full"] = "diagonal"
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        mean = torch.randn(FEATURES, **options)
        std = torch.rand(FEATURES, **options) + 0.5
        weight, shift = torch.randn(FEATURES, LATENT, **options), torch.randn(FEATURES, **options)
        if orthogonal:
            weight = torch.linalg.qr(weight)[0] * torch.tensor([1.5, 1.0, 0.5])
        self.precision = torch.eye(LATENT).double() + weight.T @ weight / SCALE**2
        covariance = weight @ weight.T + SCALE**2 * torch.eye(FEATURES).double()
        self.marginal = MultivariateNormal(
            mean + std * shift, covariance * std[:, None] * std[None, :]
        )
        config = VAEConfig(
            observation="normal", posterior=posterior, latent=LATENT, minimum_scale=0.1
        )
        self.model = VAE(config, vectors(mean=mean.numpy(), std=std.numpy())).double()
        # Not the float32 moments that the constructor keeps: they differ in the eighth digit.
        self.model.standardise.location, self.model.standardise.unit = mean, std
        gain = torch.linalg.solve(self.precision, weight.T) / SCALE**2
        spread = self._spread(posterior)
        encoder, decoder = nn.Linear(FEATURES, LATENT + len(spread)), nn.Linear(LATENT, FEATURES)
        flat = torch.zeros(len(spread), FEATURES, dtype=torch.float64)
        observation = self.model.observation
        assert isinstance(observation, Gaussian)
        with torch.no_grad():
            encoder.weight = nn.Parameter(torch.cat([gain, flat]))
            encoder.bias = nn.Parameter(torch.cat([-gain @ shift, spread]))
            decoder.weight, decoder.bias = nn.Parameter(weight), nn.Parameter(shift)
            floor = torch.tensor(SCALE - 0.1, dtype=torch.float64)
            observation.raw = nn.Parameter(unbounded(torch.log(floor)))
        self.model.encoder.network = nn.Sequential(encoder)
        self.model.decoder = nn.Sequential(decoder)
        torch.manual_seed(0)
        self.x = self.marginal.sample((200,))

    def _spread(self, posterior: str) -> Tensor:
        """What the encoder says of the best q's scale, the same at every event."""
        if posterior == "diagonal":
            return unbounded(-0.5 * torch.log(self.precision.diagonal()))
        scale_tril = torch.linalg.cholesky(torch.linalg.inv(self.precision))
        row, column = torch.tril_indices(LATENT, LATENT, -1)
        return torch.cat([unbounded(scale_tril.diagonal().log()), scale_tril[row, column]])

    @property
    def gap(self) -> Tensor:
        """What the best diagonal q loses, at every event (oracle 7)."""
        log_variances = -torch.log(self.precision.diagonal())
        return 0.5 * (-torch.logdet(self.precision) - log_variances.sum())


def cubature(rows: int) -> Tensor:
    """Noise whose mean of any quadratic is the exact expectation: ±sqrt(d) on each axis."""
    points = math.sqrt(LATENT) * torch.cat([torch.eye(LATENT), -torch.eye(LATENT)]).double()
    return points.expand(rows, -1, -1)
